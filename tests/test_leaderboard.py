"""The leaderboard, from Parquet tables alone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from report_tables import TRIAL_SECONDS, forecast_labels, write_search
from rich.console import Console

from xlstm_tune.report.leaderboard import (
    Leaderboard,
    best_baseline,
    build_leaderboard,
    how_sure,
    print_front,
    print_leaderboard,
    verdict,
)
from xlstm_tune.results import ResultsWriter


def metrics(rmse: float, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}rmse": rmse,
        f"{prefix}mae": rmse / 2,
        f"{prefix}mse_standardised": rmse**2,
        f"{prefix}mae_standardised": rmse / 3,
    }


def trial(number: int, status: str, rmse: float | None, family: str = "lstm") -> dict[str, object]:
    row = {"trial": number, "name": f"{family} {number}", "status": status, "family": family, "epochs": 3}
    return row | {"config": {}, "params": {}, "seconds": 1.5} | (metrics(rmse, "val_") if rmse is not None else {})


def write(folder: Path, rows: list[dict[str, object]], scores: dict[int, float], baselines: dict[str, float]) -> None:
    with ResultsWriter(folder) as results:
        for row in rows:
            results.trial(row)
        for number, rmse in scores.items():
            for part in ("validation", "test"):
                results.scores([{"trial": number, "model": "lstm", "part": part, **metrics(rmse)}])
        for name, rmse in baselines.items():
            for part, factor in (("validation", 1.0), ("test", 1.1)):
                results.baselines([{"name": name, "part": part, **metrics(rmse * factor), "settings": {}}])


def test_build_leaderboard_ranks_scored_trials_and_baselines(tmp_path: Path) -> None:
    rows = [
        trial(0, "completed", 3.0),
        trial(1, "pruned", 2.0, "slstm"),
        trial(2, "failed", None),
        trial(3, "duplicate", 3.0),
        trial(4, "failed", None) | {"reason": "interrupted"},
    ]
    write(tmp_path, rows, {1: 2.2}, {"mean": 5.0, "last_value": 4.0})
    board = build_leaderboard(tmp_path, "val_rmse")
    assert [entry.trial for entry in board.trials] == [1, 0]
    assert [entry.model for entry in board.baselines] == ["last_value", "mean"]
    assert board.counts == {"completed": 1, "pruned": 1, "failed": 1, "unfinished": 1, "duplicate": 1}
    assert verdict(board).endswith("Trials: 1 completed, 1 pruned, 1 failed, 1 unfinished, 1 duplicate.")
    assert best_baseline(tmp_path, "val_rmse") == ("last_value", 4.0)
    summary = board.summary()
    assert summary["best_val_rmse"] == 2.0 and summary["best_test_rmse"] == 2.2
    assert summary["gain_val_percent"] == 50.0
    assert abs(summary["gain_test_percent"] - 50.0) < 1e-9
    columns = board.columns()
    assert len({len(values) for values in columns.values()}) == 1
    assert "slstm 1 (trial 1, stopped early by the scheduler) won" in verdict(
        board
    ) and "50.0% lower on validation and 50.0% lower" in verdict(board)


def test_a_trial_that_the_end_of_the_search_cut_short_is_not_the_schedulers_doing(tmp_path: Path) -> None:
    rows = [trial(0, "pruned", 3.0) | {"reason": "interrupted"}, trial(1, "pruned", 4.0, "slstm")]
    write(tmp_path, rows, {}, {"last_value": 5.0})
    board = build_leaderboard(tmp_path, "val_rmse")
    assert board.counts["pruned"] == 1 and board.counts["unfinished"] == 1
    text = verdict(board)
    assert "(trial 0, not finished) won" in text and text.endswith("Trials: 1 pruned, 1 unfinished.")


def test_a_baseline_without_any_error_is_the_best(tmp_path: Path) -> None:
    write(tmp_path, [trial(0, "completed", 3.0)], {0: 3.0}, {"dlinear": 1.1, "last_value": 0.0})
    board = build_leaderboard(tmp_path, "val_rmse")
    assert [entry.model for entry in board.baselines] == ["last_value", "dlinear"]
    assert best_baseline(tmp_path, "val_rmse") == ("last_value", 0.0)
    assert "No trial beat the best baseline, last_value: its error is 0" in verdict(board)
    assert "gain_val_percent" not in board.summary()


def test_verdict_says_when_nothing_beat_the_baselines(tmp_path: Path) -> None:
    write(tmp_path, [trial(0, "completed", 5.0)], {0: 5.5}, {"last_value": 4.0})
    text = verdict(build_leaderboard(tmp_path, "val_rmse"))
    assert "No trial beat the best baseline, last_value: 25.0% higher on validation" in text


def test_verdict_says_when_nothing_was_scored(tmp_path: Path) -> None:
    write(tmp_path, [trial(0, "failed", None)], {}, {"last_value": 4.0})
    board = build_leaderboard(tmp_path, "val_rmse")
    assert board.winner is None
    assert "No trial could be scored (1 failed)" in verdict(board)


def failures(folder: Path, *reasons: str) -> str:
    rows = [trial(number, "failed", None) | {"reason": reason} for number, reason in enumerate(reasons)]
    write(folder, rows, {}, {"last_value": 4.0})
    output = io.StringIO()
    print_leaderboard(build_leaderboard(folder, "val_rmse"), Console(file=output, width=120))
    return output.getvalue()


def test_verdict_names_the_one_reason_of_all_failures(tmp_path: Path) -> None:
    too_large = "too large: {} parameters, search.constraints.max_parameters is 10"
    text = failures(tmp_path / "large", too_large.format("1,104"), too_large.format("20,304"))
    reason = too_large.format("1,104")
    assert f"No trial could be scored (2 refused), all for this reason: {reason}. The reasons" in text
    text = failures(tmp_path / "one", "RuntimeError: shapes\n[red] [3, 4] do not fit.")
    assert "(1 failed) for this reason: RuntimeError: shapes [red] [3, 4] do not fit. The reasons" in text
    for folder, reasons in {"two": ("worker died", "out of memory"), "cut": ("worker died", "interrupted")}.items():
        assert "for this reason" not in failures(tmp_path / folder, *reasons)


def test_print_leaderboard_fits_a_narrow_terminal_and_shows_the_best_possible(tmp_path: Path) -> None:
    write(tmp_path, [trial(n, "completed", 3.0 + n) for n in range(15)], {14: 9.0}, {"mean": 20.0})
    board = build_leaderboard(tmp_path, "val_rmse")
    for width in (80, 120):
        output = io.StringIO()
        print_leaderboard(board, Console(file=output, width=width), {"validation": 1.25, "test": 1.5})
        lines = output.getvalue().splitlines()
        table = [line for line in lines if "won" not in line]
        assert max(map(len, table)) <= width
        assert any("best possible" in line and "1.25" in line for line in lines)
        assert any(line.split()[:3] == ["15", "14", "lstm"] for line in lines), "rank, trial, model"
        # Ten best, and the finalist beyond them.
        assert sum("lstm " in line for line in table) == 11


def with_seeds(board: Leaderboard, scale: float) -> Leaderboard:
    """The same in other units, each trial trained with several seeds, with 662 parameters, in 47 epochs and 10 s."""
    trials = [
        replace(
            entry,
            validation={"rmse": (1.234 + rank) * scale},
            test={"rmse": (5.678 + rank) * scale, "mse_standardised": 32.24, "mae_standardised": 1.893},
            validation_error=0.02345 * scale,
            test_error=0.3456 * scale,
            parameters=662,
            epochs=47,
            seconds=10.0,
        )
        for rank, entry in enumerate(board.trials)
    ]
    return replace(board, trials=trials)


@pytest.mark.parametrize("scale", [1, 1e5])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 110, 120, 160])
def test_print_leaderboard_never_cuts_figures_off(width: int, scale: float, tmp_path: Path) -> None:
    write(tmp_path, [trial(n, "completed", 1.0 + n) for n in range(3)], {}, {"mean": 9.0})
    output = io.StringIO()
    print_leaderboard(with_seeds(build_leaderboard(tmp_path, "val_rmse"), scale), Console(file=output, width=width))
    table = output.getvalue().partition("± standard error")[0].rstrip().splitlines()
    assert max(map(len, table)) <= width
    assert any("trial" in line and "model" in line for line in table)
    words = " ".join(table).split()
    small = ("1.234", "0.023", "5.678", "0.35", "2.234", "6.678")
    for figure in small if scale == 1 else ("123,400", "2,345", "567,800", "34,560", "223,400", "667,800"):
        assert figure in words, "figures of the objective are whole"
    headings = " ".join(table[: next(n for n, line in enumerate(table) if "─" in line)])
    further = {"para": "662", "MSE s": "32.24", "MAE s": "1.893", "epo": "47", "sec": "10.0"}
    shown = [heading in headings for heading in further]  # by their beginnings, as their ends may be cut off
    assert shown == [figure in words for figure in further.values()], "a column is shown whole or not at all"
    assert shown == sorted(shown, reverse=True), "the last go first"
    assert all(shown) or width < 160
    assert shown[0] or width < 80 or (scale > 1 and width < 100)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_print_front_never_cuts_figures_off(width: int) -> None:
    goals = ["val_mse_standardised", "parameters", "seconds", "step_milliseconds"]
    row = {"trial": 0, "name": "xlstm ms·2 · d32", "status": "completed"}
    output = io.StringIO()
    print_front(
        [row | dict(zip(goals, (0.1234, 123_456, 1234.5, 12.5), strict=True))], goals, Console(file=output, width=width)
    )
    table = output.getvalue().partition("in all")[2].splitlines()
    assert max(map(len, table)) <= width
    assert set(" ".join(table).split()) >= {"0.1234", "123,456", "1,234", "12.50"}


def test_verdict_and_summary_say_how_sure_the_lead_is(tmp_path: Path) -> None:
    write_search(tmp_path)
    board = build_leaderboard(tmp_path, "val_rmse")
    summary = board.summary()
    assert board.lead is not None and board.lead.told_apart
    assert 0 < summary["gain_test_percent_low"] < summary["gain_test_percent"] < summary["gain_test_percent_high"]
    said = verdict(board)
    assert "On test the two are told apart: 95% interval" in said
    gain = board.lead.gain_percent
    assert said.count(f" {'lower' if gain > 0 else 'higher'} than the RMSE of") == 1, "the interval has the gain's sign"


def test_verdict_says_when_a_lead_may_be_chance(tmp_path: Path) -> None:
    write_search(tmp_path / "chance", families={"lstm": 1.0}, baselines={"last_value": 1.01})
    assert "On test the two are not told apart: 95%" in verdict(build_leaderboard(tmp_path / "chance", "val_rmse"))
    write_search(tmp_path / "small", labels=forecast_labels(6))
    board = build_leaderboard(tmp_path / "small", "val_rmse")
    assert "The test part is too small to tell the two apart" in verdict(board)
    write_search(tmp_path / "lag", families={"lstm": 3.0}, baselines={"last_value": 1.0})
    text = verdict(build_leaderboard(tmp_path / "lag", "val_rmse"))
    assert "told apart: 95%" in text and "another seed may reverse it, and 'population: {seeds: 3}'" in text


def test_verdict_tells_an_interval_that_several_comparisons_take_back(tmp_path: Path) -> None:
    write_search(tmp_path)
    board = build_leaderboard(tmp_path, "val_rmse")
    assert board.lead is not None and board.evidence is not None
    text = how_sure(replace(board.lead, told_apart=False), board.evidence)
    assert "not told apart when 6 comparisons are made" in text
    text = how_sure(replace(board.lead, told_apart=False, blocks=6.2, p_adjusted=0.02), board.evidence)
    assert "since about 6 independent blocks ask for an adjusted p below 0.01, and it is 0.020: 95%" in text
    text = how_sure(replace(board.lead, told_apart=False, beyond="all sequences have one year"), board.evidence)
    assert text.startswith("Whether that would hold elsewhere cannot be said, since all sequences have one year: 95%")
    assert "mean over 3 seeds" in how_sure(replace(board.lead, seeds=3), board.evidence)


def test_summary_counts_what_the_search_cost(tmp_path: Path) -> None:
    write_search(tmp_path)
    summary = build_leaderboard(tmp_path, "val_rmse").summary()
    trained = 3 * 5  # three families with four scored trials and a failed one
    assert summary["cpu_hours"] == trained * TRIAL_SECONDS / 3600
    assert summary["gpu_hours"] == 0.5 * summary["cpu_hours"]
    assert summary["trials_per_hour"] == trained
    write_search(tmp_path / "running", ended=None, seconds=0.0, status="running")
    assert "trials_per_hour" not in build_leaderboard(tmp_path / "running", "val_rmse").summary()
    write_search(tmp_path / "old", row=False)
    assert "cpu_hours" not in build_leaderboard(tmp_path / "old", "val_rmse").summary()


def test_lead_is_the_winners_alone(tmp_path: Path) -> None:
    write_search(tmp_path)
    with ResultsWriter(tmp_path) as results:  # a resumed search has found better, and not looked at the test part yet
        results.trial(trial(50, "completed", 0.1))
    board = build_leaderboard(tmp_path, "val_rmse")
    assert board.winner is not None and board.winner.trial == 50 and board.lead is None
