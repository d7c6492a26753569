"""A soak: one search whose driver and workers are killed again and again, until it is done.

    python benchmarks/chaos.py                      60 trials, 40 SIGKILLs, half of them to the driver
    python benchmarks/chaos.py --seed 7 --write     other moments; also writes results/chaos.md

The search is a grid of small LSTMs and sLSTMs under ASHA on a sine wave, with Ray, Optuna's journal, Parquet and
MLflow's database. A killed driver is followed by `--resume`. At the end, exit code 1 unless

* each of the 60 trials is once in Parquet, once in Optuna, once in MLflow, with the same status and value;
* every epoch of a trial is recorded once;
* an undisturbed scheduler that is shown the recorded results in their order takes the recorded decisions.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from machine import describe, write_results

NAME = "soak"
SPEC: dict[str, Any] = {
    "name": NAME,
    "search": {
        "algorithm": "grid",
        "scheduler": "asha",
        "grace_epochs": 10,
        "reduction_factor": 2,
        "start_with": "none",
        "fuse": "off",
    },
    "space": {
        "model.family": {"choice": ["lstm", "slstm"]},
        "model.hidden_size": {"choice": [4, 8]},
        "model.dropout": {"choice": [0.0, 0.1, 0.2]},
        "training.learning_rate": {"choice": [0.001, 0.002, 0.005, 0.01, 0.02]},
    },
    "model": {"layers": 2, "heads": 2},
    "training": {"epochs": 100, "batch_size": 32},
}


def write_search(folder: Path) -> Path:
    """The search file and its data."""
    values = np.sin(np.arange(600) / 8) * 10 + np.random.default_rng(0).normal(size=600)
    (folder / "wave.csv").write_text("y\n" + "\n".join(f"{value:.4f}" for value in values) + "\n")
    data = {"source": str(folder / "wave.csv"), "target": "y", "lookback": 16, "horizon": 3}
    file = folder / f"{NAME}.yaml"
    file.write_text(yaml.safe_dump(SPEC | {"data": data}))
    return file


class Soak:
    """The search's processes. folder: of the search file and the searches."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.search = folder, folder / "searches" / NAME
        self.log = (folder / "output.txt").open("ab")
        self.driver = self._start(str(write_search(folder)))

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "xlstm_tune.search", *arguments, "--storage", str(self.search.parent)]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)

    def done(self) -> bool:
        """Whether the driver has ended by itself."""
        return self.driver.poll() is not None

    def epochs(self) -> int:
        """Results on record."""
        path = self.search / "search.journal"
        return path.read_bytes().count(b'"e": "epoch"') if path.exists() else 0

    def worker(self) -> int | None:
        """A process that this driver's search trains in; None when there is none at the moment."""
        path = self.search / "search.journal"
        for line in reversed(path.read_text().splitlines()[-20:]):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["e"] == "search":
                return None
            if event["e"] == "epoch" and event["row"]["status"] == "running":
                return int(event["row"]["worker"].split()[1])
        return None

    def kill_driver(self) -> None:
        """SIGKILL, and the command that goes on; with a new start where the old one had not begun yet."""
        self.driver.kill()
        self.driver.wait()
        self.driver = (
            self._start("--resume", NAME) if self.search.exists() else self._start(str(write_search(self.folder)))
        )


def soak(run: Soak, kills: int, luck: random.Random) -> Counter[str]:
    """Kill until enough; how often whom."""
    done: Counter[str] = Counter()
    victims = ["driver"] * (kills // 2) + ["worker"] * (kills - kills // 2)
    luck.shuffle(victims)
    for victim in victims:
        # A moment at random: after some results more, or, one time in four, while the driver is starting up.
        if victim == "driver" and luck.random() < 0.25:
            wait_for(run, lambda: False, luck.uniform(0.5, 12))
        else:
            wanted = run.epochs() + luck.randint(1, 60)
            wait_for(run, lambda wanted=wanted: run.epochs() >= wanted, 120)  # type: ignore[misc]
        if run.done():
            break
        if victim == "driver":
            run.kill_driver()
            done[victim] += 1
        elif (process := run.worker()) is not None:
            try:
                os.kill(process, signal.SIGKILL)
                done[victim] += 1
            except ProcessLookupError:
                done["gone"] += 1
        else:
            done["gone"] += 1
    return done


def wait_for(run: Soak, condition: Any, seconds: float) -> None:
    """Until the condition holds, the search has ended, or the time is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not run.done() and not condition():
        time.sleep(0.05)


def problems_of(search: Path) -> tuple[list[str], dict[str, int]]:
    """What does not hold at the end, and figures."""
    import mlflow
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from xlstm_tune.results import read
    from xlstm_tune.search.persistence.journal import read_journal
    from xlstm_tune.search.scheduling.schedulers import make_scheduler
    from xlstm_tune.search_file import load_spec

    problems: list[str] = []
    trials = read(search, "trials").to_pylist()
    epochs = Counter((row["trial"], row["epoch"]) for row in read(search, "epochs").to_pylist())
    by_number = {row["trial"]: row for row in trials}
    storage = JournalStorage(JournalFileBackend(str(search / "optuna.journal")))
    study = {trial.number: trial for trial in optuna.load_study(study_name=NAME, storage=storage).trials}
    client = mlflow.MlflowClient(f"sqlite:///{search.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("xlstm_tune")
    runs = [
        run
        for run in client.search_runs([experiment.experiment_id], max_results=5000)
        if "xlstm_tune.trial" in run.data.tags
    ]
    numbers = sorted(int(run.data.tags["xlstm_tune.trial"]) for run in runs)
    keys = Counter(row["config"] for row in trials)
    if not (len(trials) == len(by_number) == len(keys) and sorted(by_number) == sorted(study) == numbers):
        problems.append(
            f"{len(trials)} rows, {len(study)} Optuna trials, {len(numbers)} MLflow runs, {len(keys)} configs"
        )
    states = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    for run in runs:
        number = int(run.data.tags["xlstm_tune.trial"])
        if number not in by_number:
            problems.append(f"trial {number} has a run in MLflow and no row")
            continue
        row, curve = by_number[number], client.get_metric_history(run.info.run_id, "val_rmse")
        if study[number].state.name != states[row["status"]]:
            problems.append(f"trial {number} is {row['status']}, and {study[number].state.name} in Optuna")
        if sorted(point.step for point in curve) != list(range(1, row["epochs"] + 1)):
            problems.append(f"trial {number}'s curve has other steps than its {row['epochs']} epochs")
        if row["status"] == "failed":
            problems.append(f"trial {number} failed: {row['reason']}")
    if (twice := [key for key, count in epochs.items() if count > 1]) or sum(epochs.values()) != sum(
        row["epochs"] for row in trials
    ):
        problems.append(f"epochs recorded twice or not at all: {twice[:5]}")

    spec = load_spec(str(search / "spec.yaml"))
    scheduler = make_scheduler(spec.search, spec.max_epochs())
    differing, decisions = judged_again(search / "search.journal", scheduler)
    problems += differing
    history = read_journal(search)
    figures = {
        "trials": len(trials),
        "decisions": decisions,
        "pruned": sum(row["status"] == "pruned" for row in trials),
        "epochs": sum(epochs.values()),
        "results": len(history.rows),
    }
    return problems, figures


def judged_again(journal: Path, scheduler: Any) -> tuple[list[str], int]:
    """Decisions that an undisturbed scheduler takes otherwise, and how many it took."""

    class One:
        """What a scheduler looks at of a trial."""

        def __init__(self, number: int) -> None:
            self.trial_id = str(number)

    known: dict[int, One] = {}
    differing, decisions = [], 0
    for line in journal.read_text().splitlines():
        event = json.loads(line)
        if event["e"] != "epoch":
            continue
        row = event["row"]
        if row["number"] not in known:
            known[row["number"]] = One(row["number"])
            scheduler.on_trial_add(None, known[row["number"]])
        one = known[row["number"]]
        stop = not row["done"] and scheduler.on_trial_result(None, one, row) == "STOP"
        decisions += 1
        if stop != bool(event.get("stop")):
            differing.append(
                f"trial {row['number']} in epoch {row['epoch']}: {stop} undisturbed, {event.get('stop')} here"
            )
        if stop or row["done"]:
            scheduler.on_trial_complete(None, one, row)
    return differing, decisions


def main(
    kills: Annotated[int, typer.Option(help="SIGKILLs, half of them to the driver.")] = 40,
    seed: Annotated[int, typer.Option(help="Decides whom and when.")] = 0,
    write: Annotated[bool, typer.Option("--write", help="Also write results/chaos.md.")] = False,
) -> None:
    """See the module's text."""
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        run = Soak(Path(place))
        done = soak(run, kills, random.Random(seed))
        code = run.driver.wait(1800)
        seconds = time.monotonic() - began
        problems, figures = problems_of(run.search)
        if code:
            problems.append(f"the last driver ended with {code}: {(Path(place) / 'output.txt').read_text()[-2000:]}")
    lines = [
        f"Seed {seed}: {done['driver']} SIGKILLs to the driver and {done['worker']} to workers"
        + (f" ({done['gone']} came too late to hit anybody)" if done["gone"] else "")
        + f" in {seconds:.0f} s.",
        "",
        f"{figures['trials']} trials, {figures['pruned']} of them pruned, {figures['epochs']} epochs on record; "
        f"{figures['decisions']} decisions shown to an undisturbed scheduler again.",
        "",
        *(["What does not hold:", *(f"* {problem}" for problem in problems)] if problems else ["Everything holds."]),
    ]
    print("\n".join(lines))
    if write:
        write_results("chaos", [describe(), "", *lines])
    raise typer.Exit(1 if problems else 0)


if __name__ == "__main__":
    typer.run(main)
