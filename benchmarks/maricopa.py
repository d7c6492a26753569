"""A full review on real data: does any xLSTM beat persistence, seasonal naive and linear on weekly valley-fever cases?

    python benchmarks/maricopa.py            2, 4, 8 and 16 weeks ahead; --write puts the table into results/maricopa.md

Weekly cases in Maricopa County, Arizona, from 2006 on, with 27 columns of soil, weather and air beside them. Each
horizon is one search over LSTM, sLSTM, mLSTM and mixed xLSTM stacks, through the command as a user runs it. Validation
chooses the best trial; on the test part, the last 15 % of the weeks, the best xLSTM's RMSE is compared with that of
each rival over the same windows: 95 % intervals by the report's own block bootstrap, Holm's correction over all
differences of a horizon. The report page of each search is left in its folder.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from machine import describe, write_results

from xlstm_tune.report.differences import Difference, compare_pairs
from xlstm_tune.report.evidence import gather, search_row
from xlstm_tune.report.predictions import Judged, Model, facts, read_predictions

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "maricopa_valley_fever_weekly.csv"
HORIZONS = (2, 4, 8, 16)
XLSTM = ("slstm", "mlstm", "xlstm")
RIVALS = {"last_value": "persistence", "seasonal_naive": "seasonal naive", "nlinear": "NLinear", "dlinear": "DLinear"}


def spec_of(horizon: int, data: Path, trials: int) -> dict[str, Any]:
    """The search for one horizon."""
    return {
        "name": f"maricopa-{horizon}-weeks",
        "data": {
            "source": str(data),
            "time": {"column": "Date", "format": "mmwr-week"},
            "target": "MARICOPA",
            "missing": "interpolate",
            "lookback": 104,
            "horizon": horizon,
            "season": 52,
        },
        "search": {"trials": trials, "seed": 7, "grace_epochs": 5},
        "space": {
            "model.family": {"choice": ["lstm", "slstm", "mlstm", "xlstm"]},
            "model.pattern": {"choice": ["ms", "sm"], "when": {"model.family": "xlstm"}},
            "model.hidden_size": {"choice": [16, 32, 64]},
            "model.dropout": {"choice": [0.0, 0.1, 0.3]},
            "model.layers": {"choice": [1, 2], "when": {"model.family": ["lstm", "slstm", "mlstm"]}},
            "training.learning_rate": {"log_float": [3e-4, 1e-2]},
            "data.lookback": {"choice": [26, 52, 104]},
        },
        "model": {"heads": 4, "instance_norm": "last"},
        "training": {"epochs": 30, "batch_size": 32},
    }


def run_search(folder: Path, horizon: int, data: Path, trials: int) -> Path:
    """The folder of a finished search."""
    spec = spec_of(horizon, data, trials)
    file = folder / f"{spec['name']}.yaml"
    file.write_text(yaml.safe_dump(spec))
    storage = folder / "searches"
    if not (storage / spec["name"]).exists():
        command = [sys.executable, "-m", "xlstm_tune.search", str(file), "--storage", str(storage)]
        subprocess.run(command, check=True, cwd=ROOT)
    return storage / spec["name"]


def compared(folder: Path) -> tuple[Judged, Model, list[Difference], str]:
    """Test predictions, the xLSTM that validation chose, its differences to the rivals, and how they were drawn."""
    evidence, row = gather(folder), search_row(folder)
    assert evidence is not None and evidence.part == "test" and row is not None
    rivals = [one for one in evidence.models if one.name in RIVALS or one.family == "lstm"]
    mine = [one for one in evidence.models if one.family in XLSTM]
    held_out = read_predictions(folder, "validation", [(one.family or one.name, one) for one in mine])
    assert held_out is not None
    best = min(mine, key=lambda one: float(((held_out.predicted[one] - held_out.actual) ** 2).mean()))
    seen = facts(row["data"])
    judged = read_predictions(folder, "test", [(one.family or one.name, one) for one in (best, *rivals)])
    assert judged is not None
    found = compare_pairs(judged, [(best, rival) for rival in rivals], seen)
    return judged, best, found.differences, found.resampled


def rmse(judged: Judged, model: Model) -> float:
    """Of a model on the test part, in cases a week."""
    return float(((judged.predicted[model] - judged.actual) ** 2).mean() ** 0.5)


def table(folder: Path, horizons: tuple[int, ...], data: Path, trials: int) -> list[str]:
    """The review's lines."""
    lines = [
        "| weeks ahead | best xLSTM | test RMSE | against | its RMSE | better by | 95 % interval | p, Holm | apart |",
        "|--:|---|--:|---|--:|--:|--:|--:|---|",
    ]
    verdicts, drawn = [], ""
    for horizon in horizons:
        judged, best, differences, drawn = compared(run_search(folder, horizon, data, trials))
        beaten = []
        for one in differences:
            name = RIVALS.get(one.b.name, f"LSTM ({one.b.name})")
            better = one.told_apart and one.gain > 0
            beaten += [name] if better and one.b.name in RIVALS else []
            lines.append(
                f"| {horizon} | {best.name} | {rmse(judged, best):.1f} | {name} | {rmse(judged, one.b):.1f} | "
                f"{one.gain_percent:+.1f} % | {one.low_percent:+.1f} to {one.high_percent:+.1f} % | "
                f"{one.p_adjusted:.3f} | {'yes' if better else 'worse' if one.told_apart else 'no'} |"
            )
        told = f"beats {', '.join(beaten)}" if beaten else "beats none of them"
        verdicts.append(f"- {horizon} weeks: the best xLSTM {told}, where the two are told apart.")
    return [*lines, "", *verdicts, "", f"Intervals: {drawn}"]


def main(
    write: Annotated[bool, typer.Option("--write", help="Write results/maricopa.md.")] = False,
    folder: Annotated[Path, typer.Option(help="Where searches lie; finished ones are used again.")] = Path("maricopa"),
    trials: Annotated[int, typer.Option(help="Of each search.")] = 24,
    horizons: Annotated[list[int], typer.Option(help="Weeks ahead.")] = list(HORIZONS),  # noqa: B006
    data: Annotated[Path, typer.Option(help="The table.")] = DATA,
) -> None:
    """See the module's docstring."""
    if not data.exists():
        raise SystemExit(f"{data} is not there; give the table with --data")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    lines = table(folder, tuple(horizons), data, trials)
    lines += ["", f"{describe(('torch', 'ray', 'optuna'))}; {trials} trials each, {time.monotonic() - began:.0f} s."]
    print("\n".join(lines))
    if write:
        write_results("maricopa", lines)


if __name__ == "__main__":
    typer.run(main)
