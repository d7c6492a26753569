"""The search's own row: what is known of it at its start, and how its parts add up."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.persistence.folder import create_folder
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.record import SearchRecord
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search.stopping import INTERRUPTED, TIME_BUDGET
from xlstm_tune.spec import SearchSpec

PLACEMENT = Placement(cpus=1.0, gpus=0.25, concurrent=4)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "t.csv").write_text("when,y,c\n" + "".join(f"2020-01-01T{n // 60:02d}:{n % 60:02d},{n % 9},1\n"
                                                             for n in range(300)))  # fmt: skip
    spec = SearchSpec.parse(
        {
            "name": "small",
            "data": {
                "source": str(tmp_path / "t.csv"),
                "time": {"column": "when"},
                "target": "y",
                "lookback": 6,
                "horizon": 2,
                "season": 9,
            },
            "search": {"storage": "postgresql://me:secret@db/optuna"},
            "space": {"data.lookback": {"choice": [4, 8]}},
        }
    )
    table = load_table(spec.data)
    data = prepare(table, spec.data, spec.max_lookback())
    plan = Plan(spec, Space.from_spec(spec), table, data, [], None, tmp_path / "small", "", None, PLACEMENT)
    create_folder(plan.folder, spec, data.fingerprint)
    return plan


def row_of(plan: Plan) -> dict[str, Any]:
    (row,) = read(plan.folder, "search").to_pylist()
    return {**row, **{name: json.loads(row[name]) for name in ("spec", "environment", "data")}}


def test_row_tells_all_that_a_report_needs(plan: Plan) -> None:
    with ResultsWriter(plan.folder) as results:
        record = SearchRecord(plan, PLACEMENT, results)
        record.begin()
        row = row_of(plan)
        assert (row["status"], row["reason"], row["ended"], row["resumed"]) == ("running", None, None, None)
        record.end(None)
    row = row_of(plan)
    assert (row["name"], row["status"], row["reason"]) == ("small", "completed", None)
    assert (row["concurrent"], row["cpus_per_trial"], row["gpus_per_trial"]) == (4, 1.0, 0.25)
    assert row["seconds"] == pytest.approx((row["ended"] - row["started"]).total_seconds(), abs=0.01)
    assert "secret" not in json.dumps(row["spec"]) and row["spec"]["data"]["target"] == ["y"]
    assert row["environment"]["data_fingerprint"] == row["data"]["fingerprint"] == plan.data.fingerprint
    data = row["data"]
    assert (data["task"], data["targets"], data["season"]) == ("forecast", ["y"], 9)
    assert (data["lookback"], data["max_lookback"], data["horizon"], data["keys"]) == (6, 8, 2, [])
    assert data["samples"] == {part: len(samples) for part, samples in plan.data.parts.items()}
    assert data["inputs"] == ["y", "c"] and any("constant in the training part" in note for note in data["notes"])
    assert data["target_mean"] == [pytest.approx(4.0, abs=0.1)] and data["target_std"][0] > 2
    assert data["mase_scale"] == [None] and data["best_possible"] is None  # the series repeats itself every season


def test_parts_of_a_search_add_up_without_the_pause(plan: Plan) -> None:
    with ResultsWriter(plan.folder) as results:
        first = SearchRecord(plan, PLACEMENT, results)
        first.begin()
        first.end(INTERRUPTED)
    before = row_of(plan)
    assert (before["status"], before["reason"]) == ("interrupted", INTERRUPTED)
    with ResultsWriter(plan.folder) as results:
        results.search({**before, "seconds": 100.0, "started": before["started"] - timedelta(hours=5)})
    with ResultsWriter(plan.folder) as results:
        second = SearchRecord(plan, PLACEMENT, results)
        second.begin()
        assert row_of(plan)["status"] == "running" and row_of(plan)["ended"] is None
        second.end(TIME_BUDGET)
    after = row_of(plan)
    assert (after["status"], after["reason"]) == ("completed", TIME_BUDGET)
    assert after["started"] == before["started"] - timedelta(hours=5) and after["resumed"] >= before["ended"]
    assert 100.0 <= after["seconds"] < 110.0


def test_killed_part_counts_up_to_its_last_sign_of_life(plan: Plan) -> None:
    with ResultsWriter(plan.folder) as results:
        SearchRecord(plan, PLACEMENT, results).begin()
        began = row_of(plan)["started"]
        results.epoch({"trial": 0, "epoch": 1, "timestamp": began + timedelta(seconds=50)})
    with ResultsWriter(plan.folder) as results:
        record = SearchRecord(plan, PLACEMENT, results)
        record.begin()
        record.end(None, "every configuration has been tried")
    row = row_of(plan)
    assert 50.0 <= row["seconds"] < 60.0
    assert (row["status"], row["reason"]) == ("completed", "every configuration has been tried")
