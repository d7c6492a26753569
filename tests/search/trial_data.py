"""Data and comparisons of the tests that train trials without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared

CLOCKS = ("epoch_seconds", "sequences_per_s", "peak_memory_mib")
EVERY_EPOCH = "1e9"
"""For XLSTM_TUNE_CHECKPOINT_SHARE."""
NEVER = "0"


class Steps(Protocol):
    """A trial."""

    def step(self) -> list[dict[str, Any]]:
        """Its rows."""


def small_data(folder: Path) -> Prepared:
    """A table of one column."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t.csv").write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(200)) + "\n")
    config = DataConfig.parse({"source": str(folder / "t.csv"), "target": "y", "lookback": 5, "horizon": 2})
    return prepare(load_table(config), config)


def steady(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what the clock says."""
    return {key: value for key, value in row.items() if key not in CLOCKS}


def one_row(trial: Steps) -> dict[str, Any]:
    """The row of a step that brings one."""
    (row,) = trial.step()
    return row


def drain(trial: Steps, numbers: Sequence[int | None] = (None,)) -> list[dict[str, Any]]:
    """The rows, without what the clock says, until all of these configurations are done."""
    rows: list[dict[str, Any]] = []
    left = set(numbers)
    while left and (step := trial.step()):
        rows += [steady(row) for row in step]
        left -= {row.get("number") for row in step if row.get("done") or row["status"] == "failed"}
    return rows


def newest(folder: Path) -> Path:
    """A trial's newest checkpoint."""
    return max((folder / "checkpoints").glob("epoch-*"))


def damages(place: Path, without: str = "") -> Iterator[tuple[str, Path]]:
    """Copies of a trial's folder beside it, each with one file of its newest checkpoint damaged in one way.

    without: a pattern of files that are left as they are.
    """
    checkpoint = newest(place)
    files = sorted(path.relative_to(place) for path in checkpoint.rglob("*") if path.is_file())
    files = [file for file in files if not (without and file.match(without))]
    for count, file in enumerate(files):
        for way in WAYS:
            copy = place.with_name(f"{place.name}-{count}-{way}")
            shutil.copytree(place, copy)
            damage(copy / file, way)
            yield f"{file.relative_to(checkpoint.relative_to(place))} {way}", copy


WAYS: Sequence[str] = ("shortened", "flipped", "removed", "emptied")


def damage(file: Path, way: str) -> None:
    """What disks and people do to files."""
    content = file.read_bytes()
    if way == "shortened":
        file.write_bytes(content[: len(content) // 2])
    elif way == "flipped":
        place = len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif way == "removed":
        file.unlink()
    else:
        file.write_bytes(b"")
