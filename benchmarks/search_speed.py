"""A whole search of xLSTM forecasters, here and by neuralforecast's AutoxLSTM, on the same rows and windows.

    make peers                                         once: neuralforecast in an environment of its own
    python benchmarks/search_speed.py                  16 trials on each side, about 20 minutes on two cores
    python benchmarks/search_speed.py --peer-trials 4  fewer on the slow side; --write: results/search_speed.md

ETTh1's oil temperature (OT), 96 hours to 24. Both sides train 16 models for 50 steps of 128 windows each, drawn from
the same space: two mLSTM blocks of width 32 or 64 with dropout 0.1, learning rate 1e-4 to 1e-2 (logarithmic), three
ways to scale a window; MAE is what they minimise and what decides. Each side's head is its own: there one of the last
24 hidden states for each hour ahead, here the last one for all, with or without a linear map of the window's trend and
remainder beside it, which is searched too. The training part is the 6400 windows before the
validation part of the literature, so that 50 steps are one epoch here; there each step draws its windows anew. Both
judge each trial by all 2857 validation windows, once, at its end. What is no dimension is each side's default, the
number of trials at a time and of threads included: here two of one thread, there one trial on all processors
(`--peer-cpus 1` gives it two at a time).

Trials per hour are counted over three spans:

* the trials: first trial's start to last one's end;
* the search: first trial's start to the return of the search, with the test figures of the winner and all records
  here, with the best model's second training there (it keeps no weights);
* the program: from starting the interpreter. A search of one trial before it has compiled the kernels here.

Validation errors are those of the best model on the 2857 windows, in °C. Exit code 1 when the target, 10 times the
trials per hour of a whole search at no larger validation MAE, is missed.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from etth1 import DEFAULT, MISSING, TEST, TRAIN, VALIDATION
from machine import describe, write_results
from peers import MISSING as NO_PEERS
from peers import peers_python

LOOKBACK, HORIZON = 96, 24
WINDOWS = 128
WIDTHS = [32, 64]
LEARNING_RATES = [1e-4, 1e-2]
"""neuralforecast's own space goes up to 1e-1, where many of its trials end early with a loss that is NaN."""
TARGET = 10.0
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Found:
    """One side's search. Moments are seconds since 1970."""

    trials: int
    """Completed."""
    failed: int
    started: float
    """The interpreter."""
    first: float
    last: float
    returned: float
    mae: float
    rmse: float
    winner: str
    seconds: list[float]
    """Of each trial."""

    def per_hour(self, span: str) -> float:
        """Trials per hour over `trials`, `search` or `program`."""
        since = self.started if span == "program" else self.first
        until = self.last if span == "trials" else self.returned
        return 3600 * self.trials / (until - since)


def cut(source: Path, steps: int, folder: Path) -> tuple[Path, Path]:
    """OT of the rows that make `steps` × 128 training windows, of validation and of test, as each side reads it.

    neuralforecast gets no test rows: it would hold them out, and nothing is asked of them.
    """
    before = LOOKBACK + HORIZON - 1 + WINDOWS * steps
    if before > TRAIN:
        raise typer.BadParameter(f"ETTh1's training part has no {steps} batches of {WINDOWS} windows")
    with source.open(newline="") as file:
        rows = [(row["date"], row["OT"]) for row in csv.DictReader(file)]
    until = TRAIN + VALIDATION
    here, there = folder / "here.csv", folder / "there.csv"
    here.write_text("\n".join(["date,OT", *(",".join(row) for row in rows[TRAIN - before : until + TEST])]) + "\n")
    lines = [",".join(("OT", *row)) for row in rows[TRAIN - before : until]]
    there.write_text("\n".join(["unique_id,ds,y", *lines]) + "\n")
    return here, there


def search_here(table: Path, trials: int, steps: int, folder: Path) -> Found:
    """Run the command that a user would, on a search file that is written for it."""
    file = folder / "search.yaml"
    spec = {
        "name": "search-speed",
        "data": {
            "source": str(table),
            "time": {"column": "date"},
            "target": "OT",
            "lookback": LOOKBACK,
            "horizon": HORIZON,
            "split": {"validation": VALIDATION, "test": TEST},
        },
        "search": {"objective": "val_mae", "algorithm": "tpe", "scheduler": "none", "trials": trials, "seed": 1},
        "space": {
            "model.hidden_size": {"choice": WIDTHS},
            "model.instance_norm": {"choice": ["none", "last", "reversible"]},
            "model.decomposition": {"choice": ["none", "trend"]},
            "training.learning_rate": {"log_float": LEARNING_RATES},
        },
        "model": {"family": "mlstm", "layers": 2, "dropout": 0.1},
        "training": {"epochs": 1, "batch_size": WINDOWS, "loss": "mae"},
    }
    file.write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "xlstm_tune.search", str(file), "--storage", str(folder / "searches")]
    # The first search after an installation compiles the kernels, once: 20 seconds that are no search's own.
    _run([*command, "--name", "warm-up", "--trials", "1"])
    started = time.time()
    _run(command)
    returned = time.time()

    from xlstm_tune.results import read

    rows = read(folder / "searches" / "search-speed", "trials").to_pylist()
    completed = [row for row in rows if row["status"] == "completed"]
    best = min(completed, key=lambda row: row["val_mae"])
    return Found(
        trials=len(completed),
        failed=len(rows) - len(completed),
        started=started,
        first=min(row["started"] for row in rows).timestamp(),
        last=max(row["ended"] for row in rows).timestamp(),
        returned=returned,
        mae=best["val_mae"],
        rmse=best["val_rmse"],
        winner=best["name"],
        seconds=[(row["ended"] - row["started"]).total_seconds() for row in completed],
    )


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, cwd=HERE.parent, env=environment(), capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"our search ended with exit code {finished.returncode}:\n{finished.stderr[-4000:]}")


def search_there(python: Path, table: Path, trials: int, steps: int, cpus: int, folder: Path) -> Found:
    """Run peer_search.py in the peers' environment."""
    request, answer = folder / "request.json", folder / "answer.json"
    asked: dict[str, Any] = {
        "table": str(table),
        "validation": VALIDATION,
        "input_size": LOOKBACK,
        "horizon": HORIZON,
        "trials": trials,
        "steps": steps,
        "windows": WINDOWS,
        "widths": WIDTHS,
        "blocks": 2,
        "dropout": 0.1,
        "learning_rates": LEARNING_RATES,
        "cpus": cpus,
        "seed": 1,
        "folder": str(folder / "ray"),
    }
    request.write_text(json.dumps(asked))
    started = time.time()
    command = [str(python), str(HERE / "peer_search.py"), str(request), str(answer)]
    finished = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"AutoxLSTM ended with exit code {finished.returncode}:\n{finished.stderr[-4000:]}")
    found = json.loads(answer.read_text())
    best = found["best"]
    scaler = best["scaler_type"] or "no scaling"
    return Found(
        trials=len(found["trials"]),
        failed=found["failed"],
        started=started,
        first=found["first"],
        last=found["last"],
        returned=found["returned"],
        mae=found["mae"],
        rmse=found["rmse"],
        winner=f"mlstm×2 · {best['encoder_hidden_size']} · lr {best['learning_rate']:.1e} · {scaler}",
        seconds=[trial["seconds"] for trial in found["trials"]],
    )


def environment() -> dict[str, str]:
    """Of both sides: no GPU, no statistics servers, this checkout; the numbers of threads are the sides' own affair."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parent)} | quiet


def table(ours: Found, theirs: Found | None) -> list[str]:
    """Lines of Markdown."""

    def row(name: str, value: Callable[[Found], float], form: str, more_is_better: bool) -> str:
        mine = value(ours)
        if theirs is None:
            return f"| {name} | {mine:{form}} | – | – |"
        other = value(theirs)
        ratio = f"{mine / other:.1f}" if more_is_better else f"{other / mine:.2f}"
        return f"| {name} | {mine:{form}} | {other:{form}} | {ratio}× |"

    return [
        "| | xlstm_tune | AutoxLSTM | ratio |",
        "|---|--:|--:|--:|",
        f"| trials completed | {ours.trials} | {'–' if theirs is None else theirs.trials} | |",
        f"| trials failed | {ours.failed} | {'–' if theirs is None else theirs.failed} | |",
        row("trials per hour, trials alone", lambda side: side.per_hour("trials"), ",.0f", True),
        row("trials per hour, whole search", lambda side: side.per_hour("search"), ",.0f", True),
        row("trials per hour, whole program", lambda side: side.per_hour("program"), ",.0f", True),
        row("seconds of a trial", lambda side: sum(side.seconds) / len(side.seconds), ".1f", False),
        row("validation MAE of the best, °C", lambda side: side.mae, ".4f", False),
        row("validation RMSE of the best, °C", lambda side: side.rmse, ".4f", False),
        f"| the best | {ours.winner} | {'–' if theirs is None else theirs.winner} | |",
    ]


def main(
    trials: Annotated[int, typer.Option(min=1, help="Of xlstm_tune.")] = 16,
    peer_trials: Annotated[int | None, typer.Option(min=1, help="Of AutoxLSTM. None: as many.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a trial, at most 66.")] = 50,
    peer_cpus: Annotated[
        int | None, typer.Option(min=1, help="Of one AutoxLSTM trial. None: its default, all.")
    ] = None,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Measure xlstm_tune alone.")] = False,
    etth1: Annotated[Path, typer.Option(help="Where ETTh1.csv lies.")] = DEFAULT,
    write: Annotated[bool, typer.Option("--write", help="Write the table to results/search_speed.md.")] = False,
) -> None:
    """Time a whole search on both sides."""
    if not etth1.is_file():
        print(MISSING.format(path=etth1))
        raise SystemExit(2)
    python = None if no_peers else peers_python()
    if python is None and not no_peers:
        print(NO_PEERS)
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="search-speed-") as scratch:
        folder = Path(scratch)
        here, there = cut(etth1, steps, folder)
        ours = search_here(here, trials, steps, folder)
        print(f"xlstm_tune: {trials} trials in {ours.returned - ours.started:.0f} s", flush=True)
        theirs = None
        if python is not None:
            count, cpus = peer_trials or trials, peer_cpus or os.cpu_count() or 1
            theirs = search_there(python, there, count, steps, cpus, folder)
            print(f"AutoxLSTM: {count} trials in {theirs.returned - theirs.started:.0f} s", flush=True)
    lines = table(ours, theirs)
    print(*lines, sep="\n")
    if write:
        print(f"Written to {write_results('search_speed', [describe(('torch', 'ray', 'optuna')) + '.', '', *lines])}.")
    if theirs is None:
        raise SystemExit(0)
    ratio = ours.per_hour("search") / theirs.per_hour("search")
    met = ratio >= TARGET and ours.mae <= theirs.mae
    print(f"Target, {TARGET:.0f}× the trials per hour at no larger MAE: {'met' if met else 'MISSED'} ({ratio:.1f}×).")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    typer.run(main)
