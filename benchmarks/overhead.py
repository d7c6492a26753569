"""What the machinery of a search costs per trial beyond the training itself, and what Ray's stock pieces cost.

    python benchmarks/overhead.py                    200 trials on each side, a quarter of an hour
    python benchmarks/overhead.py --stock-trials 40  fewer on the slow side, four minutes
    python benchmarks/overhead.py --no-stock

Both sides train the same trivial models (LSTM of width 2, three epochs of four batches, on a generated CSV table), two
at a time, drawn from the same space by Optuna's TPE, with the same trainable: it reports the same figures and keeps
config and weights of every trial.

* xlstm_tune: `run(make_plan(...))` with everything on: journal, Parquet tables, MLflow on a fresh SQLite database.
* stock: `ray.tune.Tuner` with `OptunaSearch` and `MLflowLoggerCallback` on a fresh SQLite database, all with their
  defaults: no reuse of actors, so each trial imports torch anew, and Ray's own CSV, JSON and TensorBoard loggers.

Overhead per trial = (W − T / c) / N, in milliseconds: W wall seconds, T training seconds summed over all epochs
(building the model is not training), c trials at a time, N trials. It is what a trial adds to the length of the
search beyond its training, not what it keeps a worker waiting, which is c times that. Where driver and writer share
the processors with the workers, as on two, training takes longer for it and T hides that; so W / N, from which no
training is taken off, stands beside it as the upper bound. W is measured over

* the trials: from the first trial's start to the last one's end. The target is for this one. Starting the first
  worker is not in it; starting later workers, creating the MLflow database and sending to it meanwhile are;
* until all is recorded: from the first trial's start to the return of the search. For xlstm_tune this includes the
  test figures of the winner, a new worker for them, and the time until MLflow's writer is done;
* the whole program: from starting the interpreter (imports, reading the data, Ray) to the return of the search.

CPU is user and system time during the trials, of the driver and of the process that writes to MLflow (stock: the
driver itself). It tells more than wall time when others use the machine. Linux only.

Afterwards all trials have to be in the Parquet tables, in Optuna's journal and in MLflow, once each and none open.
Exit code 1 when they are not, or when the target is missed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from xlstm_tune.spec import SearchSpec

TARGET_MS = 120.0
CONCURRENT = 2
EPOCHS = 3
NAME = "overhead"
SIDES = ("xlstm_tune", "stock")
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # a GPU would only add its own start to models this small
    "OMP_NUM_THREADS": "1",
    # Neither side should wait for somebody's statistics server.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Measured:
    """One side's figures. Moments are seconds since 1970."""

    trials: int
    concurrent: int
    first: float
    """The first trial starts."""
    last: float
    """The last trial ends."""
    recorded: float
    """The search returns."""
    training: float
    """Seconds of all epochs of all trials."""
    driver_cpu: float
    """Seconds between `first` and `last`."""
    writer_cpu: float
    problems: list[str]
    """What is missing from the records, or there twice; a sentence each."""

    def overhead(self, since: float, until: float) -> float:
        """Milliseconds a trial beyond the training."""
        return 1e3 * (until - since - self.training / self.concurrent) / self.trials


class CpuClock(threading.Thread):
    """CPU seconds of this process and of its MLflow writer, noted several times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._moments: list[tuple[float, float, float]] = []
        self._writer: str | None = None
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            own = time.process_time()
            self._moments.append((time.time(), own, self._of_writer()))

    def between(self, first: float, last: float) -> tuple[float, float]:
        """Of this process and of the writer, between two moments. Ends the clock."""
        self._over.set()
        when, own, writer = np.array(self._moments).T
        edges = (first, last)
        return float(np.diff(np.interp(edges, when, own))[0]), float(np.diff(np.interp(edges, when, writer))[0])

    def _of_writer(self) -> float:
        if self._writer is None:
            self._writer = self._find_writer()
        try:
            fields = Path(f"/proc/{self._writer}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # not there yet, or done: what it used last still counts
            return self._moments[-1][2] if self._moments else 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _find_writer(self) -> str | None:
        mine = str(os.getpid()).encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"xlstm_tune.tracking" in words and mine in words:  # its command line names its parent
                return path.parent.name
        return None


def write_table(path: Path, rows: int = 160) -> None:
    """A daily series with a weekly cycle, a trend and noise, and one more column that leads it by a day."""
    rng = np.random.default_rng(0)
    step = np.arange(rows + 1)
    series = np.sin(2 * np.pi * step / 7) + 0.01 * step + 0.3 * rng.standard_normal(rows + 1)
    days = np.datetime64("2020-01-01") + np.arange(rows)
    lines = [f"{day},{now:.4f},{ahead:.4f}" for day, now, ahead in zip(days, series, series[1:], strict=False)]
    path.write_text("\n".join(["day,load,leading", *lines]) + "\n")


def make_spec(table: Path, trials: int) -> SearchSpec:
    """The search of both sides. Six settings, one of them conditional; every configuration is a new one."""
    from xlstm_tune.spec import SearchSpec

    return SearchSpec.parse(
        {
            "name": NAME,
            "data": {
                "source": str(table),
                "time": {"column": "day"},
                "target": "load",
                "lookback": 7,
                "horizon": 2,
                "split": {"validation": 0.15, "test": 0.15},
            },
            # Without pruning, so that both sides train the same number of epochs.
            "search": {"algorithm": "tpe", "scheduler": "none", "trials": trials},
            "space": {
                "model.layers": {"choice": [1, 2]},
                "model.dropout": {"float": [0.0, 0.3], "when": {"model.layers": 2}},
                "model.pooling": {"choice": ["last", "mean"]},
                "training.learning_rate": {"log_float": [1e-3, 1e-1]},
                "training.weight_decay": {"log_float": [1e-4, 1e-1]},
                "training.loss": {"choice": ["mse", "mae", "huber"]},
            },
            "model": {"family": "lstm", "layers": 1, "hidden_size": 2},
            "training": {"epochs": EPOCHS, "batch_size": 32},
            "resources": {"gpus_per_trial": 0, "max_concurrent": CONCURRENT},
        }
    )


def measure_ours(folder: Path, trials: int) -> Measured:
    """A search as the command line runs it."""
    clock = CpuClock()
    clock.start()
    from xlstm_tune.search.sampling.space import Space

    spec = make_spec(folder / "table.csv", trials)
    space = Space.from_spec(spec)
    from xlstm_tune.search.plan import make_plan
    from xlstm_tune.search.run import run

    plan = make_plan(spec, space, str(folder / "searches"), None, None)
    assert plan.placement is not None
    run(plan, Console(width=120))
    recorded = time.time()

    from xlstm_tune.results import read

    rows, epochs = read(plan.folder, "trials"), read(plan.folder, "epochs")
    first = min(rows["started"].to_pylist()).timestamp()
    last = max(rows["ended"].to_pylist()).timestamp()
    driver_cpu, writer_cpu = clock.between(first, last)
    return Measured(
        trials=rows.num_rows,
        concurrent=plan.placement.concurrent,
        first=first,
        last=last,
        recorded=recorded,
        training=float(np.sum(epochs["seconds"].to_numpy())),
        driver_cpu=driver_cpu,
        writer_cpu=writer_cpu,
        problems=list(our_problems(plan.folder, plan.tracking_uri, trials)),
    )


def our_problems(folder: Path, uri: str, trials: int) -> Iterable[str]:
    """What of a search of `trials` completed trials is not where it belongs, exactly once."""
    import optuna
    from mlflow.tracking import MlflowClient
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    from xlstm_tune.results import read
    from xlstm_tune.search.persistence.folder import CONFIG, WEIGHTS, trial_folder
    from xlstm_tune.search.sampling.study import JOURNAL

    expected = Counter(range(trials))
    rows = read(folder, "trials").to_pylist()
    if Counter(row["trial"] for row in rows) != expected:
        yield f"the trials table holds {len(rows)} rows, not one for each of {trials} trials"
    if unfinished := [row["trial"] for row in rows if row["status"] != "completed"]:
        yield f"trials {unfinished} are not completed in the trials table"
    points = read(folder, "epochs").to_pylist()
    if Counter((row["trial"], row["epoch"]) for row in points) != Counter(
        (number, epoch) for number in range(trials) for epoch in range(1, EPOCHS + 1)
    ):
        yield f"the epochs table holds {len(points)} rows, not one for each of {trials} × {EPOCHS} epochs"
    for number in range(trials):
        for name in (CONFIG, WEIGHTS):
            if not (trial_folder(folder, number) / name).is_file():
                yield f"trial {number} has no {name}"

    study = optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))))
    told = study.get_trials(deepcopy=False)
    if Counter(trial.number for trial in told if trial.state.name == "COMPLETE") != expected or len(told) != trials:
        yield f"Optuna's journal holds {dict(Counter(trial.state.name for trial in told))}, not {trials} COMPLETE"

    client = MlflowClient(uri)
    runs = list(mlflow_runs(client))
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    if Counter(int(run.data.tags["xlstm_tune.trial"]) for run in children) != expected:
        yield f"MLflow holds {len(children)} runs of trials, not one for each of {trials}"
    if len(runs) != len(children) + 1:
        yield f"MLflow holds {len(runs) - len(children)} runs that are no trials, not the search's one"
    if wrong := [run.info.run_name for run in runs if run.info.status != "FINISHED"]:
        yield f"MLflow runs {wrong} are not FINISHED"
    for run in children:
        curve = client.get_metric_history(run.info.run_id, "val_rmse")
        if sorted(point.step for point in curve) != list(range(1, EPOCHS + 1)):
            yield f"MLflow's val_rmse of '{run.info.run_name}' has {len(curve)} points, not {EPOCHS}"
        kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        if not run.data.params or not {CONFIG, WEIGHTS} <= kept:
            yield f"the MLflow run '{run.info.run_name}' lacks params, config or weights"


def measure_stock(folder: Path, trials: int) -> Measured:
    """The same trials as Ray's documentation would run them."""
    clock = CpuClock()
    clock.start()
    import ray
    from mlflow.tracking import MlflowClient
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    from xlstm_tune.data.prepare import prepare
    from xlstm_tune.data.table import load_table
    from xlstm_tune.search.persistence.store import Shared
    from xlstm_tune.search.placement.resources import local_resources, place
    from xlstm_tune.search.trials.single_trial import SingleTrial
    from xlstm_tune.search.trials.trainable import SearchTrial
    from xlstm_tune.training.checkpoint import save

    class StockTrial(SearchTrial):
        """The package's trainable for configs that are the point itself."""

        def _begin(self, config: dict[str, Any]) -> None:
            super()._begin({"trials": [{"number": int(self.trial_id, 16), "params": config, "known": 0}]})

        def step(self) -> dict[str, Any]:
            """The figures of its one configuration as the trial's own, which Tune's callbacks record."""
            row: dict[str, Any]
            (row,) = super().step()["rows"]
            return row

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Ray's own way, at the end of each trial."""
            trial = self._started()
            assert isinstance(trial, SingleTrial) and trial.state is not None
            save(trial.state, checkpoint_dir)

    class Watch(tune.Callback):  # type: ignore[misc]
        """When trials start and end, and how long they train."""

        def __init__(self) -> None:
            self.starts: list[float] = []
            self.ends: list[float] = []
            self.training: list[float] = []

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.starts.append(time.time())

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            self.training.append(result["epoch_seconds"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.ends.append(time.time())

    spec = make_spec(folder / "table.csv", trials)
    prepared = prepare(load_table(spec.data), spec.data, spec.max_lookback())
    here = local_resources()
    concurrent = place(spec.resources, here).concurrent
    ray.init(address="local", num_cpus=int(here["CPU"]), include_dashboard=False)  # never a cluster that runs here
    settings = {"spec": spec.model_dump(by_alias=True), "store": Shared(folder / "kept"), "data": [ray.put(prepared)]}
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    # Tune calls its callbacks in order: one before MLflow's to see it begin, one after it to see it end.
    before, after = Watch(), Watch()
    results = tune.Tuner(
        tune.with_parameters(StockTrial, **settings),
        param_space=stock_space(spec),
        tune_config=tune.TuneConfig(
            metric=f"best_{spec.search.objective}",
            mode="min",
            search_alg=OptunaSearch(),
            num_samples=trials,
            max_concurrent_trials=concurrent,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "ray"),
            callbacks=[before, MLflowLoggerCallback(tracking_uri=uri, experiment_name=NAME), after],
        ),
    ).fit()
    recorded = time.time()
    ray.shutdown()

    problems = [f"{len(results.errors)} trials failed"] if results.errors else []
    if len(before.training) != trials * EPOCHS:
        problems.append(f"{len(before.training)} epochs were reported, not {trials} × {EPOCHS}")
    states = Counter(run.info.status for run in mlflow_runs(MlflowClient(uri)))
    if states != {"FINISHED": trials}:
        problems.append(f"MLflow holds {dict(states)}, not {trials} FINISHED")
    driver_cpu, _ = clock.between(before.starts[0], after.ends[-1])
    return Measured(
        trials=len(results),
        concurrent=concurrent,
        first=before.starts[0],
        last=after.ends[-1],
        recorded=recorded,
        training=math.fsum(before.training),
        driver_cpu=driver_cpu,
        writer_cpu=0.0,
        problems=problems,
    )


def stock_space(spec: SearchSpec) -> dict[str, Any]:
    """The search file's space in Tune's words, which have no conditions: all six settings are always drawn."""
    from ray import tune

    make = {
        "choice": tune.choice,
        "float": lambda ends: tune.uniform(*ends),
        "log_float": lambda ends: tune.loguniform(*ends),
    }
    given = {
        key: next(iter(line.model_dump(by_alias=True, exclude_none=True, exclude={"when"}).items()))
        for key, line in spec.space.items()
    }
    return {key: make[kind](values) for key, (kind, values) in given.items()}


def mlflow_runs(client: Any) -> Iterable[Any]:
    """Every run of every experiment of a store."""
    places, token = [experiment.experiment_id for experiment in client.search_experiments()], None
    while True:
        page = client.search_runs(places, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def measure(side: str, folder: Path, trials: int, console: Console) -> tuple[Measured, float]:
    """Run one side in a process of its own, in `folder`, so that Ray's sessions and imports do not mix.

    Returns its figures and the moment at which the process was started.
    """
    folder.mkdir()
    write_table(folder / "table.csv")
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(Path(__file__).resolve()), "--trials", str(trials), "--side", side]
    with (folder / "output.log").open("wb") as log:
        started = time.time()
        done = subprocess.run(
            [*command, "--folder", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": paths},
            check=False,
        )
    if done.returncode:
        console.print("\n".join((folder / "output.log").read_text().splitlines()[-30:]), highlight=False, markup=False)
        raise SystemExit(f"the side {side} ended with code {done.returncode}")
    return Measured(**json.loads((folder / "measured.json").read_text())), started


def show(found: dict[str, tuple[Measured, float]], console: Console) -> None:
    """The table: sides as columns, and their ratio."""
    table = Table(title="Overhead per trial beyond the training, ms")
    table.add_column("")
    for side, (measured, _) in found.items():
        table.add_column(f"{side}\n{measured.trials} trials", justify="right")
    if len(found) == 2:
        table.add_column("ratio", justify="right")
    sides = [(measured, started) for measured, started in found.values()]
    lines = {
        "trials: first start to last end": [m.overhead(m.first, m.last) for m, _ in sides],
        "the same, training not taken off": [1e3 * (m.last - m.first) / m.trials for m, _ in sides],
        "until all is recorded": [m.overhead(m.first, m.recorded) for m, _ in sides],
        "the whole program, start-up included": [m.overhead(started, m.recorded) for m, started in sides],
        "CPU during the trials, driver": [1e3 * m.driver_cpu / m.trials for m, _ in sides],
        "CPU during the trials, driver and writer": [1e3 * (m.driver_cpu + m.writer_cpu) / m.trials for m, _ in sides],
        "training of a trial, for comparison": [1e3 * m.training / m.trials for m, _ in sides],
    }
    for name, values in lines.items():
        ratio = [f"{values[1] / values[0]:.1f}×"] if len(values) == 2 else []
        table.add_row(name, *(f"{value:,.0f}" for value in values), *ratio)
    console.print(table)


def main(
    trials: Annotated[int, typer.Option(min=1, help="Trials of xlstm_tune.")] = 200,
    stock_trials: Annotated[int | None, typer.Option(min=1, help="Trials of the stock side. None: as many.")] = None,
    no_stock: Annotated[bool, typer.Option("--no-stock", help="Measure xlstm_tune alone.")] = False,
    side: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure what the machinery costs per trial, and what Ray's stock pieces cost."""
    if side is not None:
        assert side in SIDES and folder is not None
        measured = (measure_ours if side == SIDES[0] else measure_stock)(folder, trials)
        (folder / "measured.json").write_text(json.dumps(asdict(measured)))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    wanted = {SIDES[0]: trials} | ({} if no_stock else {SIDES[1]: stock_trials or trials})
    found: dict[str, tuple[Measured, float]] = {}
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        for name, count in wanted.items():
            load = os.getloadavg()[0]
            with console.status(f"{name}: {count} trials"):
                found[name] = measure(name, Path(scratch) / name, count, console)
            seconds = found[name][0].recorded - found[name][1]
            console.print(
                f"{name}: {count} trials in {seconds:.1f} s, {found[name][0].concurrent} at a time; "
                f"load of the machine before {load:.2f}, after {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors",
                highlight=False,
            )
    show(found, console)
    if len(set(wanted.values())) == 2:
        console.print(
            f"note: the stock side ran {wanted[SIDES[1]]} trials, not {trials}; one-off costs weigh more on it."
        )
    ours = found[SIDES[0]][0]
    overhead = ours.overhead(ours.first, ours.last)
    met = overhead <= TARGET_MS
    console.print(
        f"Target, at most {TARGET_MS:.0f} ms during the trials: {'met' if met else 'MISSED'} ({overhead:.0f})."
    )
    for name, (measured, _) in found.items():
        for problem in measured.problems:
            console.print(f"[red]{name}:[/] {problem}", highlight=False)
    if not ours.problems:
        console.print(f"All {trials} trials are in the Parquet tables, Optuna's journal and MLflow, once each.")
    raise SystemExit(0 if met and not ours.problems else 1)


if __name__ == "__main__":
    typer.run(main)
