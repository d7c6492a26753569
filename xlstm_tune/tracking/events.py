"""The lines of a spool as their readers see them: whole, checked, and what they say of each run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUSES = ("completed", "pruned", "failed", "duplicate", "interrupted")
VALIDATION_END = "validation_end.safetensors"
"""Name of an artifact that reaches MLflow as a picture, forecast.svg: see `plot.forecast_picture`."""
_TRIAL: dict[str, type] = {"number": int}
# Each kind of event and its fields; `t`, in ms since 1970, belongs to all.
_FIELDS: dict[str, dict[str, type]] = {
    "search_started": {"name": str, "params": dict, "tags": dict, "artifacts": list},
    "trial_started": _TRIAL | {"name": str, "params": dict, "tags": dict},
    "epoch": _TRIAL | {"step": int, "metrics": dict},
    "trial_ended": _TRIAL | {"status": str, "reason": str, "metrics": dict, "tags": dict, "artifacts": list},
    "metrics": {"metrics": dict, "tags": dict},
    "artifact": {"artifacts": list, "where": str},
    "model": {"name": str, "where": str},
    "table": {"name": str, "columns": list, "rows": list},
    "search_ended": {"status": str, "metrics": dict, "artifacts": list},
}

_TOO_LARGE = 1 << 63
"""No store takes an integer from here on."""


@dataclass
class KnownRun:
    """What a spool says of one run."""

    started: bool = False
    step: int = -1  # the last step of its curves; -1: none
    ended: str | None = None  # the status it ended with; None while it runs, also after it was started again
    search: str | None = None  # of the search itself: as its address has it


def whole_lines(path: Path, offset: int, limit: int) -> list[bytes]:
    """Whole lines from byte `offset` on. `limit` is in bytes and may be passed by a line."""
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.readlines(limit)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return lines


def read_event(line: bytes) -> dict[str, Any] | None:
    """The event of a line. None: the line is damaged, by a failing disk or by a write that broke off."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(kind := event.get("e"), str) or kind not in _FIELDS:
        return None
    fields = {"t": int} | _FIELDS[kind]
    if not all(isinstance(event.get(name), type_) for name, type_ in fields.items()):
        return None
    plausible = (
        isinstance(event.get("number"), int | None)
        and event.get("status", STATUSES[0]) in STATUSES
        and all(isinstance(value, float | int) for value in event.get("metrics", {}).values())
        and all(abs(value) < _TOO_LARGE for value in _integers(event))
        and all(isinstance(path, str) for path in event.get("artifacts", ()))
    )
    return event if plausible else None


def _integers(event: dict[str, Any]) -> list[int]:
    """Those that reach the store as numbers."""
    values = [event["t"], event.get("number"), event.get("step"), *event.get("metrics", {}).values()]
    return [value for value in values if isinstance(value, int)]


def known_runs(path: Path) -> dict[int | None, KnownRun]:
    """Every run that the spool speaks of, by trial number; None is the search itself. Damaged lines are passed over."""
    known: dict[int | None, KnownRun] = {}
    with path.open("rb") as file:
        for line in file:
            event = read_event(line) if line.endswith(b"\n") else None
            if event is None:
                continue
            run = known.setdefault(event.get("number"), KnownRun())
            if event["e"] in {"search_started", "trial_started"}:
                run.started, run.ended = True, None
                if isinstance(event.get("search"), str):
                    run.search = event["search"]
            elif event["e"] in {"search_ended", "trial_ended"}:
                run.ended = event["status"]
            elif event["e"] == "epoch":
                run.step = max(run.step, event["step"])
    return known
