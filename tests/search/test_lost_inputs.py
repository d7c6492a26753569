"""Inputs that `model.instance_norm` takes away are told of before a search, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xlstm_tune.search.plan import make_plan
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec

KINDS = {"a": "city", "b": "land", "c": "city"}
SIZES = {"a": 3, "b": 9, "c": 9}


def notes(folder: Path, shops: str = "abc", days: int = 1, **sections: Any) -> list[str]:
    """Of shops with a kind, a size, and promotions that come and go, each with first days of its own.

    days: from row to row.
    """
    draw, first = np.random.default_rng(0), np.datetime64("2024-01-01")
    rows = [
        f"{shop},{first + number + days * row},{KINDS[shop]},{SIZES[shop]},{draw.integers(2)},{draw.normal():.3f}"
        for number, shop in enumerate(shops)
        for row in range(60)
    ]
    (folder / "shops.csv").write_text("\n".join(["shop,day,kind,size,promo,sold", *rows]) + "\n")
    data = {
        "source": str(folder / "shops.csv"), "series": "shop", "time": {"column": "day"}, "target": "sold",
        "categories": ["kind"], "lookback": 8, "horizon": 2,
    } | sections.pop("data", {})  # fmt: skip
    spec = SearchSpec.parse({"name": "shops", "data": data, **sections})
    plan = make_plan(spec, Space.from_spec(spec), str(folder / "searches"), None, None)
    return [note for note in plan.notes if "never change" in note]


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"instance_norm": "last"}},
        {"model": {"instance_norm": "reversible"}},
        {"space": {"model.instance_norm": {"choice": ["none", "last"]}}},
    ],
)
def test_inputs_that_are_the_same_all_through_a_series_are_named(tmp_path: Path, sections: dict[str, Any]) -> None:
    (note,) = notes(tmp_path, **sections)
    assert note.startswith("kind, size never change within a series")
    assert note.endswith("cannot see them; name them in data.static")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"space": {"model.instance_norm": {"choice": ["none"]}}, "model": {"instance_norm": "last"}},
        {"model": {"instance_norm": "last"}, "data": {"static": ["size", "kind"]}},
        {"model": {"instance_norm": "last"}, "shops": "b"},
    ],
)
def test_nothing_is_said_where_nothing_is_lost(tmp_path: Path, sections: dict[str, Any]) -> None:
    assert notes(tmp_path, **sections) == []


def test_what_is_advised_can_be_done(tmp_path: Path) -> None:
    """A column that features name cannot be static as well, and the calendar's columns cannot be at all."""
    listed = {"features": ["promo", "size", "kind"], "calendar": ["week"]}
    (note,) = notes(tmp_path, model={"instance_norm": "last"}, data=listed, days=7)
    assert note.startswith("size, kind never change") and note.endswith("in data.static in place of data.features")
    assert (
        notes(
            tmp_path, model={"instance_norm": "last"}, data={"static": ["size", "kind"], **listed, "features": "promo"}
        )
        == []
    )


def test_of_one_input_it_is_said_in_the_singular(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, model={"instance_norm": "last"}, data={"static": "size"})
    assert note.startswith("kind never changes within") and note.endswith("cannot see it; name it in data.static")
