"""What it costs that no search is ever lost: journal and checkpoints beside the training itself.

    python benchmarks/saving.py              about a minute
    python benchmarks/saving.py --write      also writes results/saving.md

A trial of the search (two sLSTM blocks) trains with epochs of about a second, as a worker trains it; its rows go to a
journal on the same disk. Timed are a whole epoch with everything beside the training (the best weights' file, the row,
the checkpoint where one is due), and of that the journal's line and the forecasts from which the writer process later
draws the trial's picture: nothing else of the pictures and tables in MLflow is made where trials run. Wanted: at most
5 % of the training time for everything, 3 % for the pictures; exit code 1 otherwise.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from machine import describe, write_results

WANTED = 0.05
WANTED_PICTURES = 0.03


def make(folder: Path, samples: int, width: int) -> Any:
    """Data of a sine wave and the spec of a search over it."""
    from xlstm_tune.data.prepare import prepare
    from xlstm_tune.data.table import load_table
    from xlstm_tune.spec import SearchSpec

    values = np.sin(np.arange(samples) / 8) * 10 + np.random.default_rng(0).normal(size=samples)
    (folder / "wave.csv").write_text("y\n" + "\n".join(f"{value:.4f}" for value in values) + "\n")
    spec = SearchSpec.parse(
        {
            "name": "saving",
            "data": {"source": str(folder / "wave.csv"), "target": "y", "lookback": 96, "horizon": 8},
            "model": {"family": "slstm", "hidden_size": width, "layers": 2, "heads": 4},
            "training": {"epochs": 1000, "batch_size": 128, "patience": 0},
        }
    )
    return spec, prepare(load_table(spec.data), spec.data, spec.max_lookback())


def measure(trial: Any, folder: Path, seconds: float) -> dict[str, float]:
    """A trial's epochs for so long: training and everything else, seconds an epoch."""
    from xlstm_tune.search.persistence.journal import Journal
    from xlstm_tune.search.trials import single_trial

    spent, save_end = [0.0], single_trial.save_end

    def timed_end(*arguments: Any) -> None:
        started = time.perf_counter()
        save_end(*arguments)
        spent[0] += time.perf_counter() - started

    single_trial.save_end = timed_end
    journal = Journal(folder)
    journal.began([0], [{}])
    trial.step()  # loads the kernels
    spent[0] = 0.0
    whole, training, epochs, lines = 0.0, 0.0, 0, 0.0
    while whole < seconds:
        started = time.perf_counter()
        (row,) = trial.step()
        stepped = time.perf_counter()
        journal.epoch({"number": 0, **row}, False)
        lines += time.perf_counter() - stepped
        whole += time.perf_counter() - started
        training += row["epoch_seconds"]
        epochs += 1
    journal.close()
    single_trial.save_end = save_end
    each = {"epoch": training, "cost": whole - training, "line": lines, "picture": spent[0]}
    return {name: value / epochs for name, value in each.items()} | {"epochs": epochs}


def main(
    seconds: Annotated[float, typer.Option(help="For each row of the table.")] = 15.0,
    samples: Annotated[int, typer.Option(help="Of the series; decides how long an epoch is.")] = 1600,
    write: Annotated[bool, typer.Option("--write", help="Also write results/saving.md.")] = False,
) -> None:
    """See the module's text."""
    from xlstm_tune.search.trials.checkpoints import SHARE
    from xlstm_tune.search.trials.single_trial import SingleTrial

    rows = []
    worst = worst_picture = 0.0
    for width in (64, 256):
        for name, share in (("as a search saves", None), ("every epoch", "1000")):
            os.environ.pop(SHARE, None)
            if share:
                os.environ[SHARE] = share
            with tempfile.TemporaryDirectory() as place:
                (Path(place) / "trial").mkdir()
                spec, data = make(Path(place), samples, width)
                found = measure(
                    SingleTrial(spec.resolve({}), data, Path(place) / "trial", "rmse"), Path(place), seconds
                )
            part = found["cost"] / found["epoch"]
            worst = worst if share else max(worst, part)
            worst_picture = max(worst_picture, found["picture"] / found["epoch"])
            rows.append(
                f"| {width} | {name} | {found['epoch']:.2f} | {1e3 * found['cost']:.1f} | {1e3 * found['line']:.2f} | "
                f"{1e3 * found['picture']:.2f} | {100 * part:.2f} % | {found['epochs']:.0f} |"
            )
            print(rows[-1])
    lines = [
        describe(),
        "",
        f"Two sLSTM blocks, 96 steps, batches of 128; wanted: at most {100 * WANTED:.0f} % as a search saves, and "
        f"at most {100 * WANTED_PICTURES:.0f} % for the pictures.",
        "",
        "| width | saved | epoch, s | all beside it, ms | of these the journal's line, ms | the picture's, ms "
        "| of the training | epochs |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
        *rows,
    ]
    if write:
        write_results("saving", lines)
    raise typer.Exit(1 if worst > WANTED or worst_picture > WANTED_PICTURES else 0)


if __name__ == "__main__":
    typer.run(main)
