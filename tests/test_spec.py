"""The search file: YAML as people write it, strict keys and types, what a point of the space means."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from xlstm_tune.errors import SpecError
from xlstm_tune.search.persistence.folder import spec_text
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search_file import find_file, load_spec, shipped_spaces
from xlstm_tune.spec import SEARCHABLE, SearchSpec

BASE = """
name: base
data: {source: table.csv, target: y, lookback: 8}
space:
  training.learning_rate: {log_float: [1e-4, 1e-2]}
  model.dropout: {float: [0, 0.4]}
"""


def load(tmp_path: Path, text: str = BASE, *overrides: str, **given: object) -> SearchSpec:
    file = tmp_path / "search.yaml"
    file.write_text(text)
    return load_spec(str(file), overrides, **given)


@pytest.mark.parametrize(
    ("line", "largest"),
    [
        ("{int: [7, 240], step: 100}", 207),
        ("{choice: [7, 500], when: {model.family: xlstm}}", 8),
        ("{choice: [7, 500], when: {model.family: [lstm, slstm]}}", 500),
        ("{choice: [5, 7], when: {model.layers: 2}}", 8),
    ],
)
def test_the_largest_lookback_is_one_that_a_trial_may_have(line: str, largest: int, tmp_path: Path) -> None:
    lines = f"  data.lookback: {line}\n  model.layers: {{choice: [1, 2]}}\n"
    assert load(tmp_path, BASE + lines, "model.family=lstm").max_lookback() == largest


def test_the_most_epochs_are_those_that_trials_train(tmp_path: Path) -> None:
    line = "  training.epochs: {choice: [1, 2], when: {model.family: lstm}}\n"
    assert load(tmp_path, BASE + line, "model.family=lstm").max_epochs() == 2
    assert load(tmp_path, BASE + line, "model.family=slstm", "training.epochs=9").max_epochs() == 9


def test_load_spec_reads_exponents_without_a_dot_as_numbers(tmp_path: Path) -> None:
    assert load(tmp_path).space["training.learning_rate"].log_float == [1e-4, 1e-2]
    assert load(tmp_path, BASE, "training.learning_rate=3E-4").training.learning_rate == 3e-4


def test_load_spec_leaves_dates_and_mmwr_weeks_as_text(tmp_path: Path) -> None:
    assert load(tmp_path, BASE, "data.split.validation=2018-01-01").data.split.validation == "2018-01-01"
    # YAML 1.1 would read 2006_1 as the number 20061.
    assert load(tmp_path, BASE, "data.split.test=2006_1").data.split.test == "2006_1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("5", 5),
        (".5", 0.5),
        ("~", None),
        ("1E3", 1000.0),
    ],
)
def test_load_spec_reads_scalars_as_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    if value is None or not isinstance(value, str):
        with pytest.raises(SpecError, match=f"'data.target.*got {'null' if value is None else repr(value)}"):
            load(tmp_path, BASE, f"data.target=[{text}]")
    else:
        assert load(tmp_path, BASE, f"data.target=[{text}]").data.target == [value]


def test_load_spec_refuses_a_key_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"line 4.*'data' stands twice"):
        load(tmp_path, "name: a\nspace: {}\ndata: {}\ndata: {}\n".lstrip())


def test_load_spec_merges_mappings_where_yaml_does(tmp_path: Path) -> None:
    text = """
name: a
data: &data {source: sample:wave, target: y, lookback: 8}
training: &training {epochs: 3, batch_size: 16}
"""
    assert load(tmp_path, text + "model: {<<: {layers: 3}, dropout: 0.2}\n").model.layers == 3
    spec = load(tmp_path, text.replace("{epochs", "{<<: [{epochs: 7, clip: 2.0}, {clip: 3.0}], epochs"))
    assert (spec.training.epochs, spec.training.clip) == (3, 2.0)  # what is written wins, then the first that is merged
    with pytest.raises(SpecError, match=r"line 6.*'layers' stands twice"):
        load(tmp_path, text + "model: {<<: {layers: 3}, layers: 1,\n layers: 2}\n")
    for odd in ("3", "[{layers: 3}, 4]"):
        with pytest.raises(SpecError, match=r"line 5: what << merges must be a mapping, or a list of them"):
            load(tmp_path, text + f"model: {{<<: {odd}, dropout: 0.2}}\n")
    with pytest.raises(SpecError, match=r"'<<' stands twice"):
        load(tmp_path, text + "model: {<<: {layers: 3}, <<: {layers: 1}}\n")


def test_load_spec_sets_nested_keys_and_keys_of_the_space(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        BASE,
        "training.epochs=5",
        "space.model.dropout.float=[0, 0.2]",
        "space.model.heads={choice: [1, 2]}",
        "data.split.by=[time, y]",
    )
    assert spec.training.epochs == 5
    assert spec.space["model.dropout"].float_ == [0, 0.2]
    assert spec.space["model.heads"].choice == [1, 2]
    assert spec.data.split.by == ["time", "y"]


def test_load_spec_sets_a_condition(tmp_path: Path) -> None:
    changes = ("space.model.pattern.choice=[ms, sm]", "space.model.pattern.when.model.family=[xlstm]")
    assert load(tmp_path, BASE, *changes).space["model.pattern"].when == {"model.family": ["xlstm"]}


def test_load_spec_sets_more_of_a_time_that_is_its_column(tmp_path: Path) -> None:
    time = load(tmp_path, BASE, "data.time=date", "data.time.format=iso").data.time
    assert time is not None and (time.column, time.format) == ("date", "iso")


@pytest.mark.parametrize("value", ["a #1.csv", "#1", "[a, b] # both", "a: b #1", "- a # c", "a: #3"])
def test_load_spec_refuses_what_yaml_would_leave_out_of_an_override(tmp_path: Path, value: str) -> None:
    """`a #1.csv` would be the file `a`."""
    with pytest.raises(SpecError, match=r"is a comment to YAML, .* 'KEY=\"VALUE\"'"):
        load(tmp_path, BASE, f"data.exclude={value}")
    assert load(tmp_path, BASE, 'data.exclude=["a #1.csv", b#2]').data.exclude == ["a #1.csv", "b#2"]
    assert load(tmp_path, BASE, "data.exclude=[a,\n# on a line of its own\nb]\n# behind").data.exclude == ["a", "b"]


@pytest.mark.parametrize("text", ["training.epochs", "=3", "training.epochs=[", "name.x=3"])
def test_load_spec_refuses_a_bad_override(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match="--set"):
        load(tmp_path, BASE, text)


def test_load_spec_lets_the_command_line_win(tmp_path: Path) -> None:
    spec = load(tmp_path, BASE, "search.trials=3", name="other", search__trials=9)
    assert (spec.name, spec.search.trials) == ("other", 9)
    assert load(tmp_path, BASE, name=None).name == "base"


def test_load_spec_names_a_search_after_its_file(tmp_path: Path) -> None:
    assert load(tmp_path, BASE.replace("name: base", "")).name == "search"


def test_load_spec_anchors_data_at_the_search_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(tmp_path).data.source == [str(tmp_path / "table.csv")]
    several = BASE.replace("table.csv", "[s3://bucket/a.parquet, /abs/b.csv, 'sample:x', sub/*.csv]")
    both = ["s3://bucket/a.parquet", "/abs/b.csv", "sample:x", str(tmp_path / "sub/*.csv")]
    assert load(tmp_path, several).data.source == both


def test_load_spec_reads_from_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, BASE.encode())
    os.close(writer)
    with os.fdopen(reader):
        assert load_spec(f"/dev/fd/{reader}").name == "base"


def test_load_spec_takes_a_name_for_the_time_column(tmp_path: Path) -> None:
    time = load(tmp_path, BASE, "data.time=date").data.time
    assert time == load(tmp_path, BASE, "data.time={column: date}").data.time
    assert time is not None and time.column == "date"
    with pytest.raises(SpecError, match=r"'data\.time' must be the name of a column .*, got 5; put it in quotes"):
        load(tmp_path, BASE, "data.time=5")


@pytest.mark.parametrize("text", ["data.source=mine.csv", "data={source: mine.csv, target: y, lookback: 10}"])
def test_load_spec_finds_data_of_the_command_line_where_one_is(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(tmp_path, BASE, text).data.source == [str(tmp_path / "elsewhere" / "mine.csv")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epohcs=5", "'training.epohcs' is not a key .* did you mean 'training.epochs'"),
        ("space.training.lr.log=[0.1, 1]", r"did you mean 'space\.training\.lr\.log_float' or '.*log_int'\?"),
        ("training.lr=0.1", "'training.lr' is not a key .* did you mean 'training.learning_rate'"),
        ("trainig={}", "'trainig' is not a key .* did you mean 'training'"),
        ("training.epochs=2.5", "'training.epochs' must be a whole number, got 2.5"),
        ("training.epochs='5'", "'training.epochs' must be a whole number, got '5'"),
        ("model.bias=1", "'model.bias' must be true or false, got 1"),
        ("model.dropout=true", "'model.dropout' must be a number, got True"),
        ("model.dropout=.nan", "not plain .*: 'model.dropout' is infinite or no number; give a finite one"),
        ("data.target_minimum=.nan", "'data.target_minimum' is infinite or no number"),
        ("data.horizon=.inf", "'data.horizon' is infinite or no number"),
        ("space.model.dropout={choice: [0.1, -.inf]}", "'space.model.dropout.choice.1' is infinite or no number"),
        ("data.target=2020", "'data.target' must be a name or a list of names, got 2020; put it in quotes"),
        ("data.series=[1, y]", "'data.series.0' must be text, got 1; put it in quotes"),
        ("data.split.by=true", "'data.split.by' must be a name or a list of names, got True; put it in quotes"),
        ("data.time=2020", "'data.time' must be the name of a column or a mapping .*, got 2020; put it in quotes"),
        ("name=5", "'name' must be text, got 5; put it in quotes"),
        ("data.target=null", "'data.target' must be a name or a list of names, got null; give it, or put it in quotes"),
        ("data.calendar=5", "'data.calendar' must be a list, got 5$"),
        ("resources.gpus_per_trial=many", "must be 'auto' or a number"),
        ("search.time_budget=soon", "30m, 2h or 1d"),
        ("data.lookback=null", "'data.lookback' is missing"),
        ("data.task=regression", "'data.sequence' is missing"),
        ("space.model.dropout={}", "'space.model.dropout' needs exactly one of choice"),
        ("space.model.dropout={choice: [0.1], float: [0, 1]}", "got choice and float"),
        ("space.model.dropout.float=[0]", "'space.model.dropout.float' must be a list of at least 2 items"),
        ("model={family: slstm, heads: 5}", "model.heads must divide model.hidden_size"),
        ("name=../up", "name must be letters"),
        ("name=mlflow.db", "name must not be 'mlflow.db', where MLflow's runs .* choose another with --name"),
        ("name=MLflow.db-WAL", "name must not be 'MLflow.db-WAL'"),
        ("name=mlflow-artifacts", "name must not be 'mlflow-artifacts'"),
        (f"name={'x' * 121}", "'name' must be a text of at most 120 characters, got 'xxx"),
        ("model={family: xlstm, pattern: abc}", r"'model.pattern' must be a text that matches \^\[sm\]\+\$, got 'abc'"),
    ],
)
def test_load_spec_says_what_is_wrong_in_the_users_own_keys(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load(tmp_path, BASE, override)


def test_resolve_lays_a_point_over_the_fixed_values(tmp_path: Path) -> None:
    spec = load(tmp_path, BASE, "model.hidden_size=32")
    trial = spec.resolve({"model.dropout": 0.3, "data.lookback": 16, "training.epochs": 2})
    assert (trial.model.hidden_size, trial.model.dropout, trial.lookback, trial.training.epochs) == (32, 0.3, 16, 2)


def test_key_ignores_settings_that_the_family_does_not_read(tmp_path: Path) -> None:
    spec = load(tmp_path)
    lstm = {"model.family": "lstm"}
    assert spec.resolve(lstm).key() == spec.resolve({**lstm, "model.heads": 8, "model.pattern": "m"}).key()
    assert spec.resolve(lstm).key() != spec.resolve({**lstm, "model.layers": 3}).key()
    # Dropout stands between the layers of an LSTM.
    assert (
        spec.resolve({**lstm, "model.layers": 1}).key()
        == spec.resolve({**lstm, "model.layers": 1, "model.dropout": 0.3}).key()
    )
    xlstm = {"model.family": "xlstm", "model.pattern": "m"}
    assert spec.resolve(xlstm).key() == spec.resolve({**xlstm, "model.ff_factor": 2.0}).key()


def test_title_tells_trials_apart(tmp_path: Path) -> None:
    spec = load(tmp_path)
    point = {"model.family": "xlstm", "model.pattern": "msm", "model.hidden_size": 128}
    assert spec.resolve({**point, "training.learning_rate": 2.34e-4}).title() == "msm · 128 · lr 2.3e-4"
    assert spec.resolve({"model.family": "lstm", "model.dropout": 0.1}).title() == "lstm×2 · 64 · lr 1e-3 · dropout 0.1"


def test_name_has_every_searched_setting_that_is_not_as_usual(tmp_path: Path) -> None:
    text = (
        BASE
        + """  training.weight_decay: {choice: [0.01, 0.1, 0.0]}
  model.pooling: {choice: [last, mean]}
  data.lookback: {choice: [8, 24]}
"""
    )
    spec = load(tmp_path, text)
    points = [
        {"training.weight_decay": decay, "model.pooling": pooling, "model.dropout": dropout, "data.lookback": steps}
        for decay, pooling, dropout, steps in itertools.product((0.01, 0.1, 0.0), ("last", "mean"), (0.0, 0.2), (8, 24))
    ]
    names = [spec.title(spec.resolve(point)) for point in points]
    assert len(set(names)) == len(points)
    assert spec.title(spec.resolve({})) == spec.resolve({}).title()
    named = spec.title(spec.resolve({"training.weight_decay": 0.1, "model.pooling": "mean"}))
    assert named == f"{spec.resolve({}).title()} · wd 0.1 · pooling mean"


def test_searchable_keys_are_settings_of_a_trial(tmp_path: Path) -> None:
    spec = load(tmp_path)
    for key in SEARCHABLE:
        section, _, field = key.partition(".")
        assert spec.resolve({key: getattr(getattr(spec, section), field)}) == spec.resolve({})


@pytest.mark.parametrize("name", ["quickstart", "xlstm_forecast", "lstm_vs_xlstm", "grid_xlstm", "grid_lstm"])
def test_shipped_spaces_are_valid_and_say_what_they_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shipped_spaces()[name]
    assert find_file(name) == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert find_file(name) == path, "beside a folder of that name"
    assert path.read_text().startswith("# ")
    assert load_spec(name).space


def test_largest_counts_the_fixed_value_only_where_it_is_used() -> None:
    data = {"source": "x.csv", "target": "y", "lookback": 96}
    space: dict[str, Any] = {"data.lookback": {"choice": [24, 48]}, "training.epochs": {"int": [2, 5]}}
    raw: dict[str, Any] = {"name": "a", "data": data, "space": space, "training": {"epochs": 40}}
    spec = SearchSpec.parse(raw)
    # Baselines forecast from the file's own lookback, on the windows that trials have.
    assert (spec.max_lookback(), spec.max_epochs()) == (96, 5)
    space |= {"data.lookback": {"choice": [24, 192]}, "model.family": {"choice": ["lstm", "slstm"]}}
    space["training.epochs"]["when"] = {"model.family": "lstm"}
    spec = SearchSpec.parse(raw)
    assert (spec.max_lookback(), spec.max_epochs()) == (192, 40)


def test_a_file_whose_name_is_no_name_of_a_search_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "config (1).yaml"
    file.write_text("data: {source: 'sample:etth1', target: OT, lookback: 8, horizon: 1}\nsearch:\n")
    with pytest.raises(SpecError, match=r"config \(1\)\.yaml has no key 'name', .* add name: or give --name"):
        load_spec(str(file))
    assert load_spec(str(file), name="mine", search__trials=5).search.trials == 5, "a heading with nothing below it"
    database = file.rename(tmp_path / "mlflow.db.yaml")
    with pytest.raises(SpecError, match=r"name must not be 'mlflow\.db', .* choose another with --name"):
        load_spec(str(database))
    assert load_spec(str(database), name="mlflow.db2", search__trials=5).name == "mlflow.db2"


FITTING = {
    "heads that divide each width": ({"heads": 6, "family": "slstm"}, {"hidden_size": [48, 96]}),
    "a width that each number of heads divides": ({"hidden_size": 6, "family": "slstm"}, {"heads": [2, 3]}),
    "heads of a family that is not searched": ({"heads": 5}, {"family": ["lstm", "lstm_torch"]}),
    "blocks that fit each pattern": ({"heads": 7, "family": "xlstm"}, {"pattern": ["s", "ss"], "hidden_size": [49]}),
    "blocks of q, k and v": ({"qkv_block": 48, "family": "mlstm"}, {"proj_factor": [3.0]}),
    "a projection": ({"family": "lstm", "projection": 64}, {"hidden_size": [96, 128]}),
    "strides": ({"patch_length": 4, "patch_stride": 6}, {"patch_stride": [1, 2]}),
}


@pytest.mark.parametrize("case", FITTING)
def test_load_spec_takes_settings_that_the_space_replaces(tmp_path: Path, case: str) -> None:
    model, searched = FITTING[case]
    written = ", ".join(f"{key}: {value}" for key, value in model.items())
    text = BASE.partition("space:")[0] + f"model: {{{written}}}\n"
    with pytest.raises(SpecError, match=r"model\.(heads|qkv_block|projection|patch_stride) must"):
        load(tmp_path, text)
    lines = "".join(f"  model.{key}: {{choice: {json.dumps(values)}}}\n" for key, values in searched.items())
    spec = load(tmp_path, f"{text}space:\n{lines}")
    assert Space.from_spec(spec).points
    assert load(tmp_path, spec_text(spec)) == spec
    for key, value in model.items():
        assert getattr(spec.model, key) == value


def test_load_spec_refuses_settings_that_no_point_of_the_space_mends(tmp_path: Path) -> None:
    text = BASE.partition("space:")[0] + "model: {heads: 6}\nspace:\n"
    with pytest.raises(SpecError, match=r"^model.heads must divide .* 6 heads and hidden_size 64$"):
        load(tmp_path, text + "  model.dropout: {choice: [0.0]}\n")
    for space, words in (
        ("  model.hidden_size: {choice: [32, 64]}\n", "2 of 2 combinations .* 6 heads and hidden_size 32"),
        (
            "  model.family: {choice: [lstm, xlstm]}\n"
            "  model.hidden_size: {choice: [48], when: {model.family: lstm}}\n",
            "1 of 2 combinations .* 6 heads and hidden_size 64",
        ),
    ):
        spec = load(tmp_path, text + space)
        with pytest.raises(SpecError, match=words):
            Space.from_spec(spec)
