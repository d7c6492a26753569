"""The search's own record: what happened, in the order in which it happened, one JSON line each.

The driver writes a line before anyone acts on it, so whatever died, the line tells how far the search had come. The
study, the tables, the MLflow runs and the scheduler's rungs are made from the same events, and what of them is missing
after a kill is made again from here.

Lines (`e` says which, `t` is seconds since 1970):

* search: a driver starts, the first one or one that goes on; `schema`, `program`;
* began: a worker is asked for that is given the configurations `numbers`, together, with their `params`;
* took: it is there, and has them (journals of earlier programs lack it);
* epoch: a configuration's `row`; `stop` where the scheduler ended it with that;
* ended: a configuration's end: `status`, `reason`, `value`, `params`, `duplicate_of`;
* died: the worker of `numbers` was lost, and why;
* closed: the driver stopped, and why.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xlstm_tune import __version__
from xlstm_tune.errors import StorageError, reaching
from xlstm_tune.layout import SEARCH_JOURNAL as JOURNAL
from xlstm_tune.lines import append_line, cut_torn_line
from xlstm_tune.search.sampling.duplicates import TrialEnd
from xlstm_tune.search.sampling.space import Params
from xlstm_tune.search.worker_time import WorkerTime, compiling, count

SCHEMA = 1
MOST_NAMED = 200
"""Damaged lines."""


@dataclass
class Past(WorkerTime):
    """What the journal knows of one configuration."""

    number: int
    params: Params
    began: float
    """Seconds since 1970; when a worker was asked for until one is there, and when it ended where none was."""
    asked: float | None = None
    """Since when a worker is waited for. Nobody's seconds, unless an epoch comes without word that one is there:
    earlier programs did not tell."""
    taken: bool = False
    """Whether a worker has had it."""
    rows: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """When each epoch's row came, and the row."""
    end: TrialEnd | None = None
    ended: float | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are known."""
        return max((row["epoch"] for _, row in self.rows if row["status"] != "failed"), default=0)

    @property
    def decided(self) -> dict[str, Any] | None:
        """The row that ended it, where one did."""
        return self.rows[-1][1] if self.rows and self.rows[-1][1]["done"] else None


@dataclass
class History:
    """A journal that has been read."""

    trials: dict[int, Past] = field(default_factory=dict)
    rows: list[tuple[dict[str, Any], bool]] = field(default_factory=list)
    """Of every configuration, in order: what the scheduler has seen, and whether it ended the configuration then."""

    def add(self, event: Mapping[str, Any]) -> None:
        """Take a line over."""
        now = float(event["t"])
        match event["e"]:
            case "search":
                for past in self.trials.values():  # of a driver that was killed; nobody knows when after its last word
                    past.since = past.asked = None
            case "began":
                for number, params in zip(event["numbers"], event["params"], strict=True):
                    self.trials.setdefault(number, Past(number, params, now))
                count(self.trials, event["numbers"], now, None)
                for number in event["numbers"]:
                    past = self.trials[number]
                    past.together, past.asked = list(event["numbers"]), now
            case "took":
                for number in event["numbers"]:
                    past = self.trials[number]
                    if past.asked is not None:
                        past.began = past.began if past.taken else now
                        past.since, past.asked, past.taken = now, None, True
            case "epoch":
                row = dict(event["row"])
                past = self.trials[row["number"]]
                if lacking := {"epoch", "status", "done"} - row.keys():
                    raise KeyError(min(lacking))
                if event.get("stop"):
                    row["done"] = True
                past.rows.append((now, row))
                self.rows.append((event["row"], bool(event.get("stop"))))
                for one in map(self.trials.__getitem__, past.together):
                    if one.asked is not None:
                        one.since, one.asked, one.taken = one.asked, None, True
                # The first line of a result counts for all that the result is of.
                count(self.trials, past.together, now - compiling(row), now)
                if row["done"]:
                    past.since = None
            case "ended":
                end = TrialEnd(**event["end"])
                past = self.trials.setdefault(end.number, Past(end.number, end.params, now))
                past.end, past.ended = end, now
            case "died":
                self._leave(event["numbers"], now)
            case "closed":
                self._leave(self.trials, now)
            case unknown:
                raise ValueError(f"no line is called {unknown!r}")

    def _leave(self, numbers: Iterable[int], now: float) -> None:
        """Nobody has these from now on, and nobody waits for a worker."""
        count(self.trials, numbers, now, None)
        for number in numbers:
            self.trials[number].asked = None


class Journal:
    """Writes the journal of a search folder; opening an old one continues it. One process at a time.

    Raises StorageError for a journal of a newer program, or one that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / JOURNAL
        self.history = read_journal(folder)
        # Unbuffered: each line is one write(), which survives this process being killed.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        cut_torn_line(path)
        self._add("search", schema=SCHEMA, program=f"xlstm_tune {__version__}")

    def began(self, numbers: Sequence[int], params: Sequence[Params]) -> None:
        """A worker is to be given these configurations."""
        self._add("began", numbers=list(numbers), params=list(params))

    def took(self, numbers: Sequence[int]) -> None:
        """The worker of these configurations is there."""
        self._add("took", numbers=list(numbers))

    def epoch(self, row: Mapping[str, Any], stop: bool) -> None:
        """A configuration finished an epoch, or failed in it. stop: the scheduler ends it."""
        self._add("epoch", row=dict(row), **({"stop": True} if stop else {}))

    def ended(self, end: TrialEnd) -> None:
        """A configuration has ended. On the disk when this returns, unless it repeats another one."""
        self._add("ended", end=asdict(end))
        if end.status != "duplicate":
            os.fsync(self._file)

    def died(self, numbers: Sequence[int], why: str) -> None:
        """The worker of these configurations was lost."""
        self._add("died", numbers=list(numbers), why=why)

    def closed(self, reason: str) -> None:
        """The driver stops."""
        self._add("closed", reason=reason)
        os.fsync(self._file)

    def close(self) -> None:
        """Give the file up."""
        os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles whatever holds a journal, and never needs the copy."""
        return {}

    def _add(self, event: str, **fields: Any) -> None:
        line = json.dumps({"e": event, "t": round(time.time(), 3), **fields}, default=_plain) + "\n"
        append_line(self._file, line.encode())


def read_journal(folder: Path) -> History:
    """The journal of a search folder; empty where there is none. Half a last line is left out.

    Raises StorageError when it was written by a newer program or is damaged.
    """
    path, history = folder / JOURNAL, History()
    with reaching(path, StorageError):
        if not path.exists():
            return history
        *lines, _ = path.read_bytes().split(b"\n")  # behind the last one stands nothing, or half a line
    damaged, why = [], ""
    for place, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if event["e"] == "search" and event["schema"] > SCHEMA:
                raise StorageError(
                    f"{path} was written by {event['program']} (journal version {event['schema']}, known here up to "
                    f"{SCHEMA}); go on with the program that wrote it"
                )
            history.add(event)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, StorageError):
                raise
            damaged.append(f"{place}")
            why = why or f"{type(error).__name__}: {error}"
    if len(damaged) == 1:
        raise StorageError(
            f"line {damaged[0]} of {path} is damaged ({why}); remove that line to go on without what it says"
        )
    if damaged:  # what stands on a damaged line is missed by those that go on from there
        others = f" and {len(damaged) - MOST_NAMED:,} more" if len(damaged) > MOST_NAMED else ""
        raise StorageError(
            f"lines {', '.join(damaged[:MOST_NAMED])}{others} of {path} are damaged, or go on from one that is (the "
            f"first: {why}); remove those lines to go on without what they say"
        )
    return history


def _plain(value: Any) -> Any:
    """numpy scalars as Python's."""
    return value.item() if hasattr(value, "item") else str(value)
