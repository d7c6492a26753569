"""What the model families reach: on simulated outbreaks, whose best possible error is known, and on ETTh1.

    python benchmarks/accuracy.py outbreak    ten trainings, about ten minutes on two cores
    python benchmarks/accuracy.py etth1       about a quarter of an hour
    python benchmarks/accuracy.py             both; --write puts the tables into results/accuracy.md

* outbreak: sample:outbreak in full, 48 counties × 22 years, each year 365 days × 19 weather features, the county's
  population beside them, and a count of cases to be predicted; the last three years are the test. torch's LSTM, our
  fused one, sLSTM, mLSTM and a mixed `ms` stack, two layers or blocks of width 64 with dropout 0.3, are trained with
  the same settings, at two learning rates each; the validation part chooses between them.
* etth1: all seven variates, 96 hours ahead, a patched sLSTM with independent channels, alone and with a linear map of
  the window's trend and remainder beside it. Validation chooses lookback and window norm. DLinear's published errors
  (MSE .375, MAE .399 on standardised values) and our closed-form linear baselines stand beside it.

Every training has one thread, as many run at a time as there are processors, and each is scored at its best validation
epoch. The test part is looked at once for what validation chose. Seeds are fixed.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from etth1 import DEFAULT, MISSING, TEST, TRAIN, VALIDATION
from machine import describe, write_results

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.models.baselines import baselines, best_possible
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.finals.finalists import actual
from xlstm_tune.search.plan import sample_groups
from xlstm_tune.training.config import TrainingConfig, TrialConfig
from xlstm_tune.training.judge import judge
from xlstm_tune.training.loop import begin, train
from xlstm_tune.training.metrics import score_units

OUTBREAK_EPOCHS = 30
OUTBREAK_RATES = (1e-3, 3e-3)
OUTBREAK_FIXED = {"hidden_size": 64, "layers": 2, "heads": 4, "dropout": 0.3, "pooling": "mean"}
OUTBREAK_MODELS: dict[str, dict[str, Any]] = {
    "LSTM (torch)": {"family": "lstm_torch"},
    "LSTM (fused)": {"family": "lstm"},
    "sLSTM": {"family": "slstm"},
    "mLSTM": {"family": "mlstm"},
    "ms": {"family": "xlstm", "pattern": "ms"},
}
ETTH1_EPOCHS = 10
ETTH1_MODELS: dict[str, dict[str, Any]] = {
    "patched sLSTM": {"decomposition": "none"},
    "patched sLSTM, linear trend beside it": {"decomposition": "trend"},
}
ETTH1_FIXED: dict[str, Any] = {
    "family": "slstm",
    "layers": 1,
    "heads": 4,
    "hidden_size": 16,
    "dropout": 0.3,
    "patch_length": 32,
    "channels": "independent",
    "pooling": "flatten",
}
LOOKBACKS = (336, 512)
INSTANCE_NORMS = ("last", "reversible")
DLINEAR = (0.375, 0.399)
"""Published MSE and MAE (Zeng et al., AAAI 2023), standardised, 96 hours ahead."""


class Part(StrEnum):
    """Which tables to make."""

    outbreak = "outbreak"
    etth1 = "etth1"
    all = "all"


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    """Jobs of the same name compete; validation chooses."""
    config: TrialConfig
    settings: str
    """In words, what tells it from its rivals."""


@dataclass(frozen=True)
class Trained:
    """What a training brought: metrics at the best validation epoch, and the weights of that epoch."""

    job: Job
    validation: dict[str, float]
    best_epoch: int
    epochs: int
    seconds: float
    parameters: int
    weights: dict[str, np.ndarray]

    def tail(self) -> str:
        """The last cells of its line in a table."""
        return f"| {self.best_epoch} of {self.epochs} | {self.seconds:.0f} | {self.parameters:,} |"


def outbreak_data() -> tuple[Prepared, np.ndarray | None]:
    """48 × 22 years of weather and cases, and the county of each."""
    return prepared(
        {
            "source": "sample:outbreak",
            "task": "regression",
            "sequence": ["county", "year"],
            "time": {"column": "date"},
            "target": "cases",
            "exclude": ["day"],
            "static": ["population"],
            "categories": ["weather_main", "weather_description"],
            "calendar": "year",
            "split": {"by": "time", "validation": 0.15, "test": 0.15},
        }
    )


def etth1_data(path: Path) -> Prepared:
    """Seven variates, cut as in the literature."""
    data, _ = prepared(
        {
            "source": str(path),
            "time": {"column": "date"},
            "target": "all",
            "lookback": max(LOOKBACKS),
            "horizon": 96,
            "split": {"train": TRAIN, "validation": VALIDATION, "test": TEST},
        }
    )
    return data


def prepared(config: dict[str, Any]) -> tuple[Prepared, np.ndarray | None]:
    """The data of a search file's `data:` section, and each sample's group where it has any."""
    spec = DataConfig.parse(config, "data")
    table = load_table(spec)
    data = prepare(table, spec)
    return data, sample_groups(table, data)


def outbreak_jobs(epochs: int) -> Iterator[Job]:
    """Every model at every learning rate."""
    for (name, keys), rate in product(OUTBREAK_MODELS.items(), OUTBREAK_RATES):
        model = ModelConfig.parse(OUTBREAK_FIXED | keys, "model")
        training = TrainingConfig(epochs=epochs, batch_size=32, learning_rate=rate)
        yield Job(name, TrialConfig(model, training, None), f"lr {rate:g}")


def etth1_jobs(epochs: int) -> Iterator[Job]:
    """Every model at every lookback and with every way to normalise a window."""
    training = TrainingConfig(epochs=epochs, batch_size=64, learning_rate=1e-3, patience=3)
    for (name, keys), lookback, norm in product(ETTH1_MODELS.items(), LOOKBACKS, INSTANCE_NORMS):
        model = ModelConfig.parse(ETTH1_FIXED | keys | {"instance_norm": norm}, "model")
        yield Job(name, TrialConfig(model, training, lookback), f"lookback {lookback}, {norm}")


_data: Prepared
"""Of a worker process; set once, as it starts."""


def _start(data: Prepared) -> None:
    global _data
    _data = data
    torch.set_num_threads(1)


def _train(job: Job, objective: str) -> Trained:
    started = time.perf_counter()
    for result in train(job.config, _data, device="cpu", objective=objective):
        state = result.state
    assert state.best_validation is not None and state.best_weights is not None
    return Trained(
        job,
        state.best_validation,
        state.best_epoch,
        state.epoch,
        time.perf_counter() - started,
        result.parameters,
        {name: value.numpy() for name, value in state.best_weights.items()},
    )


def run_all(jobs: list[Job], data: Prepared, objective: str) -> list[Trained]:
    """Train every job, as many at a time as there are processors; in the order of `jobs`."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["NUMBA_NUM_THREADS"] = "1"
    workers = min(os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    found: dict[int, Trained] = {}
    with ProcessPoolExecutor(workers, context, _start, (data,)) as pool:
        places = {pool.submit(_train, job, objective): place for place, job in enumerate(jobs)}
        for future in as_completed(places):
            found[places[future]] = trained = future.result()
            print(
                f"  {trained.job.name}, {trained.job.settings}: validation {objective} "
                f"{trained.validation[objective]:.4f} at epoch {trained.best_epoch} of {trained.epochs}, "
                f"{trained.seconds:.0f} s",
                flush=True,
            )
    return [found[place] for place in range(len(jobs))]


def chosen(runs: list[Trained], objective: str) -> list[Trained]:
    """The best on validation under each name, in the order of their names' first appearance."""
    best: dict[str, Trained] = {}
    for run in runs:
        rival = best.get(run.job.name)
        if rival is None or run.validation[objective] < rival.validation[objective]:
            best[run.job.name] = run
    return list(best.values())


def test_scores(run: Trained, data: Prepared) -> dict[str, float]:
    """The metrics of a training's best weights on the test part."""
    model = begin(run.job.config, data).model
    model.load_state_dict({name: torch.from_numpy(value) for name, value in run.weights.items()})
    return judge(model, Windows(data, "test", run.job.config.lookback), data.target_std, 256).result()


def baseline_scores(data: Prepared, groups: np.ndarray | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Name → part → metric → value, for validation and test."""
    return {
        baseline.name: {
            part: score_units(predicted, actual(data, part), data.target_std)
            for part, predicted in baseline.predictions.items()
        }
        for baseline in baselines(data, groups)
    }


def outbreak_table(epochs: int) -> list[str]:
    """Train and score the models on the simulated outbreak. Lines of Markdown."""
    data, counties = outbreak_data()
    known = best_possible(data)
    assert known is not None
    print("outbreak:")
    runs = run_all(list(outbreak_jobs(epochs)), data, "rmse")
    rates = " and ".join(f"{rate:g}" for rate in OUTBREAK_RATES)
    lines = [
        "## Simulated outbreak: cases a year, RMSE",
        "",
        f"{len(data.parts['train'])} sequences to train, {len(data.parts['validation'])} for validation, "
        f"{len(data.parts['test'])} for the test; {epochs} epochs, batches of 32, two layers or blocks of "
        f"width 64, dropout {OUTBREAK_FIXED['dropout']}, learning rates {rates}.",
        "",
        "| | chosen | validation | test | test over the best possible | best epoch | seconds | parameters |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        f"| best possible | | {known['validation']:.2f} | {known['test']:.2f} | 1.000 | | | |",
    ]
    for run in chosen(runs, "rmse"):
        test = test_scores(run, data)["rmse"]
        lines.append(
            f"| {run.job.name} | {run.job.settings} | {run.validation['rmse']:.2f} | {test:.2f} "
            f"| {test / known['test']:.3f} {run.tail()}"
        )
    for name, scores in baseline_scores(data, counties).items():
        validation, test = scores["validation"]["rmse"], scores["test"]["rmse"]
        lines.append(f"| {name} | | {validation:.2f} | {test:.2f} | {test / known['test']:.3f} | | | |")
    return lines


def etth1_table(path: Path, epochs: int) -> list[str]:
    """Train and score patched sLSTMs on ETTh1. Lines of Markdown."""
    data = etth1_data(path)
    metrics = ("mse_standardised", "mae_standardised")
    print("etth1:")
    runs = run_all(list(etth1_jobs(epochs)), data, metrics[0])
    lines = [
        "## ETTh1, seven variates, 96 hours ahead: MSE / MAE on standardised values",
        "",
        f"At most {epochs} epochs at each of {len(LOOKBACKS)} lookbacks and with {len(INSTANCE_NORMS)} ways to "
        f"normalise a window (against its last value; by its mean and deviation). One block of width "
        f"{ETTH1_FIXED['hidden_size']}, patches of {ETTH1_FIXED['patch_length']} hours, channels independent.",
        "",
        "| | chosen | validation | test | best epoch | seconds | parameters |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]

    def pair(scores: dict[str, float]) -> str:
        return " / ".join(f"{scores[metric]:.4f}" for metric in metrics)

    verdicts = []
    for run in chosen(runs, metrics[0]):
        test = test_scores(run, data)
        lines.append(f"| {run.job.name} | {run.job.settings} | {pair(run.validation)} | {pair(test)} {run.tail()}")
        words = [
            f"{name} {test[metric]:.4f} {'below' if test[metric] < bar else 'not below'} {bar}"
            for name, metric, bar in zip(("MSE", "MAE"), metrics, DLINEAR, strict=True)
        ]
        verdicts.append(f"Beside DLinear as published, {run.job.name}: {', '.join(words)}.")
    lines.append(f"| DLinear as published | | | {DLINEAR[0]} / {DLINEAR[1]} | | | |")
    for name, scores in baseline_scores(data).items():
        lines.append(f"| {name} | | {pair(scores['validation'])} | {pair(scores['test'])} | | | |")
    return [*lines, "", *verdicts]


def main(
    part: Annotated[Part, typer.Argument(help="Which tables to make.")] = Part.all,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of a training, for a quick look. None: 30 and 10.")] = None,
    etth1: Annotated[Path, typer.Option(help="Where ETTh1.csv lies.")] = DEFAULT,
    write: Annotated[bool, typer.Option("--write", help="Write the tables to results/accuracy.md.")] = False,
) -> None:
    """Train the model families and say what they reach."""
    if part != Part.outbreak and not etth1.is_file():
        print(MISSING.format(path=etth1))
        raise SystemExit(2)
    lines = [describe(("torch", "numba")) + "."]
    if part != Part.etth1:
        lines += ["", *outbreak_table(epochs or OUTBREAK_EPOCHS)]
    if part != Part.outbreak:
        lines += ["", *etth1_table(etth1, epochs or ETTH1_EPOCHS)]
    print(*lines, sep="\n")
    if write:
        print(f"Written to {write_results('accuracy', lines)}.")


if __name__ == "__main__":
    typer.run(main)
