"""A page of thousands of trials stays light, and says how the search is gone on with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from page_tables import figure, write_search

from xlstm_tune.report.blocks import embedded
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.curves import learning_curves
from xlstm_tune.report.sections.repeat import repeat
from xlstm_tune.storage.copy import KEPT_AT


def test_a_search_is_repeated_where_its_checkpoints_lie(tmp_path: Path) -> None:
    folder = tmp_path / "50% made?" / "made"
    write_search(folder, 3)
    (commands,) = (block for block in repeat(read_record(folder)).blocks if getattr(block, "title", "") == "Commands")
    assert f"--resume made --storage '{folder.parent}'" in str(commands)
    assert f"'sqlite:///{tmp_path}/50%25 made%3F/mlflow.db'" in str(commands)
    (folder / KEPT_AT).write_text(json.dumps({"storage": "s3://bucket/searches"}))
    (commands,) = (block for block in repeat(read_record(folder)).blocks if getattr(block, "title", "") == "Commands")
    assert "--resume made --storage s3://bucket/searches" in str(commands)


def test_many_long_curves_keep_the_page_light(tmp_path: Path) -> None:
    write_search(tmp_path / "made", 48)
    record = read_record(tmp_path / "made")
    many = {trial: [(epoch, 1.0 + 1 / epoch) for epoch in range(1, 302)] for trial in range(2000)}
    drawn = figure(learning_curves(dataclasses.replace(record, curves=many)), "curves")
    lines = [trace for trace in drawn.data if trace["mode"] == "lines" and "text" in trace]
    points = [(x, text) for trace in lines for x, text in zip(trace["x"], trace["text"], strict=True) if text]
    assert len(points) < 105_000 and {text for _, text in points} == {f"trial {trial}" for trial in many}
    assert sum(x == 301 for x, _ in points) == 2000 == sum(x == 1 for x, _ in points)
    assert len(embedded(drawn.data)) < 4_000_000
    few = figure(learning_curves(record), "curves")
    assert any(": " in text for trace in few.data for text in trace.get("text", ()) if text), "named in full"
