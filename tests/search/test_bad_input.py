"""Everything a user can get wrong ends as one sentence and exit code 2, before Ray starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from xlstm_tune.data.read import READABLE
from xlstm_tune.search.__main__ import app
from xlstm_tune.search_file import EITHER, OTHER_TABLES, TABLES, load_spec

ROOT = Path(__file__).resolve().parents[2]
ROWS = 120


def table(column: str = "y", cells: dict[int, str] | None = None, rows: int = ROWS, **columns: str) -> str:
    """CSV of a day column, `y`, and columns of one repeated cell; `cells` replaces single cells of `column`."""
    lines = [",".join(["day", "y", *columns])]
    for row in range(rows):
        y = str((row * 37) % 101) if column != "y" or not cells or row not in cells else cells[row]
        lines.append(",".join([f"2020-{1 + row // 28:02d}-{1 + row % 28:02d}", y, *columns.values()]))
    return "\n".join(lines) + "\n"


def sequences() -> str:
    """CSV of thirty sequences `s` of 4 to 6 days, with an input `x`, a `size` and a target `y` of each sequence."""
    rows = [f"2020-01-0{day + 1},{s * s},{s},{s + day},{s % 4}" for s in range(30) for day in range(4 + s % 3)]
    return "\n".join(["day,y,s,x,size", *rows]) + "\n"


SEQUENCES: dict[str, object] = {
    "data__task": "regression",
    "data__sequence": "s",
    "data__lookback": None,
    "data__horizon": 1,
    "data__split": {"by": "s"},
}


def write(folder: Path, text: str | None = None, **changes: object) -> Path:
    """A search file that works, but for `changes`: dotted keys (`data__target`) and their values."""
    if text is not None:
        (folder / "table.csv").write_text(text)
    spec: dict = {
        "name": "bad",
        "data": {
            "source": "table.csv",
            "time": {"column": "day"},
            "target": "y",
            "lookback": 8,
            "horizon": 2,
        },
        "search": {"trials": 2},
        "space": {"model.hidden_size": {"choice": [4, 8]}},
        "model": {"family": "lstm"},
        "training": {"epochs": 1},
    }
    for key, value in changes.items():
        place = spec
        *path, last = key.split("__")
        for part in path:
            place = place.setdefault(part.replace("_dot_", "."), {})
        place[last.replace("_dot_", ".")] = value
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


CASES: dict[str, tuple[str | None, dict[str, object], list[str]]] = {
    "missing data file": (None, {"data__source": "nowhere.csv"}, ["nowhere.csv"]),
    "empty data file": ("", {}, ["table.csv", "empty"]),
    "unknown column": (table(), {"data__target": "yy"}, ["yy", "'y'"]),
    "target with text": (table(cells={7: "many"}), {}, ["'y'", "many", "8"]),
    "NaN without policy": (table(cells={7: ""}), {}, ["'y'", "data.missing"]),
    "duplicate timestamps": (table().replace("2020-01-05", "2020-01-04"), {}, ["2020-01-04"]),
    "lookback too long": (table(), {"data__lookback": 500}, ["500", "lookback"]),
    "no validation window": (table(), {"data__horizon": 30}, ["horizon", "validation"]),
    "constant target": (table(cells={row: "3" for row in range(ROWS)}), {}, ["'y'", "constant"]),
    "patches longer than the lookback": (table(), {"model__patch_length": 9}, ["model.patch_length", "8 steps", "9"]),
    "static column that changes": (
        sequences(),
        SEQUENCES | {"data__static": "x"},
        ["'x'", "s=0", "data.static"],
    ),
    "flattened states of sequences of several lengths": (
        sequences(),
        SEQUENCES | {"space__model_dot_pooling": {"choice": ["last", "flatten"]}},
        ["model.pooling", "flatten", "differ in length", "data.lookback"],
    ),
    "patches longer than the longest sequence": (
        sequences(),
        SEQUENCES | {"space__model_dot_patch_length": {"choice": [0, 7]}},
        ["model.patch_length", "6 steps", "7"],
    ),
    "forecast's option for a regression": (
        sequences(),
        SEQUENCES | {"space__model_dot_instance_norm": {"choice": ["none", "last"]}},
        ["model.instance_norm", "regression", "'none'"],
    ),
    "static column without series": (table(size="4"), {"data__static": "size"}, ["data.static", "data.series"]),
    "wrong key": (table(), {"training__epohcs": 3}, ["training.epohcs", "training.epochs"]),
    "wrong type": (table(), {"training__epochs": "many"}, ["training.epochs", "whole number", "many"]),
    "empty choice": (table(), {"space__model_dot_hidden_size": {"choice": []}}, ["model.hidden_size", "choice"]),
    "log range from 0": (table(), {"space__model_dot_dropout": {"log_float": [0, 0.5]}}, ["model.dropout", "log"]),
    "condition on an unknown key": (
        table(),
        {"space__model_dot_dropout": {"float": [0, 0.5], "when": {"model.familly": "lstm"}}},
        ["model.familly", "model.family"],
    ),
    "circular condition": (
        table(),
        {
            "space__model_dot_dropout": {"choice": [0, 0.5], "when": {"model.bias": True}},
            "space__model_dot_bias": {"choice": [True, False], "when": {"model.dropout": 0}},
        },
        ["model.dropout", "model.bias", "circ"],
    ),
    "grid over a continuous range": (
        table(),
        {"search__algorithm": "grid", "space__model_dot_dropout": {"float": [0, 0.5]}},
        ["model.dropout", "grid"],
    ),
    "more GPUs than there are": (table(), {"resources__gpus_per_trial": 64}, ["64", "GPU"]),
    "one GPU and a half": (table(), {"resources__gpus_per_trial": 1.5}, ["gpus_per_trial", "whole number above 1"]),
    "more of a GPU than nothing": (table(), {"resources__gpus_per_trial": 1e-310}, ["gpus_per_trial", "0.001"]),
    "hardly any CPU": (table(), {"resources__cpus_per_trial": 1e-310}, ["cpus_per_trial", "0.001", "1e-310"]),
    "stride beyond 64 bits": (table(), {"data__stride": 2**63}, ["data.stride", "1000000000"]),
    "season beyond 64 bits": (table(), {"data__season": 2**63}, ["data.season", "1000000000"]),
    "lookback without an end": (
        table(),
        {"space__data_dot_lookback": {"log_int": [3, 10**399]}},
        ["data.lookback", "1000000000"],
    ),
    "step too small to count": (
        table(),
        {"space__training_dot_clip": {"float": [0, 1], "step": 5e-324}},
        ["training.clip", "step", "5e-324"],
    ),
    "endless time budget": (table(), {"search__time_budget": "9" * 400 + "d"}, ["time_budget"]),
    "half a character": (table(), {"data__target": "\ud800"}, ["half a character"]),
    "null character in a path": (None, {"data__source": "a\x00.csv"}, ["a\\x00.csv", "cannot be reached"]),
    "home of nobody": (None, {"data__source": "~nobody-of-that-name/a.csv"}, ["nobody-of-that-name", "no folder"]),
    "name that leaves the folder": (table(), {"name": "../elsewhere"}, ["name", "../elsewhere"]),
}


def sentence(arguments: list[str]) -> str:
    """The error of a command that must be refused, with exit code 2, one line and no traceback."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    error = result.stderr.strip()
    assert error.startswith("error: "), error
    assert "\n" not in error and "Traceback" not in error
    return error


@pytest.mark.parametrize("case", CASES)
def test_search_refuses(case: str, tmp_path: Path) -> None:
    text, changes, expected = CASES[case]
    file = write(tmp_path, text, **changes)
    error = sentence([str(file), "--storage", str(tmp_path / "searches")])
    for part in expected:
        assert part.lower() in error.lower(), error
    assert not (tmp_path / "searches" / "bad").exists()


def test_search_accepts_the_file_that_the_cases_change(tmp_path: Path) -> None:
    file = write(tmp_path, table())
    result = CliRunner().invoke(app, [str(file), "--storage", str(tmp_path / "searches"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "2 distinct configurations" in result.output


def test_search_accepts_static_inputs_and_sequences_of_several_lengths(tmp_path: Path) -> None:
    changes = SEQUENCES | {"data__static": "size", "space__model_dot_patch_length": {"choice": [0, 3]}}
    file = write(tmp_path, sequences(), **changes)
    result = CliRunner().invoke(app, [str(file), "--storage", str(tmp_path / "searches"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "4 distinct configurations" in result.output and "static" in result.output and "size" in result.output


@pytest.mark.parametrize("url", ["s4://bucket", "sqlite:///{}/table.csv/x.db"])
def test_dry_run_refuses_a_database_with_the_sentence_of_the_search(url: str, tmp_path: Path) -> None:
    file = write(tmp_path, table(), search__storage=url.format(tmp_path))
    arguments = [str(file), "--storage", str(tmp_path / "searches")]
    error = sentence([*arguments, "--dry-run"])
    assert "error: search.storage" in error and "cannot be opened" in error and "check the path or URL" in error
    assert sentence(arguments) == error


def test_dry_run_of_a_name_that_is_taken_checks_all_the_same(tmp_path: Path) -> None:
    file = write(tmp_path, table())
    (tmp_path / "searches" / "mine").mkdir(parents=True)
    arguments = [str(file), "--storage", str(tmp_path / "searches"), "--name", "mine"]
    assert "the name 'mine' is already used by" in sentence(arguments)
    assert "is not a column of the data" in sentence([*arguments, "--dry-run", "--set", "data.target=casse"])
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0 and "note: the name 'mine' is already used by" in " ".join(result.output.split())


@pytest.mark.parametrize("option", ["--storage", "--address"])
def test_search_refuses_an_empty_option_as_a_variable_that_is_not_set_gives_it(tmp_path: Path, option: str) -> None:
    assert f"{option} is empty" in sentence([str(write(tmp_path, table())), "--dry-run", option, ""])


def test_search_refuses_a_search_file_that_is_not_there(tmp_path: Path) -> None:
    assert "did you mean 'quickstart'" in sentence(["quickstrat"])
    write(tmp_path, table())
    assert "did you mean 'search.yaml'" in sentence([str(tmp_path / "serach.yaml")])


def test_search_refuses_broken_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: [1")
    assert "line" in sentence([str(tmp_path / "a.yaml")])
    (tmp_path / "b.yaml").write_text("name: x\nname: y\n")
    assert "line 2" in sentence([str(tmp_path / "b.yaml")])
    (tmp_path / "c.yaml").write_text("")
    assert "holds nothing" in sentence([str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("name", ["data.csv", "DATA.CSV", "data.csv.gz", "data.parquet", "data.txt"])
def test_search_refuses_a_table_in_place_of_a_search_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1\x15\x90" if name == "data.parquet" else table().encode())
    error = sentence([str(tmp_path / name)])
    assert f"{tmp_path / name} is a table, not a search file; write a file such as mine.yaml with" in error
    _, data, rest = error.split("`")
    named = yaml.safe_load(data)["data"]
    assert named["source"] == str(tmp_path / name) and {"target", "lookback", "horizon"} < set(named)
    assert Path(rest.rpartition(": ")[2].strip().rstrip(")")).is_file()


@pytest.mark.parametrize("name", ["data.xlsx", "data.json"])
def test_search_refuses_a_table_that_it_cannot_read_in_place_of_a_search_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('[{"a": 1}]')
    assert "is a table, not a search file; save it as CSV or Parquet, and" in sentence([str(tmp_path / name)])


def test_every_table_that_can_be_read_is_known_as_one() -> None:
    assert set(READABLE) <= {*TABLES, *EITHER} and set(TABLES) <= set(READABLE)
    assert not set(OTHER_TABLES) & set(READABLE)


@pytest.mark.parametrize("name", ["search.json", "search.txt"])
def test_search_takes_a_search_file_of_another_ending(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(yaml.safe_load(write(tmp_path, table()).read_text())))
    assert load_spec(str(tmp_path / name)).name == "bad"
    (tmp_path / name).write_text("")
    assert "holds nothing" in sentence([str(tmp_path / name)])


@pytest.mark.parametrize(
    "command", ["search", "search quickstart --dry-run", "predict mine table.csv", "tracking sync mine"]
)
def test_a_command_in_a_folder_that_was_removed_says_so(command: str, tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    module, *rest = command.split()
    start = 'cd "$0" && rmdir "$0" && exec "$@"'
    answer = subprocess.run(
        ["sh", "-c", start, gone, sys.executable, "-m", f"xlstm_tune.{module}", *rest],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 2 and not answer.stdout
    assert answer.stderr.removeprefix("error: ") == "the current folder no longer exists; change to one that does\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!int x", "'x' is no int"),
        ("name: !!float x", "'x' is no float"),
        ("name: !!bool x", "'x' is no bool"),
        ("name: !!timestamp x", "no meaning"),
        ("name: !!set {a}", "no meaning"),
        ("name: " + "9" * 5000, "5,000 digits"),
        ("[a]: b", "a list or mapping stands where a key must"),
        ("? !!set {a}\n: b", "no meaning"),
        ("a: &a [*a]", "stands inside what it is an alias of"),
        ("a: &a {<<: *a}", "stands inside what it is an alias of"),
        (BOMB, "more than 1,000,000 values"),
        ("a: " + "[" * 60 + "]" * 60, "50 deep"),
        ("a: " + "[" * 3000, "cannot be read as YAML"),
        ("a0: &a0 []\n" + "\n".join(f"a{n + 1}: &a{n + 1} [*a{n}]" for n in range(300)), "50 deep"),
        ("name: 1e999", "not plain text, number"),
    ],
)
def test_search_refuses_yaml_that_python_could_not_hold(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert words in sentence([str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("space.model.layers.choice=[1]", "'space.model.layers' holds a value"),
        ("data.lookback.x=1", "--set data.lookback.x: 'data.lookback' holds a value"),
        ("a=" + "[" * 3000, "cannot be read as YAML"),
        (".".join("a" * 2000) + "=1", "2000 parts"),
        ("search.trials=" + "x" * 5000, "search.trials"),
    ],
)
def test_search_refuses_an_override_that_cannot_be(override: str, words: str, tmp_path: Path) -> None:
    file = write(tmp_path, table(), space={"model.layers": 3})
    error = sentence([str(file), "--set", override])
    assert words in error and len(error) < 4000


def test_search_refuses_a_folder_that_takes_none_of_rays_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, table())
    monkeypatch.setenv("RAY_TMPDIR", str(file))
    assert "set RAY_TMPDIR to a folder that takes them" in sentence([str(file), "--storage", str(tmp_path / "kept")])
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_dir()], "no name is taken"


@pytest.mark.slow
def test_dry_run_of_a_model_larger_than_this_machine(tmp_path: Path) -> None:
    changes = {"space": {"model.hidden_size": {"choice": [4, 16384]}}, "model": {"family": "lstm", "layers": 64}}
    file = write(tmp_path, table(), **changes)
    result = CliRunner().invoke(app, [str(file), "--storage", str(tmp_path / "[/x]"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "not measured" in result.output and "[/x]" in result.output


def test_search_writes_out_what_a_terminal_would_obey(tmp_path: Path) -> None:
    file = write(tmp_path, table(), data__target="\x1b[2J[red]\u202e")
    assert "'\\x1b[2J[red]\\u202e'" in sentence([str(file), "--storage", str(tmp_path / "searches")])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("a\x00b:1", "no Ray cluster answers"),
        ("x" * 300 + ":1", "no Ray cluster answers"),
        ("a:99999", "no Ray cluster answers"),
        ("a:²", "must be auto"),
    ],
)
def test_search_refuses_an_address_that_no_host_can_have(address: str, words: str, tmp_path: Path) -> None:
    file = write(tmp_path, table())
    assert words in sentence([str(file), "--storage", str(tmp_path / "searches"), "--address", address])


def test_search_refuses_an_unreachable_tracking_server(tmp_path: Path) -> None:
    file = write(tmp_path, table())
    storage = str(tmp_path / "searches")
    error = sentence([str(file), "--storage", storage, "--tracking-uri", "http://someone:secret@127.0.0.1:9"])
    assert "cannot be reached" in error and "secret" not in error


def test_search_refuses_a_storage_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = write(tmp_path, table())
    (tmp_path / "taken").write_text("a file, not a folder")
    assert "cannot be written" in sentence([str(file), "--storage", str(tmp_path / "taken")])


def test_search_refuses_a_name_already_used_and_offers_resume(tmp_path: Path) -> None:
    file = write(tmp_path, table())
    (tmp_path / "searches" / "bad").mkdir(parents=True)
    error = sentence([str(file), "--storage", str(tmp_path / "searches")])
    assert "--resume bad" in error and "--name" in error


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("ray://127.0.0.1:9", "which is for programs outside of a cluster; run the search on one of its machines"),
        ("here", "host:port"),
    ],
)
def test_search_refuses_a_cluster_that_does_not_answer(tmp_path: Path, address: str, words: str) -> None:
    file = write(tmp_path, table())
    assert words in sentence([str(file), "--storage", str(tmp_path / "searches"), "--address", address])
    assert not (tmp_path / "searches" / "bad").exists()


def test_search_refuses_before_ray_is_imported(tmp_path: Path) -> None:
    file = write(tmp_path, table(), training__epohcs=3)
    program = (
        "import sys\n"
        "from xlstm_tune.search.__main__ import app\n"
        f"code = 0\ntry: app([{str(file)!r}])\nexcept SystemExit as end: code = end.code\n"
        "print(code, 'ray' in sys.modules, 'torch' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["2", "False", "False"]
