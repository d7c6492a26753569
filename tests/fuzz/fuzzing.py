"""What counts as a clear refusal, how long to look for something else, and values that nobody expects.

XLSTM_TUNE_FUZZ=5000 runs that many new examples of each test instead of the same few hundred every time.
"""

from __future__ import annotations

import math
import os
import re
import types
import typing
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from xlstm_tune.errors import UserError

HUNT = int(os.environ.get("XLSTM_TUNE_FUZZ", "0"))


def examples(number: int) -> settings:
    """The same `number` of examples in every run, unless a hunt is on."""
    return settings(
        max_examples=HUNT or number,
        derandomize=not HUNT,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def check_sentence(error: UserError) -> None:
    """Assert that a message is one that a person can read."""
    text = str(error)
    assert text.strip(), "an empty message"
    assert "Traceback" not in text and not re.search(r"<[\w.]+[^<>]* at 0x[0-9a-f]+>", text), text
    assert not text.startswith("'' must"), f"no key is named: {text}"
    assert len(text) < 1500, f"{len(text)} characters: {text[:1500]}"


INTEGERS = [-1, 0, 1, 2, 3, 4, 7, 8, 63, 64, 65, 1000, 16384, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**400]
FLOATS = [-1.0, -0.0, 5e-324, 1e-310, 1e-300, 1e-9, 0.1, 0.15, 0.5, 0.999999, 1.0, 8.0, 1e9, 1e300, 1.7e308]
TEXTS = [
    "", " ", "\t", "\n", "\x00", "\x1b[31m", "\ud800", "é", "日本", "🦜", "\u202e", "~", "~nobody-here", "null",
    "[/red]", "a" * 300, "a/b", "../x", "off", "1e-4", "2020-01-05", "2020-13-45", "9999-12-31", "0000_00", "2020_1",
    "9999_52", "%", "*", "[", "**", "?", "day", "y", "x", "s", "all", "time", "auto", "none", "sample:outbreak", "file://%zz",
]  # fmt: skip

texts = st.sampled_from(TEXTS) | st.text(max_size=12) | st.text(st.characters(), max_size=4)
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(INTEGERS)
    | st.integers(-5, 200)
    | st.sampled_from([*FLOATS, math.inf, -math.inf, math.nan])
    | st.floats()
    | texts
)
junk = st.recursive(
    scalars | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def values_for(kind: Any) -> st.SearchStrategy[Any]:
    """Values of about the right type for a pydantic annotation, at and beyond their limits."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is typing.Annotated:
        return values_for(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_for(one) for one in arguments])
    if origin is list:
        return st.lists(values_for(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(texts, values_for(arguments[1]), max_size=3)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(1, 12) | st.sampled_from(INTEGERS),
        float: st.sampled_from(FLOATS) | st.floats(0, 2),
        bool: st.booleans(),
        str: texts,
        type(None): st.none(),
    }
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return fields_of(kind)
    return simple.get(kind, junk)


def fields_of(owner: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """A section with some of its keys."""
    return st.fixed_dictionaries(
        {},
        optional={field.alias or name: values_for(field.annotation) for name, field in owner.model_fields.items()},
    )
