"""The searched space: what is refused, what is proposed, and how many distinct configurations there are."""

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_tune.errors import SpecError
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec

optuna.logging.set_verbosity(optuna.logging.ERROR)

PATTERNS = ["ss", "ms", "mm", "sm", "ssm", "sms", "mss", "smm", "mmm", "mms", "mss"]
GRID = {
    "model.hidden_size": {"choice": [64, 128, 256, 512]},
    "model.pattern": {"choice": PATTERNS},
    "model.dropout": {"choice": [0, 0.1, 0.15, 0.2]},
}
CONDITIONAL = {
    # The child stands before its parent on purpose.
    "model.pattern": {"choice": ["s", "ms", "msm"], "when": {"model.family": "xlstm"}},
    "model.family": {"choice": ["lstm", "slstm", "xlstm"]},
    "model.layers": {"int": [1, 3], "when": {"model.family": ["lstm", "slstm"]}},
    "model.conv_kernel": {"choice": [0, 4], "when": {"model.pattern": ["ms", "msm"]}},
    "model.dropout": {"float": [0.0, 0.3], "step": 0.1},
    "training.learning_rate": {"log_float": [1e-4, 1e-2]},
}


def make_spec(space: dict[str, Any], search: dict[str, Any] | None = None, **sections: Any) -> SearchSpec:
    data = {"source": "x.csv", "target": "y", "lookback": 10}
    return SearchSpec.parse({"name": "t", "data": data, "space": space, "search": search or {}, **sections})


def make_space(space: dict[str, Any], search: dict[str, Any] | None = None, **sections: Any) -> Space:
    return Space.from_spec(make_spec(space, search, **sections))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "unknown key": ({"model.hiden_size": {"choice": [8]}}, {}, ["space.model.hiden_size", "'model.hidden_size'"]),
    "key without its section": ({"hidden_size": {"choice": [8]}}, {}, ["'model.hidden_size'"]),
    "setting below its section": (
        {"model": {"hidden_size": {"choice": [8, 16]}}},
        {},
        ["'space.model' is no setting", "write `model.hidden_size: {...}` instead of 'hidden_size' below 'model'"],
    ),
    "section with a range": ({"training": {"choice": [1]}}, {}, ["'space.training' is not a setting"]),
    "empty choice": ({"model.dropout": {"choice": []}}, {}, ["space.model.dropout", "empty choice"]),
    "choice of the wrong type": ({"model.hidden_size": {"choice": [64, "big"]}}, {}, ["whole number", "'big'"]),
    "fraction for a whole number": ({"model.hidden_size": {"choice": [64.5]}}, {}, ["whole number", "64.5"]),
    "truth value for a number": ({"model.layers": {"choice": [True]}}, {}, ["whole number", "True"]),
    "number for a truth value": ({"model.bias": {"choice": [0, 1]}}, {}, ["true or false"]),
    "unknown family": ({"model.family": {"choice": ["lstm", "gru"]}}, {}, ["space.model.family", "'gru'"]),
    "bad pattern": ({"model.pattern": {"choice": ["ms", "mx"]}}, {}, ["space.model.pattern", "'mx'"]),
    "choice out of bounds": ({"model.dropout": {"choice": [0.5, 1.5]}}, {}, ["less than 1", "1.5"]),
    "range out of bounds": ({"model.dropout": {"float": [0.0, 1.0]}}, {}, ["space.model.dropout", "less than 1"]),
    "float range of a whole number": ({"model.hidden_size": {"float": [16, 64]}}, {}, ["whole number"]),
    "range of a word": ({"model.family": {"int": [1, 2]}}, {}, ["space.model.family"]),
    "range the wrong way round": ({"model.layers": {"int": [4, 2]}}, {}, ["lower end below", "4 and 2"]),
    "range of one value": ({"training.warmup": {"float": [0.1, 0.1]}}, {}, ["lower end below"]),
    "log range from zero": ({"training.learning_rate": {"log_float": [0, 0.1]}}, {}, ["above 0", "logarithmic"]),
    "negative log range": ({"training.clip": {"log_float": [-1, 1]}}, {}, ["above 0", "-1"]),
    "zero step": ({"model.layers": {"int": [1, 4], "step": 0}}, {}, ["step above 0"]),
    "negative step": ({"model.dropout": {"float": [0, 0.5], "step": -0.1}}, {}, ["step above 0", "-0.1"]),
    "fractional step": ({"model.layers": {"int": [1, 4], "step": 0.5}}, {}, ["whole number as the step"]),
    "step wider than the range": ({"model.layers": {"int": [1, 4], "step": 9}}, {}, ["step 9"]),
    "condition on an unknown key": (
        {"model.layers": {"choice": [1], "when": {"model.famly": "lstm"}}},
        {},
        ["when.model.famly", "'model.family'"],
    ),
    "condition on a value never taken": (
        {"model.family": {"choice": ["lstm"]}, "model.layers": {"choice": [1], "when": {"model.family": "xlstm"}}},
        {},
        ["when.model.family", "'xlstm'", "never takes"],
    ),
    "condition on an impossible value": (
        {"model.layers": {"choice": [1], "when": {"model.family": "gru"}}},
        {},
        ["when.model.family", "'gru'"],
    ),
    "condition without values": (
        {"model.layers": {"choice": [1], "when": {"model.family": []}}},
        {},
        ["lists no value"],
    ),
    "condition on itself": (
        {"model.layers": {"choice": [1, 2], "when": {"model.layers": 1}}},
        {},
        ["model.layers → model.layers"],
    ),
    "circular condition": (
        {
            "model.layers": {"choice": [1, 2], "when": {"model.heads": 1}},
            "model.heads": {"choice": [1, 2], "when": {"model.conv_kernel": 0}},
            "model.conv_kernel": {"choice": [0, 4], "when": {"model.layers": 1}},
        },
        {},
        ["circle", "model.layers → model.heads → model.conv_kernel → model.layers"],
    ),
    "grid over a float range": (
        {"model.dropout": {"float": [0, 0.5]}},
        {"algorithm": "grid"},
        ["space.model.dropout", "grid", "step"],
    ),
    "grid over a log range": (
        {"training.learning_rate": {"log_float": [1e-4, 1e-2]}},
        {"algorithm": "grid"},
        ["grid", "choice"],
    ),
    "grid over a log_int range": ({"model.layers": {"log_int": [1, 8]}}, {"algorithm": "grid"}, ["grid", "log_int"]),
    "grid with a wrong combination": (
        {"model.heads": {"choice": [4, 3]}, "model.hidden_size": {"choice": [63, 64]}},
        {"algorithm": "grid"},
        ["3 of 4", "model.heads=4, model.hidden_size=63", "must divide", "'when'"],
    ),
    "wrong combination in a finite space": ({"model.hidden_size": {"int": [64, 67]}}, {}, ["3 of 4", "hidden_size=65"]),
    "patches longer than a lookback": (
        {"model.patch_length": {"choice": [0, 8, 16]}, "data.lookback": {"choice": [10, 20]}},
        {},
        ["1 of 6", "model.patch_length=16, data.lookback=10", "at most the lookback of 10 steps", "'when'"],
    ),
    "patch stride longer than a patch": (
        {"model.patch_length": {"choice": [0, 4, 8]}, "model.patch_stride": {"choice": [6]}},
        {},
        ["1 of 3", "model.patch_stride must be at most model.patch_length"],
    ),
    "levels of quantiles": ({"training.quantiles": {"choice": [0.5]}}, {}, ["not a setting that can be searched"]),
    "wrong combination in an infinite space": (
        {"model.heads": {"choice": [4, 3]}, "model.dropout": {"float": [0, 0.5]}},
        {},
        ["tried at random", "heads=3"],
    ),
    "start point with an unknown key": (
        {"model.dropout": {"choice": [0.1]}},
        {"start_with": [{"model.drop": 0.1}]},
        ["start_with[0]", "'model.dropout'"],
    ),
    "start point outside the space": (
        {"model.dropout": {"choice": [0.1]}},
        {"start_with": [{}, {"model.dropout": 0.2}]},
        ["start_with[1]", "0.2"],
    ),
    "start point on a fixed setting": (
        {"model.dropout": {"choice": [0.1]}},
        {"start_with": [{"model.layers": 9}]},
        ["model.layers", "fixed value 2"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_from_spec_refuses(case: str) -> None:
    space, search, words = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        make_space(space, search)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_grid_finds_the_repeats_of_the_repository_grid() -> None:
    grid = make_space(GRID, {"algorithm": "grid"}).grid()
    assert (grid.size, grid.duplicates, len(grid.points)) == (176, 16, 160)
    assert len(set(grid.keys)) == 160
    assert grid.points[0] == {"model.hidden_size": 64, "model.pattern": "ss", "model.dropout": 0.0}
    assert grid.points[1]["model.dropout"] == 0.1  # the last key varies fastest


def test_grid_counts_settings_that_a_family_ignores_as_duplicates() -> None:
    space = {"model.family": {"choice": ["lstm", "xlstm"]}, "model.pattern": {"choice": ["s", "m", "sm"]}}
    grid = make_space(space, {"algorithm": "grid"}).grid()
    assert (grid.size, len(grid.points)) == (6, 4)  # an lstm has no pattern


def test_grid_of_conditions_is_a_tree() -> None:
    space = {key: value for key, value in CONDITIONAL.items() if key != "training.learning_rate"}
    grid = make_space(space, {"algorithm": "grid"}).grid()
    # lstm and slstm: 3 depths each; xlstm: s alone, ms and msm with 2 kernels each; all with 4 dropouts.
    assert grid.size == (3 + 3 + 1 + 2 + 2) * 4
    # Dropout stands between the layers of an LSTM: one layer is one model whatever the dropout.
    assert grid.duplicates == 3 and len(grid.points) == grid.size - 3
    assert all(("model.pattern" in p) == (p["model.family"] == "xlstm") for p in grid.points)
    assert all(("model.conv_kernel" in p) == (p.get("model.pattern") in ("ms", "msm")) for p in grid.points)


def test_grid_takes_stepped_ranges() -> None:
    space = {"model.layers": {"int": [1, 6], "step": 2}, "model.dropout": {"float": [0, 0.35], "step": 0.1}}
    points = make_space(space, {"algorithm": "grid"}, model={"family": "lstm"}).grid().points
    assert sorted({p["model.layers"] for p in points}) == [1, 3, 5]
    assert sorted({p["model.dropout"] for p in points}) == [0.0, 0.1, 0.2, 0.3]


def test_grid_refuses_more_points_than_anyone_trains() -> None:
    space = {"training.seed": {"int": [0, 999]}, "training.batch_size": {"int": [1, 999]}}
    with pytest.raises(SpecError, match="more than 200,000"):
        make_space(space, {"algorithm": "grid"})


@pytest.mark.parametrize(
    ("space", "count", "words"),
    [
        ({}, 1, "1 distinct configuration"),
        (GRID, 160, "160 distinct configurations"),
        (CONDITIONAL, None, "infinitely many configurations"),
        ({"training.seed": {"int": [0, 2**62 + 1]}}, None, "more than 10,000 configurations"),
        ({"model.layers": {"log_int": [1, 8]}}, 1, "1 distinct configuration"),  # of an xlstm, which has no layers
    ],
)
def test_count_and_describe(space: dict[str, Any], count: int | None, words: str) -> None:
    built = make_space(space)
    assert built.count() == count
    assert built.describe() == words


def test_large_finite_space_is_counted() -> None:
    space = {"model.layers": {"int": [1, 64]}, "model.dropout": {"float": [0, 0.9], "step": 0.01}}
    assert make_space(space, model={"family": "slstm"}).count() == 64 * 91


def test_suggest_follows_conditions_and_puts_parents_first() -> None:
    space = make_space(CONDITIONAL)
    order = [domain.key for domain in space.domains]
    assert order.index("model.family") < order.index("model.pattern") < order.index("model.conv_kernel")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        params = space.suggest(trial)
        assert set(params) == set(trial.params)
        assert space.canonical(trial.params) == params
        assert ("model.layers" in params) == (params["model.family"] in ("lstm", "slstm"))
        assert ("model.pattern" in params) == (params["model.family"] == "xlstm")
        assert ("model.conv_kernel" in params) == (params.get("model.pattern") in ("ms", "msm"))
        assert params["model.dropout"] in (0.0, 0.1, 0.2, 0.3)
        seen.add(params["model.family"])
        study.tell(trial, 1.0)
    assert seen == {"lstm", "slstm", "xlstm"}


def test_suggest_removes_repeated_choices() -> None:
    space = make_space({"model.dropout": {"choice": [0, 0.0, 0.1, 0.1]}})
    trial = optuna.create_study().ask()
    space.suggest(trial)
    assert trial.distributions["model.dropout"] == optuna.distributions.CategoricalDistribution((0.0, 0.1))


def test_condition_on_a_fixed_setting_is_decided_at_once() -> None:
    space = {
        "model.pattern": {"choice": ["s", "m"], "when": {"model.family": "xlstm"}},
        "model.conv_kernel": {"choice": [0, 4], "when": {"model.pattern": "m"}},
        "model.dropout": {"choice": [0.0, 0.1]},
    }
    met = make_space(space, model={"family": "xlstm"})
    assert not met.notes
    assert met.count() == 2 * (1 + 2)
    never = make_space(space, model={"family": "lstm"})
    assert [domain.key for domain in never.domains] == ["model.dropout"]
    assert "model.family is fixed at 'lstm'" in never.notes[0]
    assert "'model.pattern' is never searched" in never.notes[1]


def test_defaults_lie_in_the_space_and_meet_the_conditions() -> None:
    fixed = {"layers": 2, "pattern": "ms", "dropout": 0.25}
    space = make_space(CONDITIONAL, model=fixed, training={"learning_rate": 1e-3})
    shared = {"training.learning_rate": 1e-3}  # dropout 0.25 is not on the step of 0.1: left open
    assert space.defaults("lstm") == {"model.family": "lstm", "model.layers": 2, **shared}
    assert space.defaults("xlstm") == {
        "model.family": "xlstm", "model.pattern": "ms", "model.conv_kernel": 4, **shared
    }  # fmt: skip
    assert [start["model.family"] for start in space.starts()] == ["lstm", "slstm", "xlstm"]


def test_starts_as_the_search_file_gives_them() -> None:
    assert make_space(GRID, {"start_with": "none"}).starts() == []
    point = {"model.hidden_size": 128, "model.layers": 2}  # layers keeps its fixed value
    assert make_space(GRID, {"start_with": [point, point]}).starts() == [{"model.hidden_size": 128}]
    ruled_out = {"model.family": "lstm", "model.pattern": "ms", "model.conv_kernel": 4}
    assert make_space(CONDITIONAL, {"start_with": [ruled_out]}).starts() == [{"model.family": "lstm"}]


def test_starts_are_models() -> None:
    """The file's own values need be none where the space has others."""
    space = {"model.projection": {"int": [0, 256]}, "training.learning_rate": {"log_float": [1e-4, 1e-2]}}
    fixed = {"family": "lstm", "hidden_size": 256, "projection": 256}
    assert make_space(space, model=fixed).starts() == []
    assert make_space(space, model=fixed | {"projection": 8}).starts()[0]["model.projection"] == 8
    whole = {"model.projection": 256, "training.learning_rate": 1e-3}
    with pytest.raises(SpecError, match=r"search.start_with\[1\] is no model: model.projection must be smaller than"):
        make_space(space, {"start_with": [{"model.projection": 8}, whole]}, model=fixed)


def test_from_spec_blames_fixed_values_where_no_combination_changes_them() -> None:
    space = {"training.learning_rate": {"log_float": [1e-4, 1e-2]}}
    space["model.hidden_size"] = {"choice": [64], "when": {"model.family": "lstm"}}  # type: ignore[dict-item]
    with pytest.raises(SpecError, match=r"^model.heads must divide"):
        make_space(space, model={"family": "slstm", "hidden_size": 30})


def test_lookback_can_be_searched() -> None:
    spec = make_spec({"data.lookback": {"int": [5, 20], "step": 5}})
    space = Space.from_spec(spec)
    assert space.count() == 4
    assert spec.resolve(space.draw(random.Random(1))).lookback in (5, 10, 15, 20)
    assert space.defaults("xlstm") == {"data.lookback": 10}


@settings(max_examples=60, deadline=None)
@given(
    low=st.integers(0, 40),
    width=st.integers(1, 50),
    step=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_stepped_values_are_the_same_however_they_come_about(
    low: int, width: int, step: int, seed: int, data: st.DataObject
) -> None:
    """Listed, drawn and read back from Optuna, a stepped value has one spelling, so that duplicates are found."""
    step = min(step, width)
    line = {"float": [low / 100, (low + width) / 100], "step": step / 100}
    space = make_space({"model.dropout": line})
    (domain,) = space.domains
    values = domain.values
    assert values is not None
    assert list(values) == [index / 100 for index in range(low, low + width + 1, step)]
    assert domain.draw(random.Random(seed)) in values
    sampler = optuna.samplers.RandomSampler(seed=seed)
    assert space.suggest(optuna.create_study(sampler=sampler).ask())["model.dropout"] in values
    chosen = data.draw(st.sampled_from(values))
    study = optuna.create_study()
    study.enqueue_trial({"model.dropout": chosen})
    assert space.suggest(study.ask()) == {"model.dropout": chosen}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_draw_stays_inside_and_resolves(seed: int) -> None:
    logarithmic = {"training.batch_size": {"log_int": [3, 7]}, "training.clip": {"log_float": [0.1, 3]}}
    spec = make_spec(CONDITIONAL | logarithmic)
    space = Space.from_spec(spec)
    params = space.draw(random.Random(seed))
    assert all(domain.contains(params[domain.key]) for domain in space.domains if domain.key in params)
    assert spec.resolve(params).training.batch_size == params["training.batch_size"]


def test_conditions_that_exclude_each_other_are_told() -> None:
    space: dict[str, Any] = {
        "model.family": {"choice": ["lstm", "slstm", "xlstm"]},
        "model.pattern": {"choice": ["s", "ms"], "when": {"model.family": "xlstm"}},
        "model.heads": {"choice": [2, 4], "when": {"model.family": ["lstm", "slstm"], "model.pattern": "ms"}},
        "model.conv_kernel": {"choice": [0, 4], "when": {"model.heads": 4}},
    }
    never = make_space(space)
    assert [domain.key for domain in never.domains] == ["model.family", "model.pattern"]
    assert never.notes[0] == (
        "'space.model.heads' is never searched, because 'model.heads' needs model.family to be 'lstm' or 'slstm' and "
        "'model.pattern' needs model.family to be 'xlstm'"
    )
    assert "'space.model.conv_kernel' is never searched, because 'model.heads' is never" in never.notes[1]
    assert len(never.notes) == 2
    space["model.heads"]["when"]["model.family"] = ["lstm", "xlstm"]
    assert not make_space(space).notes


def test_conditions_that_exclude_each_other_further_up_are_told() -> None:
    space = {
        "model.family": {"choice": ["lstm", "slstm", "xlstm"]},
        "model.layers": {"choice": [1, 2], "when": {"model.family": ["lstm", "slstm"]}},
        "model.pattern": {"choice": ["s", "ms"], "when": {"model.family": "xlstm"}},
        "model.dropout": {"choice": [0.0, 0.1], "when": {"model.layers": 2}},
        "model.conv_kernel": {"choice": [0, 4], "when": {"model.dropout": 0.1, "model.pattern": "ms"}},
    }
    (note,) = make_space(space).notes
    assert note.endswith(
        "because 'model.layers' needs model.family to be 'lstm' or 'slstm' and 'model.pattern' needs model.family to "
        "be 'xlstm'"
    )
