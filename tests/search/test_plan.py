"""Groups of a regression's sequences, which a baseline and the report go by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from xlstm_tune.models.baselines import baselines
from xlstm_tune.search.plan import check_data, group_columns, make_plan, sample_groups
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec


def spec_of(folder: Path, keys: Sequence[str], split: dict[str, object]) -> SearchSpec:
    """Three states of two counties × 10 years × 12 days."""
    rng = np.random.default_rng(0)
    lines = ["state,county,year,date,x,cases"]
    for county in range(6):
        for year in range(2000, 2010):
            start = f"s{county // 2},c{county},{year},{year}-01-"
            lines += [f"{start}{day:02d},{rng.normal():.3f},{10 * county + year % 5}" for day in range(1, 13)]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    data = {"source": str(folder / "t.csv"), "task": "regression", "sequence": list(keys), "target": "cases"}
    data |= {"exclude": [name for name in ("state", "county", "year") if name not in keys]}
    return SearchSpec.parse({"name": "groups", "data": data | {"time": {"column": "date"}, "split": split}})


LAST_YEARS = {"by": "time", "validation": 0.2, "test": 0.2}


@pytest.mark.parametrize("keys", [("county", "year"), ("year", "county"), ("year", "state", "county")])
def test_groups_do_not_depend_on_the_order_of_the_keys(keys: tuple[str, ...], tmp_path: Path) -> None:
    spec = spec_of(tmp_path, keys, LAST_YEARS)
    table, data = check_data(spec, Space.from_spec(spec))
    assert set(group_columns(table, data)) == set(keys) - {"year"}
    groups = sample_groups(table, data)
    assert groups is not None and len(np.unique(groups)) == 6
    assert "group_mean" in [one.name for one in baselines(data, groups)]


def test_where_all_keys_are_known_the_finest_that_is_left_counts(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, ("county", "year"), {"by": "county", "validation": 1 / 6, "test": 1 / 6})
    table, data = check_data(spec, Space.from_spec(spec))
    assert group_columns(table, data) == ("year",)


def test_plan_says_where_no_group_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    split = {"by": ["time", "county"], "validation": 0.25, "test": 0.25}
    for at, (how, told) in enumerate([(split, True), (LAST_YEARS, False)]):
        spec = spec_of(tmp_path, ("county", "year"), how)
        plan = make_plan(spec, Space.from_spec(spec), str(tmp_path / str(at)), None, None)
        said = [note for note in plan.data.notes if note.startswith("no baseline group_mean")]
        assert len(said) == told and ("group_mean" in [one.name for one in plan.baselines]) == (not told)


@pytest.mark.parametrize(
    ("search", "exhausted"),
    [({"algorithm": "grid"}, True), ({"algorithm": "grid", "trials": 3}, False), ({"trials": 9}, True)],
)
def test_plan_knows_when_its_space_holds_no_other_configuration(
    search: dict[str, object], exhausted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    settings = spec_of(tmp_path, ("county", "year"), LAST_YEARS).model_dump()
    settings |= {"search": search, "space": {"model.hidden_size": {"choice": [4, 8, 12, 16]}}}
    spec = SearchSpec.parse(settings)
    plan = make_plan(spec, Space.from_spec(spec), str(tmp_path / "s"), None, None)
    assert plan.exhausted is exhausted
