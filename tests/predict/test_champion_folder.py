"""What lies in a champion's folder, and what is said when it is damaged or the command asks for nonsense."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from champions import SINGLE, finish, single
from typer.testing import CliRunner

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import ENVIRONMENT
from xlstm_tune.predict.__main__ import app
from xlstm_tune.predict.champion import load_champion, read_about
from xlstm_tune.predict.intervals import conformal
from xlstm_tune.predict.make import champion_of
from xlstm_tune.results import ResultsWriter
from xlstm_tune.search.persistence.lock import locked
from xlstm_tune.storage.copy import KEPT_AT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished search with a champion."""
    place = tmp_path_factory.mktemp("folder")
    search = finish(place / "searches", "single", SINGLE | {"source": str(single(place))})
    champion_of(search)
    return search


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "champion", tmp_path / "champion"))


def test_the_folder_says_all_there_is_to_say(folder: Path) -> None:
    about = json.loads((folder / "champion" / "champion.json").read_text())
    assert about["inputs"]["names"] == ["y", "z", "x"] and len(about["inputs"]["std"]) == 3
    assert about["targets"]["names"] == ["y", "z"] and about["targets"]["mean"] == about["inputs"]["mean"][:2]
    assert (about["lookback"], about["shape"]["horizon"]) == (8, 3)
    assert (about["trial"], about["member"], about["refit"]) == (0, None, False)
    assert set(about["scores"]) == {"validation", "test"}
    widths = about["intervals"]["half_widths"]
    assert widths["0.99"] == [[None, None]] * 3, "validation is too small for it"
    assert len(widths["0.9"]) == 3 and widths["0.5"][0][0] < widths["0.9"][0][0]
    assert {path.name for path in (folder / "champion").iterdir()} == {
        "champion.json", "weights.safetensors", "residuals.safetensors", "example.json"
    }  # fmt: skip


def test_a_champion_made_again_is_the_same_to_the_byte(folder: Path) -> None:
    before = (folder / "champion" / "champion.json").read_bytes()
    shutil.rmtree(folder / "champion")
    assert (champion_of(folder) / "champion.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": "1"}', '{"schema": 1}', '{"schema": 99}', "null"])
def test_a_damaged_description_is_one_sentence(copy: Path, content: str) -> None:
    (copy / "champion.json").write_text(content)
    with pytest.raises(StorageError) as caught:
        load_champion(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["model", "training", "lookback", "data", "shape", "inputs", "targets", "time"])
@pytest.mark.parametrize("value", [None, {"what": 1}, [], "x"])
def test_a_description_with_a_wrong_part_is_one_sentence(copy: Path, key: str, value: Any) -> None:
    about = read_about(copy)
    (copy / "champion.json").write_text(json.dumps(about | {key: value}))
    with pytest.raises(StorageError, match="is damaged") as caught:
        load_champion(copy)
    assert "\n" not in str(caught.value)


def test_a_description_in_which_anything_has_changed_is_found_by_its_checksum(copy: Path) -> None:
    text = (copy / "champion.json").read_text()
    assert load_champion(copy).about == read_about(copy)
    for old, new in (('"refit": false', '"refit": true'), ('"refit": false,', ""), ('"trial": ', '"trial": 1')):
        assert old in text
        (copy / "champion.json").write_text(text.replace(old, new, 1))
        with pytest.raises(StorageError, match=r"champion\.json is damaged \(its checksum differs\); remove .*"):
            load_champion(copy)


@pytest.mark.parametrize("name", ["weights.safetensors", "residuals.safetensors"])
def test_a_damaged_or_missing_file_is_one_sentence(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match="its checksum differs"):
        load_champion(copy)
    (copy / name).unlink()
    with pytest.raises(StorageError, match=f"lacks its file {name}"):
        load_champion(copy)


def test_no_champion_is_made_of_other_data(folder: Path, tmp_path: Path) -> None:
    search = Path(shutil.copytree(folder, tmp_path / "single"))
    shutil.rmtree(search / "champion")
    before = json.loads((search / ENVIRONMENT).read_text())
    (search / ENVIRONMENT).write_text(json.dumps(before | {"data_fingerprint": "another"}))
    with pytest.raises(StorageError, match="have changed since"):
        champion_of(search)


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


def test_the_command_writes_csv_and_says_who_predicts(folder: Path, tmp_path: Path) -> None:
    table, place = folder.parents[1] / "single.csv", tmp_path / "out.csv"
    code, output = command("single", str(table), "--storage", str(folder.parent), "--output", str(place))
    assert code == 0, output
    assert "6 rows in" in output and "by trial 0" in output and "intervals at 90 %" in output
    lines = place.read_text().splitlines()
    assert lines[0] == '"origin","step","target","predicted","lower","upper"' and len(lines) == 7
    arguments = ("single", str(table), "--storage", str(folder.parent), "--output", str(place), "--level", "0.9999")
    code, output = command(*arguments)
    assert code == 0 and "there are no intervals" in output and "intervals at" not in output, output


def test_the_command_takes_a_champion_that_was_copied_elsewhere(folder: Path, tmp_path: Path) -> None:
    table, made = folder.parents[1] / "single.csv", {}
    shutil.copytree(champion_of(folder), tmp_path / "prod")
    for name in ("single", str(tmp_path / "prod")):
        place = tmp_path / "out.csv"
        code, output = command(name, str(table), "--storage", str(folder.parent), "--output", str(place))
        assert code == 0, output
        made[name] = place.read_text()
    assert len(set(made.values())) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "sngle"}, "holds no search 'sngle'; did you mean 'single'?"),
        ({"name": "../single"}, "is that of a search, which is no path"),
        ({"output": "out.xlsx"}, "--output must end in .parquet or .csv"),
        ({"output": "/nowhere/out.csv"}, "which is no folder; make it first"),
        ({"table": "nothing.csv"}, "'nothing.csv' does not exist"),
        ({"table": "/nothing.csv"}, "'/nothing.csv' does not exist; check TABLE"),
        ({"table": "https://host.org/x.csv"}, "or download it and give the file's path"),
        ({"level": "90"}, "must lie between 0 and 1, got 90"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(
    folder: Path, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    given = {"name": "single", "table": str(folder.parents[1] / "single.csv"), "level": "0.9"} | change
    place = change.get("output", str(tmp_path / "out.csv"))
    code, output = command(
        given["name"], given["table"], "--storage", str(folder.parent), "--output", place, "--level", given["level"]
    )
    assert code == 2 and said in output and "Traceback" not in output
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("shown", ["mine.csv", "m*.csv", "."])
def test_the_command_never_writes_over_its_table(folder: Path, tmp_path: Path, shown: str) -> None:
    table, place = folder.parents[1] / "single.csv", tmp_path / "mine.csv"
    place.write_bytes(table.read_bytes())
    code, output = command("single", str(tmp_path / shown), "--storage", str(folder.parent), "--output", str(place))
    assert code == 2 and "which TABLE is read from; give the forecasts a file of their own" in output
    assert place.read_bytes() == table.read_bytes()


def test_a_search_that_has_not_ended_has_no_champion(folder: Path, tmp_path: Path) -> None:
    search = Path(shutil.copytree(folder, tmp_path / "single"))
    shutil.rmtree(search / "champion")
    shutil.rmtree(search / "results" / "scores")
    with pytest.raises(StorageError, match="has no winner yet, because it has not come to its end") as caught:
        champion_of(search)
    assert str(caught.value).endswith(f"--resume {search.name} --storage {search.parent}")
    (search / KEPT_AT).write_text(json.dumps({"storage": "s3://bucket/searches"}))
    with pytest.raises(StorageError, match=rf"--resume {search.name} --storage s3://bucket/searches$"):
        champion_of(search)
    running = rf"is still being run by process {os.getpid()} on \S+ since .*; wait until it ends$"
    with locked(search), pytest.raises(StorageError, match=running):
        champion_of(search)
    with locked(search):
        pass  # asking has left no lock


def test_a_search_whose_trials_all_failed_is_not_said_to_go_on(folder: Path, tmp_path: Path) -> None:
    search = Path(shutil.copytree(folder, tmp_path / "single"))
    for gone in ("champion", "results/scores", "results/trials"):
        shutil.rmtree(search / gone)
    with ResultsWriter(search) as results:
        for trial in range(2):
            row = {"trial": trial, "name": "lstm", "status": "failed", "reason": "diverged: loss is nan"}
            results.trial(row | {"family": "lstm", "config": {}, "params": {}})
    with pytest.raises(StorageError, match=r"because no trial could be scored \(2 failed\); its report says"):
        champion_of(search)


@pytest.mark.parametrize(
    ("n", "level", "rank"), [(9, 0.9, 9), (9, 0.5, 5), (8, 0.9, None), (99, 0.99, 99), (19, 0.8, 16)]
)
def test_the_interval_is_the_rank_that_keeps_its_promise(n: int, level: float, rank: int | None) -> None:
    width = conformal(np.arange(1.0, n + 1).reshape(n, 1, 1), level)
    assert np.isnan(width[0, 0]) if rank is None else width[0, 0] == rank


def test_intervals_hold_as_many_new_values_as_promised() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        old, new = np.abs(rng.normal(size=(30, 1, 1))), np.abs(rng.normal(size=200))
        held.append((new <= conformal(np.sort(old, axis=0), 0.8)[0, 0]).mean())
    assert 0.79 < np.mean(held) < 0.82
