"""Figures and sections one by one: what they draw, what they say, and what they do when they cannot."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_tables
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from page_tables import SPEC, few, figure, figures, trial_row, write_search

from xlstm_tune.report.blocks import Cell, Figure, Figures, Section, Sentences, Table, Tiles, embedded, label, plain
from xlstm_tune.report.budget import FamilyBudget
from xlstm_tune.report.evidence import Difference, Evidence
from xlstm_tune.report.evidence import Model as Rival
from xlstm_tune.report.forecasts import Model, forecasts_of, models_of
from xlstm_tune.report.parallel import parallel_coordinates
from xlstm_tune.report.record import Record, read_record
from xlstm_tune.report.sections.cost import cost
from xlstm_tune.report.sections.curves import learning_curves
from xlstm_tune.report.sections.differences import differences, equal_budget, metrics
from xlstm_tune.report.sections.excluded import excluded
from xlstm_tune.report.sections.progress import progress
from xlstm_tune.report.sections.settings import importances, settings
from xlstm_tune.report.sections.standing import leaderboard, summary
from xlstm_tune.report.sections.winner import winner
from xlstm_tune.report.study import rebuild
from xlstm_tune.report.style import Palette, duration, is_wide
from xlstm_tune.results import ResultsWriter, read

LONG = "xlstm·(ms)×2 · 32 · <decomposition> trend · projection 16 · lr 9.2e-3"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("search") / "made"
    write_search(folder, 48, series=["north", "south"], samples=40)
    return read_record(folder)


def table(section: Section | None) -> Table:
    assert section is not None
    return next(block for block in section.blocks if isinstance(block, Table))


def sentences(section: Section | None) -> str:
    assert section is not None
    return " ".join(text for block in section.blocks if isinstance(block, Sentences) for text in block.texts)


def test_embedded_json_can_end_no_script_and_keeps_its_values() -> None:
    value = {"a": ["</script>", "&amp;\u2028"], "b": np.array([1.0, np.nan]), "c": math.inf, "d": 1 / 3, "e": (1, True)}
    text = embedded(value)
    assert not set("<>&\u2028") & set(text)
    expected = {"a": ["</script>", "&amp;\u2028"], "b": [1.0, None], "c": None, "d": 0.333333, "e": [1, True]}
    assert json.loads(text) == expected == plain(value)


def test_label_shows_tags_and_shortens() -> None:
    assert label("<b>&") == "&lt;b&gt;&amp;" and label("a\n b") == "a b"
    assert label("x" * 100, 10) == "x" * 9 + "…"


def test_duration_and_wide_axes() -> None:
    assert [duration(value) for value in (None, 12.34, 200.0, 3900.0, 180_000.0)] == [
        "", "12.3 s", "3 min 20 s", "1 h 5 min", "2 d 2 h",
    ]  # fmt: skip
    assert is_wide([0.1, 1.0, 100.0]) and not is_wide([1.0, 2.0]) and not is_wide([-1.0, 100.0]) and not is_wide([])
    assert not is_wide([*[1.0] * 99, 1e9])  # one diverged trial


def test_palette_gives_other_families_their_own_colours() -> None:
    palette = Palette(["xlstm", "new", None])
    names = ["lstm", "slstm", "mlstm", "xlstm", "new", "unknown"]
    assert len({palette.color(name) for name in names}) == len({palette.symbol(name) for name in names}) == 6
    assert palette.present(["new", "lstm", "new"]) == ["lstm", "new"] and palette.color("nobody")


def test_a_search_for_several_objectives_lists_what_no_other_beats(tmp_path: Path) -> None:
    spec = {**SPEC, "search": {**SPEC["search"], "costs": ["parameters"]}}
    rows = write_search(tmp_path / "made", 8, spec=spec)
    with ResultsWriter(tmp_path / "made") as writer:
        for row in rows:
            writer.trial(row | {"name": LONG, "parameters": row["parameters"] // 100})
    record = read_record(tmp_path / "made")
    made = table(cost(record))
    assert made.caption.startswith("Pareto front: ") and len(made.rows) >= 1
    assert made.rows[0].cells[0].text == LONG, "the page escapes it and gives it room"
    assert {row.cells[2].text for row in made.rows} <= {"160", "320", "640"}, "a count has no digits behind the point"
    drawn = figure(cost(record), "cost-parameters").caption
    assert re.search(r" for (160|320|640) parameters[.;]", drawn)
    errors, sizes = ([row.cells[place].sort for row in made.rows] for place in (1, 2))
    assert errors == sorted(errors) and sizes == sorted(sizes, reverse=True)
    assert min(errors) == min(row[record.objective] for row in record.scored)


def test_rebuilt_study_has_the_states_values_and_distributions_of_the_search(record: Record) -> None:
    rebuilt = rebuild(record, pruned_count=False)
    states = [trial.state for trial in rebuilt.study.trials]
    told = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    assert states == [told[row["status"]] for row in record.trials if row["status"] != "duplicate"]
    first = rebuilt.study.trials[0]
    assert first.value == record.trials[0]["val_rmse"] and first.params == record.trials[0]["params"]
    assert sorted(first.intermediate_values) == list(range(1, 13))
    assert rebuilt.distributions["training.learning_rate"] == FloatDistribution(0.0005, 0.01, log=True)
    assert rebuilt.distributions["model.pattern"] == CategoricalDistribution(("ms", "sm"))
    counted = rebuild(record).study
    assert counted.best_value == min(row["val_rmse"] for row in record.scored)


def test_distributions_are_inferred_where_the_search_file_is_silent_or_does_not_fit(tmp_path: Path) -> None:
    points = [{"a": 1, "b": 0.001, "c": "x", "d": True}, {"a": 5, "b": 1.0, "c": "y", "d": False}]
    rebuilt = rebuild(few(tmp_path, [trial_row(n, one, 3.0 + n) for n, one in enumerate(points)]))
    assert rebuilt.distributions == {
        "a": IntDistribution(1, 5),
        "b": FloatDistribution(0.001, 1.0, log=True),
        "c": CategoricalDistribution(("x", "y")),
        "d": CategoricalDistribution((True, False)),
    }


def test_slices_tell_the_best_of_each_value(tmp_path: Path) -> None:
    values = (("ms", 3.0), ("sm", 3.1), ("ms", 2.9), ("sm", 4.0), ("sm", 2.95), ("ms", 5.0))
    made = few(tmp_path, [trial_row(n, {"model.pattern": name}, value) for n, (name, value) in enumerate(values)])
    said = figure(settings(made), "slice-0").caption
    assert said == "model.pattern: the best of 6 trials had ms. The best of each value: ms 2.900, sm 2.950."


@pytest.mark.parametrize("points", [[{"a": 1}], [{"a": 1}] * 6, [{}, {}]])
def test_figures_that_trials_do_not_allow_become_sentences(tmp_path: Path, points: list[dict[str, Any]]) -> None:
    made = few(tmp_path, [trial_row(n, one, 3.0) for n, one in enumerate(points)])
    rebuilt = rebuild(made)
    assert isinstance(parallel_coordinates(made, rebuilt), Sentences)
    assert isinstance(importances(rebuilt)[1], Sentences)
    assert settings(made) is not None


def test_parallel_coordinates_hold_every_scored_trial_in_few_traces(record: Record) -> None:
    drawn = parallel_coordinates(record, rebuild(record))
    assert isinstance(drawn, Figure)
    assert len(drawn.data) <= 8
    assert sum(trace["x"].count(None) for trace in drawn.data) == len(record.scored)
    shown = [trace["name"] for trace in drawn.data if trace["showlegend"]]
    assert len(shown) == len(set(shown)) == 4
    heights = [one for trace in drawn.data for one in trace["y"] if one is not None]
    assert min(heights) < 0 and max(heights) <= 1  # settings that a trial does not have lie below
    assert f"of {len(record.scored)} the best" in drawn.caption


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((3.0, 4.0), "The first, trial 0, stayed the best: 3.000."),
        ((4.0, 3.0), "The best so far fell from 4.000 to 3.000, which trial 1 reached (100 % of the way through)."),
    ],
)
def test_progress_says_of_a_fall_only_where_there_was_one(values: tuple[float, ...], said: str, tmp_path: Path) -> None:
    made = few(tmp_path, [trial_row(number, {}, value) for number, value in enumerate(values)])
    assert figure(progress(made), "history").caption.endswith(said)


def test_curves_mark_stopped_and_failed_trials(record: Record) -> None:
    drawn = figure(learning_curves(record), "curves")
    names = [trace["name"] for trace in drawn.data]
    assert {"stopped early", "failed", "the winner"} <= set(names)
    dashes = {trace["line"]["dash"] for trace in drawn.data if trace["mode"] == "lines"}
    assert dashes == {"solid", "dot"}
    stopped = next(trace for trace in drawn.data if trace["name"] == "stopped early")
    assert len(stopped["x"]) == record.counts["pruned"]
    assert f"{record.counts['pruned']} were stopped early" in drawn.caption


def test_curves_of_a_wide_range_have_a_logarithmic_axis(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        for epoch in range(1, 9):
            writer.epoch({"trial": 0, "epoch": epoch, **figures(10.0 ** (4 - epoch), "val_")})
            writer.epoch({"trial": 1, "epoch": epoch, "val_rmse": math.nan})
    drawn = figure(learning_curves(read_record(tmp_path)), "curves")
    assert drawn.layout["yaxis"]["type"] == "log" and drawn.data[0]["name"] == "still running"
    assert drawn.caption.startswith("1 trial, up to 8 epochs")


def test_winner_is_drawn_on_test_beside_the_best_baseline(record: Record) -> None:
    made = winner(record)
    assert made is not None and "on the test part" in made.lead
    drawn = figure(made, "forecast-0")
    assert [trace["name"] for trace in drawn.data][:2] == ["actual", "dlinear"]
    assert len(figure(made, "by-step").data) == 7 and figure(made, "by-series").data[0]["y"]
    expected = forecasts_of(record.predictions, "test", Model("dlinear", None))
    assert expected is not None
    steps, errors = expected.rmse_by_step()
    first = [
        (p - a) for p, a, step in zip(expected.predicted, expected.actual, expected.step, strict=True) if step == 1
    ]
    assert steps == [1, 2, 3, 4] and errors[0] == pytest.approx(np.sqrt(np.mean(np.square(first))))


def evidence_of(
    metrics: dict[Rival, dict[str, float | None]], differences: list[Difference], **others: Any
) -> Evidence:
    """Of these models on a test part of 279 windows, drawn in blocks of 14."""
    plain: dict[str, Any] = {
        "part": "test",
        "models": list(metrics),
        "winner": None,
        "best_baseline": None,
        "by_group": {},
        "by_target": {},
        "others": [],
        "unit": "windows",
        "samples": 279,
        "compared": 279,
        "block": 14,
        "blocks": 19.9,
        "resampled": "",
        "notes": [],
    }
    return Evidence(metrics=metrics, differences=differences, **plain | others)


def test_errors_of_single_samples_are_shown_by_the_groups_of_the_evidence(tmp_path: Path) -> None:
    sequences = [f"county={county}, year={year}" for county in "ab" for year in range(8)]
    spec = {**SPEC, "data": {"task": "regression"}}
    write_search(tmp_path / "made", 8, spec=spec, series=sequences, samples=1, horizon=1)
    made = read_record(tmp_path / "made")
    assert made.board.winner is not None
    best, other = Rival("any", "any", made.board.winner.trial), Rival("dlinear", None, None)
    by_group = {
        best: {"a": 1.0, "b": 2.0},
        other: {"a": 2.0, "b": 1.5},
        Rival("mean", None, None): {"a": 9.0, "b": 9.0},
    }
    evidence = evidence_of({best: {}, other: {}}, [], best_baseline=other, by_group=by_group)
    drawn = figure(winner(dataclasses.replace(made, evidence=evidence)), "by-series")
    assert drawn.title == "Error by groups" and [list(trace["x"]) for trace in drawn.data] == [[2.0, 1.5], [1.0, 2.0]]
    assert "better than dlinear in 1 of 2" in drawn.caption


@pytest.mark.parametrize("form", ["{year}-12-31", "{year}_52", "{year}", "31.12.{year}", ""])
def test_errors_of_sequences_are_drawn_in_order_of_time_or_not_said_to_be(form: str, tmp_path: Path) -> None:
    """The table is in order of counties, whose errors differ more than those of the years."""
    labels = [(f"county={c}, year={y}", form.format(year=2000 + y)) for c in range(6) for y in range(8)]
    spec = {"data": {"task": "regression"} | ({"time": {"column": "date"}} if form else {})}
    report_tables.write_search(tmp_path, "regression", labels=labels, spec=spec)
    error = np.array([[10.0 * (county < 3) + year for year in range(8)] for county in range(6)]).reshape(-1, 1, 1)
    with ResultsWriter(tmp_path) as writer:
        table_ = report_tables.prediction_table("xlstm", 0, "test", labels, np.zeros_like(error), error)
        writer.predictions(table_)
    drawn = figure(winner(read_record(tmp_path)), "residuals")
    if form in ("31.12.{year}", ""):
        assert "in the table's order" in drawn.caption and "first half" not in drawn.caption
        assert list(drawn.data[0]["y"][:8]) == list(range(10, 18))
    else:
        assert "in order of time: 48 samples. Mean error of the first half +6.5, of the second +10.5." in drawn.caption
        assert sorted(drawn.data[0]["y"][:6]) == [0, 0, 0, 10, 10, 10]


def test_trial_that_was_cut_short_is_unfinished_not_failed(tmp_path: Path) -> None:
    write_search(tmp_path, 8)
    rows = read(tmp_path, "trials").to_pylist()
    (failed,) = (row for row in rows if row["status"] == "failed")
    with ResultsWriter(tmp_path) as writer:
        writer.trial(failed | {"reason": "interrupted", "params": json.loads(failed["params"])})
    made = read_record(tmp_path)
    assert made.counts["unfinished"] == 1 and not made.counts["failed"]
    assert "1 trial had not ended when the search did (4: interrupted); --resume" in sentences(excluded(made))
    tiles = next(block for block in summary(made).blocks if isinstance(block, Tiles))
    assert any("1 unfinished" in tile.note for tile in tiles.tiles)


def test_winner_without_test_predictions_is_drawn_on_validation(record: Record) -> None:
    import pyarrow.compute as pc

    only = record.predictions.filter(pc.equal(record.predictions["part"], "validation"))
    assert {one.trial is None for one in models_of(only, "validation")} == {True, False}
    made = winner(dataclasses.replace(record, predictions=only))
    assert made is not None and "its test predictions are not known" in made.lead
    none = dataclasses.replace(record, predictions=only.slice(0, 0))
    assert "are not in results/predictions" in sentences(winner(none))
    assert "not known yet" in sentences(winner(dataclasses.replace(none, status="interrupted")))


def test_predictions_that_are_no_numbers_are_left_out(record: Record) -> None:
    import pyarrow as pa

    broken = record.predictions.set_column(8, "predicted", pa.array([math.nan] * record.predictions.num_rows))
    assert "None of its predictions" in sentences(winner(dataclasses.replace(record, predictions=broken)))


def test_leaderboard_sorts_by_value_and_marks_rows(record: Record) -> None:
    made = table(leaderboard(record))
    assert made.rows[0].style == "winner" and [row.style for row in made.rows][-3:] == ["baseline"] * 3
    values = [row.cells[3].sort for row in made.rows[:-3]]
    assert values == sorted(values) and any("stopped early" in row.cells[1].note for row in made.rows)
    assert all(len(row.cells) == len(made.columns) for row in made.rows)


def test_differences_show_intervals_and_say_who_is_told_apart(record: Record) -> None:
    one, two, none = Rival("lstm×1 · 32", "lstm", 4), Rival("ms · 32", "xlstm", 7), Rival("dlinear", None, None)
    pairs = [
        Difference(one, two, 0.1, -0.1, 0.3, 2.0, -2.0, 6.0, 0.4, 0.4, False, 20.0, 1),
        Difference(one, none, 0.5, 0.3, 0.7, 11.0, 7.0, 15.0, 0.0001, 0.0002, True, 20.0, 1),
        Difference(
            two, none, 0.5, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, False, 20.0, 1
        ),
    ]
    figures_ = {one: {"rmse": 3.0, "mape": None}, two: {"rmse": 3.1, "mape": None}, none: {"rmse": 3.5, "mape": None}}
    evidence = evidence_of(figures_, pairs, notes=["few samples"], winner=two)
    made = differences(dataclasses.replace(record, evidence=evidence))
    drawn = figure(made, "intervals")
    told = next(trace for trace in drawn.data if trace["name"] == "told apart")
    assert told["x"] == [11.0] and told["error_x"]["array"] == [4.0] and told["error_x"]["arrayminus"] == [4.0]
    embedded([drawn.data, drawn.layout])
    texts = [[cell.text for cell in row.cells] for row in table(made).rows]
    assert texts[0] == ["lstm×1 · 32, trial 4", "ms · 32, trial 7", "+2.0", "-2.0 … +6.0", "0.400", "not told apart"]
    assert texts[1][3:] == ["+7.0 … +15.0", "< 0.001", "told apart"] and texts[2][2:5] == ["not known"] * 3
    assert (
        "1 is told apart" in drawn.caption
        and "few samples" in sentences(made)
        and made is not None
        and "blocks of 14 windows" in made.lead
        and "another seed may reverse it" in made.lead
    )
    all_figures = table(metrics(dataclasses.replace(record, evidence=evidence)))
    assert [column.title for column in all_figures.columns] == ["Model", "RMSE"]  # nobody has a MAPE
    assert [row.style for row in all_figures.rows] == ["", "winner", "baseline"]
    assert all_figures.rows[1].cells[1] == Cell("3.100", 3.1)


def test_memory_of_a_worker_is_no_cost_of_a_trial_on_a_cpu(record: Record) -> None:
    def shown(gpus: float | None) -> list[str]:
        made = cost(dataclasses.replace(record, gpus_per_trial=gpus))
        assert made is not None and isinstance(made.blocks[0], Figures)
        return [one.id for one in made.blocks[0].figures]

    assert "cost-peak_memory_mib" in shown(0.5) and "cost-peak_memory_mib" in shown(None)
    assert shown(0.0) == [one for one in shown(1.0) if one != "cost-peak_memory_mib"]


def test_equal_budget_draws_a_curve_for_each_family(record: Record) -> None:
    budgets = [
        FamilyBudget("lstm", 12, 5, 3.4, 3.6, 0.05, [4.0, 3.8, 3.7]),
        FamilyBudget("xlstm", 5, 5, 3.5, 3.5, None, [3.5]),
    ]
    made = equal_budget(dataclasses.replace(record, budgets=budgets))
    assert len(figure(made, "budget").data) == 2 and "Of 5 trials each, xlstm" in figure(made, "budget").caption
    assert [row.cells[0].text for row in table(made).rows] == ["xlstm", "lstm"]
    assert table(made).rows[1].cells[3].text == "3.600 ± 0.05"
    stopped = sum(row["status"] == "pruned" for row in record.scored)
    assert stopped > 1
    assert f"{stopped} of {len(record.scored)} trials were stopped early and count with the" in sentences(made)
    pruned = [row["trial"] for row in record.trials if row["status"] == "pruned"]
    cut = [row | {"reason": "time budget"} if row["trial"] in pruned[1:] else row for row in record.trials]
    made = equal_budget(dataclasses.replace(record, budgets=budgets, trials=cut))
    one = f"1 of {len(record.scored)} trials was stopped early and counts with the epochs that it had, so"
    assert one in sentences(made), "what the end of the search cut short, no scheduler stopped"
    bare = dataclasses.replace(record, budgets=(), evidence=None)
    assert equal_budget(bare) is None and differences(bare) is None and metrics(bare) is None


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two #rrggbb colours."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_of_both_modes_can_be_told_from_the_page() -> None:
    css = (files("xlstm_tune.report") / "templates" / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    for mode in (light, dark):
        colors = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", mode))
        for ground in (colors["page"], colors["surface"]):
            for name in ("text", "muted", "accent", "limit", "bad"):
                assert contrast(colors[name], ground) >= 4.5, name
            for name in ("baseline", *(f"series-{place}" for place in range(1, 7))):
                assert contrast(colors[name], ground) >= 3, name
        assert contrast(colors["text"], colors["accent-soft"]) >= 4.5
        assert contrast(colors["muted"], colors["accent-soft"]) >= 4.5
