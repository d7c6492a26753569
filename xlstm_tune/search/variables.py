"""How the environment variables of a search are written; what each means stands beside its owner."""

from __future__ import annotations

import math
import os

from xlstm_tune.errors import SpecError

LONGEST_WAIT = 1e9
"""Seconds, three decades: threads cannot wait for many more."""
_SWITCHED = {"on": True, "1": True, "true": True, "yes": True, "off": False, "0": False, "false": False, "no": False}


def switch(variable: str) -> bool:
    """Whether a switch is on, as it is where it is not set or empty. Raises SpecError for neither on nor off."""
    value = os.environ.get(variable) or "on"
    if value.lower() not in _SWITCHED:
        raise SpecError(
            f"{variable} must be on or off (1 and 0, true and false, yes and no mean the same), got '{value}'; give it "
            "one of these, or unset it"
        )
    return _SWITCHED[value.lower()]


def number(variable: str, default: float, unit: str = "", zero: bool = True, most: float = math.inf) -> float:
    """A variable's number; `default` where it is not set or empty. unit: as in `seconds`. zero: it may be 0.

    Raises SpecError for what is no number, negative or above `most`.
    """
    value = os.environ.get(variable) or str(default)
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found <= most or not (found or zero):
        limit = "" if most == math.inf else f" up to {most:,.0f}"
        raise SpecError(
            f"{variable} must be a number{f' of {unit}' if unit else ''} {'from' if zero else 'above'} 0{limit}, got "
            f"'{value}'; give it one, such as {default:g}, or unset it"
        )
    return found
