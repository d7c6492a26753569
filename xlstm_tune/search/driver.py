"""The driver's side of every trial: what Ray and the searcher say becomes tables, MLflow events and progress.

Nothing here waits for a network or a disk longer than an append: an epoch costs microseconds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from ray import tune

from xlstm_tune.errors import SpecError
from xlstm_tune.ranking import METRICS, has_score
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.persistence.folder import CONFIG, HUNG, WEIGHTS, trial_folder
from xlstm_tune.search.persistence.journal import History, Journal
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.population_records import (
    member_curves,
    member_rows,
    trial_params,
    trial_title,
    winner_tags,
)
from xlstm_tune.search.progress import Progress
from xlstm_tune.search.sampling.duplicates import TrialEnd, never_begun
from xlstm_tune.search.sampling.population import trial_members
from xlstm_tune.search.stopping import CUTS
from xlstm_tune.search.worker_time import WorkerTime, compiling, count
from xlstm_tune.spec import SearchSpec
from xlstm_tune.tracking import VALIDATION_END, Spool
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.members import Member

CURVES = ("train_loss", *(f"val_{name}" for name in METRICS), "learning_rate", "sequences_per_s")
"""Figures of an epoch that are drawn as curves."""
LAST = (
    *("best_epoch", "parameters", "sequences_per_s", "peak_memory_mib", "latency_ms"),
    *("micro_batch", "members_at_once", "backend"),
)
"""Columns of the trials table that the last epoch's result fills."""


SETTLE_SECONDS = 60.0
"""How long the end of the trials waits for their last files, where these come from elsewhere."""
FILES = (CONFIG, WEIGHTS, VALIDATION_END, "error.txt", HUNG)
"""Of a trial's folder, which its MLflow run gets where they exist."""


class Driver(tune.Callback):  # type: ignore[misc]
    """Tune's callback and the searcher's `on_end` in one; a trial's row is written once both have spoken.

    A Ray trial may train several configurations; to everything written here each is a trial, by its number.
    """

    def __init__(
        self,
        spec: SearchSpec,
        store: Shared,
        results: ResultsWriter,
        spool: Spool,
        progress: Progress,
        journal: Journal | None = None,
    ) -> None:
        """journal: which is told when workers have come; None = nobody goes on with this search."""
        self._journal = journal
        self._spec, self._store, self._folder = spec, store, store.folder
        self._results, self._spool, self._progress = results, spool, progress
        self._ends: dict[int, TrialEnd] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._begun: set[int] = set()
        """Those that this driver has given to a worker, and that have not ended."""
        self._times: dict[int, WorkerTime] = {}
        """Of those that a worker was given and whose row is not written."""
        self._first: dict[int, float] = {}
        """When it was first given to one, by whatever driver."""
        self._compiled: dict[int, float] = {}
        """Seconds that its worker has spent on compiling kernels, which is done once and no cost of the trial."""
        self._members: dict[int, list[Member]] = {}
        self._cut: dict[int, dict[str, Any]] = {}
        """Rows of those that an earlier driver wrote down as cut short."""
        self._told: set[int] = set()
        """Those that have a run in MLflow of an earlier driver."""
        self._judged: list[dict[str, Any]] = []
        """Keys of what an earlier driver told of finalists: model, trial and part."""
        self._standing: dict[int, list[dict[str, Any]]] = {}
        """What running populations last reported of their members."""
        self._followers: dict[int, list[TrialEnd]] = {}
        """Duplicates that wait for the row of the trial that they repeat."""
        self.rows: dict[int, dict[str, Any]] = {}
        """The trials table so far by number; `params` as a dict."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its Tuner, callbacks included, and never needs the copy: open files stay here."""
        return {}

    def recall(self, history: History) -> None:
        """Take up what an earlier driver did, and make up for what it was killed before it could write."""
        told, written = self._spool.known(), set(_keys(read(self._folder, "epochs"), "trial", "epoch"))
        self._told = {number for number in told if number is not None}
        for row in read(self._folder, "trials").to_pylist():
            setting = json.loads(row["setting"]) if row["setting"] else None
            self.rows[row["trial"]] = {**row, "params": json.loads(row["params"]), "setting": setting}
            if row["reason"] in CUTS:
                self._cut[row["trial"]] = row
            if has_score(row, objective := self._spec.search.objective):
                self._progress.scored(row["trial"], row["name"], row[objective], row["std_error"])
        keys = _keys(read(self._folder, "scores"), "model", "trial", "part")
        self._judged = [dict(zip(("model", "trial", "part"), key, strict=True)) for key in keys]
        for number, past in history.trials.items():
            run = told.get(number)
            if self._is_over(number) and run and run.started and run.ended == self.rows[number]["status"]:
                continue
            if past.together:  # a worker was given it, which only a model is
                config = self._spec.resolve(past.params)
                if past.taken or past.end:  # else it was waited for
                    self._first[number] = past.began
                self._times[number] = WorkerTime(together=past.together, spent=past.spent)
                self._members[number] = trial_members(self._spec, config)
                if run is None or not run.started:
                    self._begin_run(number, config)
            for when, row in past.rows:
                if "members" in row:
                    self._standing[number] = row["members"]
                if row["status"] == "failed":
                    continue
                self._last[number] = row
                if (number, row["epoch"]) not in written:
                    self._write_epoch(number, row, when)
                if run is None or row["epoch"] > run.step:
                    self._spool_epoch(number, row, when)
            if past.end is not None:
                self.rows.pop(number, None)
                self._write(past.end, past.ended)
        ends = ((row["status"], row["reason"]) for row in self.rows.values())
        self._progress.recall(_counted(status, reason) for status, reason in ends if reason not in CUTS)

    def _is_over(self, number: int) -> bool:
        """Whether its row is written, and was not cut short."""
        return number in self.rows and self.rows[number]["reason"] not in CUTS

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker took the trial."""
        if self._journal is not None:
            self._journal.took(_numbers(trial))
        for one in trial.config["trials"]:
            mine = self._times.setdefault(one["number"], WorkerTime())
            mine.together, mine.since = _numbers(trial), time.time()
            if one["number"] not in self._begun:  # else it goes on with another worker
                self._first.setdefault(one["number"], mine.since)
                self._start(one["number"], self._spec.resolve(one["params"]))

    def _start(self, number: int, config: TrialConfig) -> None:
        self._begun.add(number)
        self._members[number] = trial_members(self._spec, config)
        runs = [member.config for member in self._members[number]] or [config]
        epochs = max(run.training.epochs for run in runs)
        self._progress.started(number, trial_title(self._spec, config), epochs)
        self._begin_run(number, config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial finished an epoch, or says why it cannot."""
        now, rows = time.time(), result["rows"]
        if not rows:  # repeated, which is not written; the next ones tell what of their seconds was compiling
            return
        self._count(_numbers(trial), now - max(map(compiling, rows)), now)
        for row in rows:
            number = row["number"]
            self._compiled[number] = self._compiled.get(number, 0.0) + compiling(row)
            self._progress.compiled(self._compiled[number])
            self._epoch(number, row)
            if row["done"]:
                if number in self._times:
                    self._times[number].since = None
                self._finish(number)

    def _epoch(self, number: int, result: dict[str, Any]) -> None:
        if "members" in result:
            self._standing[number] = result["members"]
        if result.get("status") == "failed" or number not in self._begun:
            return  # no figures, the searcher tells the reason; or a stop that reached the trial an epoch late
        self._last[number] = result
        self._progress.epoch(
            number, result["epoch"], result[f"best_{self._spec.search.objective}"], result.get("std_error")
        )
        now = time.time()
        self._spool_epoch(number, result, now)
        self._write_epoch(number, result, now)

    def _spool_epoch(self, number: int, row: dict[str, Any], now: float) -> None:
        curves = {name: row[name] for name in CURVES}
        members = member_curves(self._members.get(number, []), row, self._spec.search.objective)
        self._spool.epoch(number, row["epoch"], curves | members | row.get("system", {}), now)

    def _write_epoch(self, number: int, row: dict[str, Any], now: float) -> None:
        self._results.epoch(
            {"trial": number, "epoch": row["epoch"], "seconds": row["epoch_seconds"], "timestamp": _moment(now)}
            | {"micro_batch": row["micro_batch"], "std_error": row.get("std_error")}
            | {name: row[name] for name in CURVES}
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or the scheduler stopped it."""
        self._pause(_numbers(trial), time.time())
        for number in _numbers(trial):
            self._finish(number)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's worker died."""
        self.on_trial_complete(iteration, trials, trial)

    def _count(self, numbers: Iterable[int], until: float, then: float | None) -> None:
        """`worker_time.count` of those of these that have not ended."""
        count(self._times, [number for number in numbers if number in self._times], until, then)

    def _pause(self, numbers: Sequence[int], now: float) -> None:
        """Nobody has these from now on."""
        self._count(numbers, now, None)
        for number in numbers:
            self._compiled.pop(number, None)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray comes by ten times a second."""
        self._store.settle()

    def on_end(self, end: TrialEnd) -> None:
        """The searcher's word on how a trial ended; the trial's last epoch reaches this object after it."""
        if self._is_over(end.number):
            return  # known from an earlier driver
        if end.trial_id is not None:
            self._ends[end.number] = end
        elif end.duplicate_of is None or self._is_over(end.duplicate_of):
            self._write(end)
        else:
            # The original has just ended too, and its row is not written yet.
            self._followers.setdefault(end.duplicate_of, []).append(end)

    def close(self) -> bool:
        """Write the trials that ended without Ray's word: cut by a time budget or an interruption.

        Returns whether the files of all trials are here.
        """
        self._pause(list(self._times), time.time())
        for number in sorted(self._ends):
            self._finish(number)
        return self._store.settle(SETTLE_SECONDS)

    def _finish(self, number: int) -> None:
        end = self._ends.pop(number, None)
        if end is None:
            return
        self._write(end)
        for follower in self._followers.pop(number, []):
            self._write(follower)

    def _write(self, end: TrialEnd, ended: float | None = None) -> None:
        """The trial's row, in the tables and on its MLflow run. ended: seconds since 1970; None = now."""
        number = end.number
        try:
            config = self._spec.resolve(end.params)
        except SpecError:
            # A combination that is no model: the searcher refused it, and the reason says why.
            config = None
        now = ended or time.time()
        last, first = self._last.pop(number, {}), self._first.pop(number, None)
        self._begun.discard(number)
        times = self._times.pop(number, WorkerTime())
        together = len(times.together)
        members = self._members.pop(number, None) or (trial_members(self._spec, config) if config else [])
        winner = members[last["winner"]] if "winner" in last and end.status != "failed" else None
        metrics = {f"val_{name}": _finite(last.get(f"best_val_{name}")) for name in METRICS}
        row = {
            "trial": number,
            "name": trial_title(self._spec, config) if config else "no model",
            "status": end.status,
            "reason": end.reason,
            "family": config.model.family if config else end.params.get("model.family", self._spec.model.family),
            "config": config.flat() if config else {},
            "params": end.params,
            "epochs": last.get("epoch", 0),
            **metrics,
            "std_error": last.get("std_error"),
            "members": len(members) or None,
            "fused": together if together > 1 else None,
            "setting": None,
            **{name: last.get(name) for name in LAST},
            "seconds": times.spent,
            "duplicate_of": end.duplicate_of,
            "started": _moment(first or now),
            "ended": _moment(now),
        }
        if winner is not None:
            row |= {"name": self._spec.title(winner.config), "config": winner.config.flat(), "setting": winner.setting}
        if end.duplicate_of is not None:
            # It carries the figures of the trial that it repeats.
            original = self.rows[end.duplicate_of]
            row |= {name: original[name] for name in (*metrics, "std_error", "setting")}
            if original["setting"] is not None:
                row |= {name: original[name] for name in ("name", "config")}
        else:
            standing = self._standing.pop(number, None)
            self._results.members(member_rows(number, members, standing, end.status, end.reason))
        if number in self._cut and any(row[name] != self._cut[number][name] for name in metrics):
            # It went on and is another model now; where it is a finalist again, it will be judged again.
            self._results.scores(key for key in self._judged if key["trial"] == number)
            self._results.forget(number)
        self._results.trial(row)
        self.rows[number] = row
        self._progress.ended_trial(number, None if end.reason in CUTS else _counted(end.status, end.reason))
        if end.reason not in CUTS:
            self._store.drop_checkpoints(trial_folder(self._folder, number))
        if config:
            if first is None:  # a duplicate, or cut before a worker took it
                self._begin_run(number, config)
            self._track(number, row, winner_tags(winner) if winner else {})

    def _begin_run(self, number: int, config: TrialConfig) -> None:
        """The trial's run in MLflow, named with its number, as two trials may differ in nothing that a title says."""
        title, params = trial_title(self._spec, config), trial_params(self._spec, config)
        self._spool.trial_started(number, f"{number}: {title}", params, {"family": config.model.family})

    def _track(self, number: int, row: dict[str, Any], tags: dict[str, str]) -> None:
        """The trial's run in MLflow ends, with its files, when they are here."""
        folder = trial_folder(self._folder, number)
        figures = {f"best_val_{name}": row[f"val_{name}"] for name in METRICS}
        figures[f"best_{self._spec.search.objective}_std_error"] = row["std_error"]
        figures |= {
            name: row[name] for name in ("best_epoch", "parameters", "seconds", "peak_memory_mib", "latency_ms")
        }
        if number in self._told and not row["reason"]:
            tags = tags | {"reason": ""}  # its run may have that of an end before this one
        facts = {name: str(row[name]) for name in ("backend", "micro_batch", "members_at_once", "fused") if row[name]}

        def end() -> None:
            self._spool.trial_ended(
                number,
                row["status"],
                row["reason"] or "",
                metrics={name: float(value) for name, value in figures.items() if value is not None},
                tags=tags | facts,
                artifacts=[path for name in FILES if (path := folder / name).exists()],
            )

        if row["duplicate_of"] is None:
            self._store.ended(folder, end)
        else:
            end()


def _counted(status: str, reason: str | None) -> str:
    """As what the progress counts a trial that has ended."""
    return "refused" if status == "failed" and never_begun(reason) else status


def _numbers(trial: Any) -> list[int]:
    """The configurations of a Ray trial."""
    return [one["number"] for one in trial.config["trials"]]


def _keys(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, row by row."""
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
