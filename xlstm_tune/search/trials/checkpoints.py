"""A trial's checkpoints in its own folder: the last two whole ones, found out by checksums when damaged.

`<trial>/checkpoints/epoch-000012/` holds what the trial wrote after its 12th epoch, and `sha256.txt` the checksums of
its files and, in the last line, of itself. Each is written under another name, brought to the disk and renamed.
Beside them `epochs.jsonl` keeps the row of every epoch: what a driver that died had not been told yet, the next one is
told without training it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from xlstm_tune.errors import CheckpointError
from xlstm_tune.layout import CHECKPOINTS
from xlstm_tune.layout import SUMS as SUMS
from xlstm_tune.lines import append_line, sync
from xlstm_tune.search.persistence.store import HERE, Shared
from xlstm_tune.search.variables import number
from xlstm_tune.training.checkpoint import sha256_of, write_atomically

ROWS = "epochs.jsonl"
KEPT = 2
SHARE = "XLSTM_TUNE_CHECKPOINT_SHARE"
"""Environment variable: the share of the training time that saving may take; a large number saves every epoch."""
_FIRST_SECONDS = 0.1
"""What the first save of a trial is taken to cost before it is known."""


class Checkpoints:
    """Writes and finds the checkpoints of one trial. folder: the trial's. store: where other workers find them."""

    def __init__(self, folder: Path, store: Shared = HERE) -> None:
        self._folder, self._store = folder / CHECKPOINTS, store
        self.cost = _FIRST_SECONDS
        """Seconds that a save takes."""
        self.trained = 0.0
        """Seconds of training since the last one."""
        self._saved = 0

    def note(self, row: dict[str, Any]) -> None:
        """Keep the row of an epoch. row: with `epoch` and `epoch_seconds`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ROWS).open("ab", buffering=0) as file:
            append_line(file.fileno(), (json.dumps(row) + "\n").encode())
        self.trained += row["epoch_seconds"]

    def save(self, epoch: int, write: Callable[[Path], None]) -> None:
        """Save now; nothing to do where this epoch is saved already.

        write: puts everything that the next epoch depends on into a folder that it makes.
        """
        if epoch == self._saved:
            return
        started = time.perf_counter()
        place = self._folder / f"epoch-{epoch:06d}"
        unfinished = self._folder / f".{place.name}.{os.getpid()}.tmp"
        try:
            write(unfinished)
            _seal(unfinished)
            if place.exists():  # of a worker that was given up
                shutil.rmtree(place)
            unfinished.rename(place)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync(self._folder)
        for old in self._places()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        self._store.push(self._folder.parent, checkpoints=True)
        self.cost, self.trained, self._saved = time.perf_counter() - started, 0.0, epoch

    def whole(self, known: int) -> Iterator[tuple[int, Path, list[dict[str, Any]]]]:
        """The checkpoints that can be gone on from, newest first: epoch, folder, rows to be told.

        known: the last epoch that the driver knows; the rows are those behind it. What is damaged is passed over, with
        the reason in `damaged.txt` in the trial's folder.
        """
        rows = self._rows()
        for place in self._places():
            epoch = int(place.name.removeprefix("epoch-"))
            try:
                check(place)
            except CheckpointError as error:
                self.damaged(place, str(error))
                continue
            untold = range(known + 1, epoch + 1)
            if all(number in rows for number in untold):
                yield epoch, place, [rows[number] for number in untold]

    def damaged(self, place: Path, reason: str) -> None:
        """Note why a checkpoint was passed over, and remove it."""
        with (self._folder.parent / "damaged.txt").open("a") as file:
            file.write(reason + "\n")
        shutil.rmtree(place, ignore_errors=True)

    def go_on_from(self, epoch: int) -> None:
        """Forget what lies behind an epoch: it will be trained again. 0 = everything."""
        rows = self._rows()
        kept = [json.dumps(rows[number]) + "\n" for number in sorted(rows) if number <= epoch]
        for place in self._places():
            if int(place.name.removeprefix("epoch-")) > epoch:
                shutil.rmtree(place, ignore_errors=True)
        for unfinished in self._folder.glob(".epoch-*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if (self._folder / ROWS).exists():
            # Atomically: with the rows, all checkpoints would be lost.
            write_atomically(self._folder / ROWS, "".join(kept).encode())
        self._saved = epoch

    def _places(self) -> list[Path]:
        """Newest first."""
        return sorted(self._folder.glob("epoch-" + "[0-9]" * 6), reverse=True)

    def _rows(self) -> dict[int, dict[str, Any]]:
        """The rows by epoch; half a line and damaged ones are left out."""
        rows: dict[int, dict[str, Any]] = {}
        try:
            lines = (self._folder / ROWS).read_bytes().split(b"\n")
        except FileNotFoundError:
            return rows
        for line in lines:
            try:
                row = json.loads(line)
                rows[int(row["epoch"])] = row
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
        return rows


def worth_saving(trials: Iterable[Checkpoints]) -> bool:
    """Whether saving all of these, which train together, takes no more than its share of the training since."""
    trials = list(trials)
    return sum(one.cost for one in trials) <= share() * sum(one.trained for one in trials)


def share() -> float:
    """Of the training time, what saving may take. Raises SpecError for a wrong value."""
    return number(SHARE, 0.04)


def check(place: Path) -> None:
    """Raise CheckpointError when a checkpoint is not what was written."""
    try:
        *lines, own, _ = (place / SUMS).read_text().split("\n")
    except OSError as error:
        raise CheckpointError(f"the checkpoint {place} is damaged: its {SUMS} cannot be read ({error})") from None
    except ValueError:
        raise CheckpointError(f"the checkpoint {place} is damaged: its {SUMS} is not what was written") from None
    text = "".join(line + "\n" for line in lines)
    if hashlib.sha256(text.encode()).hexdigest() != own:
        raise CheckpointError(f"the checkpoint {place} is damaged: its {SUMS} is not what was written")
    for line in lines:
        sum_, _, name = line.partition("  ")
        file = place / name
        if not file.is_file() or sha256_of(file) != sum_:
            raise CheckpointError(f"the checkpoint {place} is damaged: {name} is not what was written")


def _seal(place: Path) -> None:
    """Write the checksums of all files below, and bring everything to the disk."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    text = "".join(f"{sha256_of(file)}  {file.relative_to(place).as_posix()}\n" for file in files)
    (place / SUMS).write_text(text + hashlib.sha256(text.encode()).hexdigest() + "\n")
    sync(place / SUMS)
    sync(place)
