"""Evidence from the tables of a search: who is compared with whom, on what, and when two models are told apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_tables import (
    BASELINES,
    FAMILIES,
    figures,
    forecast_labels,
    prediction_table,
    sequence_labels,
    write_search,
    write_trials,
)

from xlstm_tune.errors import StorageError
from xlstm_tune.report.dependence import clusterings, moments
from xlstm_tune.report.differences import compare_pairs
from xlstm_tune.report.evidence import Evidence, Model, gather
from xlstm_tune.report.predictions import Facts, Judged, key_values
from xlstm_tune.results import ResultsWriter, read


def of(folder: Path, **more: object) -> Evidence:
    write_search(folder, **more)  # type: ignore[arg-type]
    found = gather(folder)
    assert found is not None
    return found


def judged(series: list[str], time: list[str]) -> Judged:
    n = len(time)
    return Judged("test", tuple(series), tuple(time), ("y",), np.zeros((n, 1, 1)), {})


def test_gather_holds_every_model_and_the_comparisons_that_matter(tmp_path: Path) -> None:
    found = of(tmp_path)
    assert found.part == "test" and found.unit == "windows" and found.samples == 240 and found.notes == []
    assert [model.name for model in found.models] == ["xlstm d32", "slstm d32", "lstm d32", "last_value", "mean"]
    assert found.winner == Model("xlstm d32", "xlstm", 0) and found.best_baseline == Model("last_value", None, None)
    pairs = [(one.a.name, one.b.name) for one in found.differences]
    others = ["slstm d32", "lstm d32", "last_value", "mean"]
    assert pairs == [("xlstm d32", name) for name in others] + [
        ("slstm d32", "last_value"),
        ("lstm d32", "last_value"),
    ]
    (other,) = found.others
    assert (other.a.name, other.b.name) == ("slstm d32", "lstm d32") and other.p_adjusted == other.p
    lead = found.difference(found.winner, found.best_baseline)
    assert lead is not None and lead.told_apart and lead.p_adjusted >= lead.p
    assert 0 < lead.low < lead.gain < lead.high
    for one in (lead, other):
        better, worse = (found.metrics[model]["rmse"] for model in (one.a, one.b))
        assert better is not None and worse is not None
        assert one.gain == pytest.approx(worse - better)
        assert one.gain_percent == pytest.approx(100 * (1 - better / worse))
        assert one.low_percent == pytest.approx(100 * one.low / worse)
    assert found.by_group[lead.a] == {} and found.by_target[lead.a] == {}
    assert found.metrics[lead.a]["mase"] == pytest.approx((found.metrics[lead.a]["mae"] or 0) / 2)
    assert found.block >= 3 and found.blocks == 240 / found.block
    assert gather(tmp_path) == found


def test_block_is_at_least_the_horizon(tmp_path: Path) -> None:
    found = of(tmp_path, horizon=14)
    assert found.block >= 14


def test_models_that_are_equally_good_are_not_told_apart(tmp_path: Path) -> None:
    found = of(tmp_path, families={"lstm": 1.0, "xlstm": 1.0}, baselines={"last_value": 1.0}, seed=3)
    assert not any(one.told_apart for one in found.differences)
    assert all(one.low < 0 < one.high for one in found.differences)


def test_exact_tie_is_no_difference(tmp_path: Path) -> None:
    found = of(tmp_path, families={"lstm": 1.0, "xlstm": 1.0}, baselines={"last_value": 1.0}, shared=1.0)
    for one in found.differences:
        assert one.gain == pytest.approx(0, abs=1e-9) and one.p > 0.9 and one.p_adjusted == 1.0 and not one.told_apart


def test_few_windows_never_tell_models_apart(tmp_path: Path) -> None:
    found = of(tmp_path, labels=forecast_labels(6), baselines={"mean": 40.0})
    assert found.blocks < 4 and not any(one.told_apart for one in found.differences)
    assert any("with fewer than 4 nothing at all" in note for note in found.notes)


def test_few_blocks_tell_apart_what_is_beyond_doubt_and_nothing_else(tmp_path: Path) -> None:
    found = of(tmp_path, labels=forecast_labels(24), baselines={"mean": 40.0})
    assert found.winner is not None and 4 <= found.blocks < 10
    against = {one.b.name: one for one in found.differences if one.a == found.winner}
    assert against["mean"].told_apart and against["mean"].p_adjusted < 0.01
    assert not against["slstm d32"].told_apart
    assert any("nothing is told apart unless its adjusted p is below 0.01" in note for note in found.notes)


def test_each_pair_has_blocks_of_its_own_length(tmp_path: Path) -> None:
    """A model that is wrong for months on end says nothing about how long the others' errors last."""
    labels = forecast_labels(240)
    write_search(tmp_path, horizon=1)
    generator = np.random.default_rng(1)
    error = {"xlstm": generator.normal(size=240), "lstm": 1.2 * generator.normal(size=240)}
    error["last_value"] = 8 + 3 * np.cumsum(generator.normal(size=240)) / 12
    with ResultsWriter(tmp_path) as writer:
        for model, trial in (("xlstm", 0), ("lstm", 12), ("last_value", None)):
            values = error[model].reshape(-1, 1, 1)
            writer.predictions(prediction_table(model, trial, "test", labels, np.zeros_like(values), values))
    found = gather(tmp_path)
    assert found is not None and found.winner is not None
    blocks = {one.b.name: one.blocks for one in found.differences if one.a == found.winner}
    assert blocks["lstm d32"] >= 60 and blocks["last_value"] < 15
    assert found.blocks <= blocks["last_value"] and " to " in found.resampled


def write_members(folder: Path, seeds: dict[int, list[float]]) -> None:
    """Populations: trial → RMSE on test of each seed, the first of which is the best on validation."""
    rows = {row["trial"]: row for row in read(folder, "trials").to_pylist()}
    with ResultsWriter(folder) as writer:
        for trial, scores in seeds.items():
            writer.trial({**rows[trial], "members": len(scores)})
            for member, score in enumerate(scores):
                row = {"trial": trial, "member": member, "seed": member, "setting": {}, "status": "completed"}
                writer.members([row | figures(1.0 + member, "val_") | figures(score, "test_")])


def test_seeds_that_differ_widen_the_interval_and_move_it_to_their_mean(tmp_path: Path) -> None:
    alone = of(tmp_path, families={"lstm": 1.0, "xlstm": 1.3}, baselines={"mean": 4.0})
    (one,) = (each for each in alone.differences if each.b.family == "xlstm")
    assert one.told_apart and one.seeds == 1
    write_members(tmp_path, {0: [1.0, 1.4, 1.2], 6: [1.3, 1.1, 1.5]})
    found = gather(tmp_path)
    assert found is not None
    (many,) = (each for each in found.differences if each.b.family == "xlstm")
    assert many.seeds == 3 and not many.told_apart and many.low < 0 < many.high
    assert many.gain == pytest.approx(one.gain - 0.2, abs=1e-9)
    (plain,) = (each for each in found.differences if each.a == many.a and each.b.name == "mean")
    assert plain.seeds == 3 and plain.told_apart
    assert any("have means over seeds" in note for note in found.notes)


def test_equal_families_of_three_seeds_are_rarely_told_apart() -> None:
    """Every seed is as good as its luck: by single runs most such pairs are told apart."""
    generator = np.random.default_rng(11)
    labels = forecast_labels(40)
    series, time = zip(*labels, strict=True)
    models = [Model("a", "a", 0), Model("b", "b", 1)]
    claims = {1: 0, 3: 0}
    for _ in range(80):
        errors = generator.normal(size=(2, 3, 40)) * (1 + 0.4 * generator.normal(size=(2, 3, 1)))
        scores = np.sqrt(np.square(errors).mean(-1))
        predicted = {model: errors[place, 0].reshape(-1, 1, 1) for place, model in enumerate(models)}
        part = Judged("test", series, time, ("y",), np.zeros((40, 1, 1)), predicted)
        for count in claims:
            seeds = {model: scores[place] for place, model in enumerate(models)} if count > 1 else None
            (one,) = compare_pairs(part, [(models[0], models[1])], Facts(task="forecast"), seeds).differences
            claims[count] += one.told_apart
    assert claims[1] > 25 and claims[3] <= 6


def test_model_that_was_stopped_early_is_marked(tmp_path: Path) -> None:
    write_search(tmp_path)
    rows = {row["trial"]: row for row in read(tmp_path, "trials").to_pylist()}
    with ResultsWriter(tmp_path) as writer:
        writer.trial({**rows[6], "status": "pruned"})
    found = gather(tmp_path)
    assert found is not None
    assert {model.family: model.early for model in found.models if model.family} == {
        "xlstm": "",
        "slstm": "stopped early",
        "lstm": "",
    }


def test_one_window_is_not_compared_but_scored(tmp_path: Path) -> None:
    found = of(tmp_path, labels=forecast_labels(1))
    assert all(math.isnan(one.low) and one.p == 1.0 and not one.told_apart for one in found.differences)
    assert found.metrics[found.models[0]]["rmse"] is not None


def test_validation_stands_in_and_the_notes_say_that_it_flatters(tmp_path: Path) -> None:
    found = of(tmp_path, parts=("validation",))
    assert found.part == "validation" and len(found.models) == len(FAMILIES) + len(BASELINES)
    assert any("flattered" in note for note in found.notes)


def test_baselines_alone_are_scored_on_validation(tmp_path: Path) -> None:
    found = of(tmp_path, finalists=False)
    assert found.part == "validation" and found.winner is None and found.differences == [] and found.blocks == 0
    assert [model.name for model in found.models] == ["last_value", "mean"]


def test_nothing_predicted_is_no_evidence(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        write_trials(writer, FAMILIES)
    assert gather(tmp_path) is None
    with pytest.raises(StorageError, match="holds no results"):
        gather(tmp_path / "nowhere")


def test_search_without_a_row_of_its_own_is_read_too(tmp_path: Path) -> None:
    found = of(tmp_path, row=False)
    assert read(tmp_path, "search").num_rows == 0
    assert len(found.differences) == 6 and found.metrics[found.models[0]]["mase"] is None


def test_winner_is_chosen_on_validation_not_on_test(tmp_path: Path) -> None:
    write_search(tmp_path, families={"lstm": 1.0, "xlstm": 2.0})
    with ResultsWriter(tmp_path) as writer:  # a lstm that is worse on validation would be the best on test
        writer.trial({"trial": 50, "name": "lucky", "status": "completed", "family": "lstm", **figures(9.0, "val_")})
        labels, zeros = forecast_labels(240), np.zeros((240, 3, 1))
        writer.predictions(prediction_table("lstm", 50, "test", labels, zeros, zeros))
    found = gather(tmp_path)
    assert found is not None and found.winner == Model("lstm d32", "lstm", 0)
    assert not any(model.trial == 50 for model in found.models)


def test_better_trial_without_predictions_is_named(tmp_path: Path) -> None:
    write_search(tmp_path)
    with ResultsWriter(tmp_path) as writer:
        writer.trial({"trial": 50, "name": "new", "status": "completed", "family": "lstm", **figures(0.1, "val_")})
    found = gather(tmp_path)
    assert found is not None and found.winner is not None and found.winner.trial == 0
    assert any(note.startswith("Trial 50 is better on validation than trial 0") for note in found.notes)


def test_model_of_other_samples_is_left_out_with_a_note(tmp_path: Path) -> None:
    write_search(tmp_path)
    values = np.ones((200, 3, 1))
    with ResultsWriter(tmp_path) as writer:
        writer.predictions(prediction_table("mean", None, "test", forecast_labels(200), values, values))
        nothing = np.full((240, 3, 1), math.nan)
        writer.predictions(prediction_table("last_value", None, "test", forecast_labels(240), nothing, nothing))
    found = gather(tmp_path)
    assert found is not None and [model.name for model in found.models] == ["xlstm d32", "slstm d32", "lstm d32"]
    assert any(
        note == "mean was left out: the predictions kept of it are of other samples than the others'."
        for note in found.notes
    )
    assert any(note.startswith("last_value was left out: not all of its predictions") for note in found.notes)


def test_several_targets_are_scored_apart_too(tmp_path: Path) -> None:
    found = of(tmp_path, targets=("cases", "deaths"))
    assert len(found.models) == len(FAMILIES) + len(BASELINES)
    assert list(found.by_target[found.models[0]]) == ["cases", "deaths"]
    assert any("pool all targets" in note for note in found.notes)


def test_predictions_that_lack_a_row_are_left_out_with_a_note(tmp_path: Path) -> None:
    write_search(tmp_path)
    table = read(tmp_path, "predictions")
    (part,) = (tmp_path / "results" / "predictions").glob("part-*.parquet")
    (last,) = (row for row in range(table.num_rows - 720, table.num_rows - 719))
    pq.write_table(pa.concat_tables([table.slice(0, last), table.slice(last + 1)]), part)
    found = gather(tmp_path)
    assert found is not None and len(found.models) == len(FAMILIES) + len(BASELINES) - 1
    assert any("its predictions of the test part are incomplete" in note for note in found.notes)


def test_thinned_predictions_are_told_and_their_blocks_are_shorter(tmp_path: Path) -> None:
    found = of(tmp_path, horizon=24, data={"samples": {"train": 1, "validation": 1920, "test": 1920}})
    assert found.block < 24
    assert any("240 of the 1,920 samples" in note for note in found.notes)


def test_population_and_other_objectives_are_told(tmp_path: Path) -> None:
    write_search(tmp_path)
    row = read(tmp_path, "trials").to_pylist()[0]
    with ResultsWriter(tmp_path) as writer:
        writer.trial({**row, "members": 3})
    found = gather(tmp_path, "val_mae")
    assert found is not None
    assert any("best seed" in note for note in found.notes)
    assert any("chosen by val_mae" in note for note in found.notes)


def test_sequences_of_a_county_and_of_a_year_are_drawn_together(tmp_path: Path) -> None:
    found = of(tmp_path, task="regression")
    assert (found.unit, found.block, found.blocks) == ("sequences", 1, 12)
    assert found.resampled == "all sequences that share county or year together"
    assert len(found.by_group[found.models[0]]) == 20


def test_errors_are_grouped_by_what_the_search_noted(tmp_path: Path) -> None:
    found = of(tmp_path, task="regression", data={"keys": ["county", "year"], "groups": ["year"]})
    assert list(found.by_group[found.models[0]]) == [str(2000 + year) for year in range(12)]


def test_few_years_never_tell_models_apart(tmp_path: Path) -> None:
    found = of(tmp_path, task="regression", labels=sequence_labels(40, 3))
    assert not any(one.told_apart for one in found.differences)
    assert any("holds 3 values of year; with fewer than 10" in note for note in found.notes)
    other = of(tmp_path / "one", task="regression", labels=sequence_labels(40, 1))
    assert not any(one.told_apart for one in other.differences)
    assert any("one value of year" in note for note in other.notes)


def test_of_three_keys_the_two_that_spread_most_count(tmp_path: Path) -> None:
    labels = [
        (f"state={s}, county={s}{c}, year={y}", f"{y}") for s in range(11) for c in range(3) for y in range(2000, 2012)
    ]
    found = of(tmp_path, task="regression", labels=labels, data={"keys": ["state", "county", "year"]})
    assert found.resampled.startswith("all sequences that share ") and found.resampled.count(" or ") == 1
    assert found.blocks in (11, 12) and found.differences[-1].told_apart
    assert set(found.by_group[found.models[0]]) == {str(state) for state in range(11)}


def test_errors_that_counties_share_widen_the_interval(tmp_path: Path) -> None:
    """Where a year's error is one number for all 16 counties, drawing sequences alone would be 4 times too sure."""
    widths = []
    labels = sequence_labels(16, 15)
    for counties in (1, 16):
        generator = np.random.default_rng(counties)
        folder = tmp_path / str(counties)
        write_search(folder, "regression", {"lstm": 1.0, "xlstm": 1.1}, {}, labels=labels)
        with ResultsWriter(folder) as writer:
            for trial, family in ((0, "lstm"), (6, "xlstm")):
                error = np.broadcast_to(generator.normal(size=(counties, 15)), (16, 15)).reshape(-1, 1, 1)
                writer.predictions(prediction_table(family, trial, "test", labels, np.zeros_like(error), error))
        found = gather(folder)
        assert found is not None
        widths.append(found.differences[0].high - found.differences[0].low)
    assert widths[0] > 2.5 * widths[1]


def test_moments_put_series_on_one_line() -> None:
    same = judged(["a"] * 3 + ["b"] * 3, ["1", "2", "3"] * 2)
    assert moments(same).tolist() == [0, 1, 2, 0, 1, 2]
    later = judged(["a"] * 4 + ["b"] * 3, ["2001", "2002", "2003", "2004", "2003", "2004", "2005"])
    assert moments(later).tolist() == [0, 1, 2, 3, 2, 3, 4]
    gap = judged(["a"] * 2 + ["b"] * 3, ["w9", "w11", "w9", "w10", "w11"])  # text in no order of its own
    assert moments(gap).tolist() == [0, 2, 0, 1, 2]
    apart = judged(["a"] * 2 + ["b"] * 2, ["1", "2", "3", "4"])
    assert moments(apart).tolist() == [0, 1, 0, 1]
    contrary = judged(["a"] * 2 + ["b"] * 2, ["1", "2", "2", "1"])
    assert moments(contrary).tolist() == [0, 1, 0, 1]


def test_series_that_share_their_time_count_as_one(tmp_path: Path) -> None:
    one = of(tmp_path / "one")
    many = of(tmp_path / "many", labels=forecast_labels(240, ("id=a", "id=b", "id=c")))
    assert many.samples == 720 and many.blocks <= 240 and one.blocks <= 240
    assert "all series at a time" in many.resampled and set(many.by_group[many.models[0]]) == {"id=a", "id=b", "id=c"}


def test_clusterings_of_single_keys() -> None:
    alone = judged([f"field={n}" for n in range(30)], ["365"] * 30)
    (only,), constant = clusterings(alone, Facts(task="regression", keys=("field",)))
    assert (only.name, only.count, constant) == ("sequence", 30, [])
    dated = judged([f"field={n}" for n in range(30)], [str(2000 + n % 12) for n in range(30)])
    (only,), _ = clusterings(dated, Facts(task="regression", keys=("field",)))
    assert (only.name, only.count) == ("time", 12)


def test_key_values_reads_labels_back() -> None:
    assert key_values("county=Pima, year=2006", ("county", "year")) == ("Pima", "2006")
    assert key_values("county=Pima, year=2006", None) == ("Pima", "2006")
    assert key_values("place=a, b=c, year=2006", ("place", "year")) == ("a, b=c", "2006")
    assert key_values("", ("county",)) == ()
