"""The classic grid, search_spaces/grid_xlstm.yaml, whole: configurations trained together, beside `fuse: off`.

    python benchmarks/grid.py                at a reduced size for two CPU cores, about 5 minutes
    python benchmarks/grid.py --whole        as shipped: 48 counties × 22 years, widths up to 512, 10 epochs; for a GPU
    python benchmarks/grid.py --write        also writes results/grid.md

Both sides are the command that a user gives, from starting the interpreter to its end, with Ray, Optuna's journal,
Parquet and MLflow's database. A search of one configuration before them compiles the kernels. Each side must score all
160 distinct configurations, with the same validation RMSE up to rounding.

How the time splits, in seconds of the whole program:

* start: to the first configuration's start (interpreter, checks, data, Ray, workers);
* train, validate: what the epochs say, over the trials that run at a time;
* between: what the trials' span has beside them: building models, compiling, Ray's turns, idle workers at the end;
* log: from the last configuration's end to the return (finalists' test scores, leaderboard, MLflow's last records).

Exit code 1 when a configuration has no score or two that differ, or when training together is slower than one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from machine import describe, write_results

HERE = Path(__file__).resolve().parent
SPACE = "grid_xlstm"
CLOSE = 1e-3
"""Validation RMSE may differ by this much, relatively: float32 rounds in another order, step after step."""


@dataclass(frozen=True)
class Found:
    """One side's search. Seconds of the whole program, and its parts."""

    seconds: float
    start: float
    train: float
    validate: float
    between: float
    log: float
    scores: dict[str, float]
    """Validation RMSE by configuration."""
    groups: int
    """Ray trials."""


def run(folder: Path, name: str, settings: list[str]) -> float:
    """The command, from start to end; its seconds."""
    command = [sys.executable, "-m", "xlstm_tune.search", SPACE, "--storage", str(folder), "--name", name]
    command += [word for setting in settings for word in ("--set", setting)]
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    quiet = {"PYTHONPATH": str(HERE.parent), "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    began = time.perf_counter()
    done = subprocess.run(command, env=kept | quiet, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the search ended with exit code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    return time.perf_counter() - began


def measure(folder: Path, name: str, settings: list[str], samples: int, slots: int) -> Found:
    """A whole search, and how its time splits. samples: of the training part; slots: trials that run at a time."""
    from xlstm_tune.results import read

    began = time.time()
    seconds = run(folder, name, settings)
    rows = read(folder / name, "trials").to_pylist()
    epochs = read(folder / name, "epochs").to_pylist()
    first = min(row["started"] for row in rows).timestamp()
    last = max(row["ended"] for row in rows).timestamp()
    # Of a pack's epoch each configuration has its share of the seconds; its sequences a second are those of all.
    train = sum(samples / row["sequences_per_s"] for row in epochs) / slots
    both = sum(row["seconds"] for row in epochs) / slots
    return Found(
        seconds=seconds,
        start=first - began,
        train=train,
        validate=both - train,
        between=last - first - both,
        log=began + seconds - last,
        scores={row["config"]: row["val_rmse"] for row in rows if row["status"] == "completed"},
        groups=round(sum(1 / (row["fused"] or 1) for row in rows)),
    )


def table(together: Found, apart: Found) -> list[str]:
    """Lines of Markdown."""
    lines = ["| | together | `fuse: off` | ratio |", "|---|--:|--:|--:|"]
    lines.append(f"| configurations with a score | {len(together.scores)} | {len(apart.scores)} | |")
    lines.append(f"| Ray trials | {together.groups} | {apart.groups} | |")
    for part in ("seconds", "start", "train", "validate", "between", "log"):
        mine, other = getattr(together, part), getattr(apart, part)
        ratio = f"{other / mine:.2f}×" if mine > 0 and part in ("seconds", "train", "validate") else ""
        lines.append(f"| {'whole program, s' if part == 'seconds' else part} | {mine:.1f} | {other:.1f} | {ratio} |")
    return lines


def main(
    counties: Annotated[int, typer.Option(min=2)] = 8,
    years: Annotated[int, typer.Option(min=8)] = 8,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    widths: Annotated[str, typer.Option(help="Hidden sizes in place of 64, 128, 256 and 512.")] = "8,16,32,64",
    whole: Annotated[bool, typer.Option("--whole", help="The search file as it is.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write the table to results/grid.md.")] = False,
) -> None:
    """Run the grid both ways."""
    from xlstm_tune.search.plan import make_plan
    from xlstm_tune.search.sampling.space import Space
    from xlstm_tune.search_file import load_spec

    smaller = [
        f"data.sample.counties={counties}",
        f"data.sample.years={years}",
        f"space.model.hidden_size={{choice: [{widths}]}}",
        f"training.epochs={epochs}",
    ]
    settings = [] if whole else smaller
    spec = load_spec(SPACE, settings)
    with tempfile.TemporaryDirectory(prefix="grid-") as scratch:
        folder = Path(scratch)
        plan = make_plan(spec, Space.from_spec(spec), str(folder), None, None)
        assert plan.placement is not None  # on this machine it is known
        known = (len(plan.data.parts["train"]), plan.placement.concurrent)
        run(folder, "warm-up", [*settings, "training.epochs=1", "search.trials=1"])
        together = measure(folder, "together", settings, *known)
        print(f"together: {together.seconds:.0f} s", flush=True)
        apart = measure(folder, "apart", [*settings, "search.fuse=off"], *known)
        print(f"fuse: off: {apart.seconds:.0f} s", flush=True)
    sample, sizes = spec.data.sample, spec.space["model.hidden_size"].choice or []
    what = (
        f"{sample['counties']} counties × {sample['years']} years of 365 days, widths {', '.join(map(str, sizes))}, "
        f"{spec.training.epochs} epochs. Seconds."
    )
    lines = table(together, apart)
    print(what, "", *lines, sep="\n")
    if write:
        heading = f"{describe(('torch', 'ray', 'optuna'))}. {what}"
        print(f"Written to {write_results('grid', [heading, '', *lines])}.")
    unlike = [
        key
        for key, value in apart.scores.items()
        if key not in together.scores or abs(together.scores[key] / value - 1) > CLOSE
    ]
    print(f"Scores that differ by more than {CLOSE:g}: {len(unlike)} of {len(apart.scores)}.")
    raise SystemExit(0 if not unlike and len(apart.scores) == plan.trials and together.seconds <= apart.seconds else 1)


if __name__ == "__main__":
    typer.run(main)
