"""What is said before a search that takes long to begin."""

from __future__ import annotations

from pathlib import Path

import yaml
from typer.testing import CliRunner

from xlstm_tune.search.__main__ import app

NOTE = "note: fitting the linear baselines on a lookback of 1,000 steps can take a while"


def said(folder: Path, **changes: object) -> str:
    """By a dry run on a table that is too short, so that no baseline is fitted."""
    (folder / "table.csv").write_text("\n".join(["y", *map(str, range(90))]) + "\n")
    data = {"source": "table.csv", "target": "y", "lookback": 1000, "horizon": 2} | changes
    (folder / "long.yaml").write_text(yaml.safe_dump({"data": data, "model": {"family": "lstm"}}))
    result = CliRunner().invoke(app, [str(folder / "long.yaml"), "--storage", str(folder / "searches"), "--dry-run"])
    assert result.exit_code == 2
    return result.output


def test_a_search_says_that_a_long_lookback_takes_long_before_it_begins(tmp_path: Path) -> None:
    assert said(tmp_path).startswith(NOTE + "\n")
    assert "can take a while" not in said(tmp_path, lookback=999)
    assert "can take a while" not in said(tmp_path, task="regression", sequence="t", horizon=1, split={"by": "t"})
