"""Whole searches in processes of their own, what is done to them, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from commands import Command
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tracked import ROOT, give_database
from typer.testing import CliRunner

from xlstm_tune.results import read
from xlstm_tune.search.__main__ import app
from xlstm_tune.search.persistence.journal import read_journal

NAME = "wave"
SAME = ("train_loss", "val_rmse", "val_mae", "val_mse_standardised", "val_mae_standardised", "learning_rate")
"""Figures of an epoch that a fault may not change by a bit."""


BY_HAND = """
import signal, sys
from pathlib import Path
from xlstm_tune.search.persistence.lock import locked
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children begin deaf to it
with locked(Path(sys.argv[1])):
    try:
        print("up", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
"""


@contextmanager
def by_hand(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver that holds the search's lock and ends in order when it is stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").touch()
    with subprocess.Popen([sys.executable, "-c", BY_HAND, str(folder)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


def write_search(folder: Path, **sections: Any) -> Path:
    """A search file for a sine wave with noise; `sections` replaces keys of it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.sin(np.arange(400) / 8) * 10 + np.random.default_rng(0).normal(size=400)
    (folder / "wave.csv").write_text("y\n" + "\n".join(f"{value:.4f}" for value in values) + "\n")
    spec: dict[str, Any] = {
        "name": NAME,
        "data": {"source": str(folder / "wave.csv"), "target": "y", "lookback": 12, "horizon": 3},
        "search": {"algorithm": "grid", "scheduler": "none", "start_with": "none", "fuse": "off"},
        "space": {
            "model.family": {"choice": ["lstm", "slstm"]},
            "training.learning_rate": {"choice": [0.003, 0.01]},
        },
        "model": {"hidden_size": 8, "heads": 2, "layers": 1, "dropout": 0.1},
        "training": {"epochs": 30, "batch_size": 32},
    }
    for name, section in sections.items():
        spec[name] = {**spec.get(name, {}), **section} if name != "space" else section
    file = folder / "wave.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


class Search:
    """One search, run by one process after another. storage: the folder of searches."""

    def __init__(self, storage: Path, uri: str | None = None, **environment: str) -> None:
        """uri: of the MLflow store; None = a database in the storage folder, which is there already."""
        self.storage, self.folder = storage, storage / NAME
        self._environment = {"PYTHONPATH": str(ROOT)} | environment
        self._always = ["--storage", str(storage), *(["--tracking-uri", uri] if uri else [])]
        self.process: Command | None = None
        if uri is None:
            give_database(storage)

    def start(self, *arguments: str) -> None:
        """Run the command and do not wait."""
        self.process = Command([*arguments, *self._always], self.storage.parent, self._environment)

    def end(self, code: int = 0, seconds: float = 240) -> str:
        """Wait for the command; what it printed. Nothing may have been said on stderr, but for a sentence with 2."""
        assert self.process is not None
        output, errors = self.process.communicate(seconds)
        assert self.process.poll() == code, f"exit code {self.process.poll()}: {output}{errors}"
        assert "Traceback" not in errors and (code == 2 or not errors.strip()), errors
        return output + errors

    def run(self, *arguments: str) -> str:
        """Run the command to its end in this process, which has imported torch, Ray and MLflow already."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            result = CliRunner().invoke(app, [*arguments, *self._always])
        assert result.exit_code == 0, result.output
        assert not result.stderr.strip(), result.stderr
        return result.output

    def send(self, number: signal.Signals) -> None:
        """A signal to the driver."""
        assert self.process is not None
        self.process.send_signal(number)

    def send_to_all(self, number: signal.Signals, of: str = "") -> None:
        """A signal to the driver and to every process that descends from it, as Slurm and systemd send it, the last
        ones first. of: only to those whose program has this name."""
        assert self.process is not None
        parents, programs = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                command, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
                programs[int(folder.name)] = Path(os.fsdecode(command.partition(b"\0")[0])).name
                parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
        family = [self.process.pid]
        for one in family:  # which grows
            family.extend(pid for pid, parent in parents.items() if parent == one)
        for pid in reversed(family):
            if of in ("", programs.get(pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to the driver, and to nobody else; returns when the workers that it leaves have gone too."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        before: list[Path] = []
        while (now := sorted(self.folder.glob("trials/*/checkpoints/**/*"))) != before:
            before = now
            time.sleep(3)

    def epochs(self, number: int | None = None) -> int:
        """Epochs that the journal holds, of one configuration or of all."""
        past = read_journal(self.folder).trials if self.folder.exists() else {}
        return sum(len(one.rows) for one in past.values() if number in (None, one.number))

    def until(self, condition: Callable[[], Any], seconds: float = 240.0) -> Any:
        """What the condition says once that is true, while the search runs."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the search has ended: {self.process.communicate()}")
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.02)
        return answer

    def worker(self, number: int, after: int = 0) -> int:
        """The process that trains a configuration, once it has reported an epoch later than `after`."""
        return int(self.until(lambda: self._worker(number, after)))

    def _worker(self, number: int, after: int = 0) -> int | None:
        past = read_journal(self.folder).trials.get(number) if self.folder.exists() else None
        rows = [row for _, row in past.rows if row["epoch"] > after] if past else []
        return int(rows[-1]["worker"].split()[1]) if rows else None

    def send_to_workers(self, signals: Mapping[int, signal.Signals]) -> None:
        """To the process that trains each configuration, as soon as it has reported an epoch, in whatever order."""
        left = dict(signals)

        def sent() -> bool:
            for number in list(left):
                if (process := self._worker(number)) is not None:
                    os.kill(process, left.pop(number))
            return not left

        self.until(sent)


def trials_of(folder: Path) -> dict[int, dict[str, Any]]:
    """The trials table by number."""
    rows = read(folder, "trials").to_pylist()
    assert len({row["trial"] for row in rows}) == len(rows)
    return {row["trial"]: row for row in rows}


def epochs_of(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The epochs table by trial and epoch."""
    rows = read(folder, "epochs").to_pylist()
    found = {(row["trial"], row["epoch"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def study_of(folder: Path) -> dict[int, optuna.trial.FrozenTrial]:
    """Optuna's trials by number."""
    study = optuna.load_study(
        study_name=NAME, storage=JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    )
    return {trial.number: trial for trial in study.trials}


def runs_of(folder: Path, uri: str | None = None) -> dict[int, Any]:
    """MLflow's child runs by trial, each with its curve, (step, val_rmse), and the names of its files."""
    import mlflow

    client = mlflow.MlflowClient(uri or f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    search = json.loads((folder / "mlflow" / "spool.json").read_text())["search"]
    runs = client.search_runs(experiments, f"tags.`xlstm_tune.search` = '{search}'", max_results=5000)
    children: dict[int, Any] = {}
    for run in runs:
        if (trial := run.data.tags.get("xlstm_tune.trial")) is not None:
            assert int(trial) not in children, f"two runs of trial {trial}"
            curve = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "val_rmse")]
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            children[int(trial)] = (run, sorted(curve), files)
    assert len(runs) == len(children) + 1, "one parent"
    return children


STATES = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
RUNS = {"completed": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def check_accounted(folder: Path, undisturbed: Path, but: int | None = None, uri: str | None = None) -> None:
    """Every trial once in Parquet, Optuna and MLflow, with the figures of the search without the fault, to the bit.

    but: a trial that has other figures, because it failed. uri: as for `runs_of`.
    """
    trials, epochs, study, runs = trials_of(folder), epochs_of(folder), study_of(folder), runs_of(folder, uri)
    wanted, wanted_epochs = trials_of(undisturbed), epochs_of(undisturbed)
    assert sorted(trials) == sorted(study) == sorted(runs) == sorted(wanted)
    assert sorted(epochs) == sorted(key for key in wanted_epochs if key[0] != but)
    for key, row in epochs.items():
        for name in SAME:
            assert row[name] == wanted_epochs[key][name], (key, name)
    for number, row in trials.items():
        if number == but:
            continue
        assert (row["status"], row["epochs"]) == (wanted[number]["status"], wanted[number]["epochs"]), row
        assert json.loads(row["params"]) == json.loads(wanted[number]["params"])
        assert study[number].state.name == STATES[row["status"]]
        run, curve, files = runs[number]
        assert run.info.status == RUNS[row["status"]]
        title = f"{number}: {row['name']}"
        assert row["members"] or run.info.run_name == title, "a population's row has its best member's name"
        assert {"config.json", "weights.safetensors"} <= files
        assert curve == sorted((epoch, one["val_rmse"]) for (trial, epoch), one in epochs.items() if trial == number)
        if row["status"] == "completed":
            assert study[number].value == row["val_rmse"] == run.data.metrics["best_val_rmse"]
            assert sorted(study[number].intermediate_values) == [step for step, _ in curve]
