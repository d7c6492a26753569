"""A storage folder that was moved or copied, with MLflow's database and files in it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tracked import MlflowClient, check_search, say_search, say_trial, stored

from xlstm_tune.layout import MLFLOW_FILES
from xlstm_tune.tracking import Spool, default_uri, sync
from xlstm_tune.tracking.moved import take_files_along


@pytest.fixture
def sent(folder: Path) -> Path:
    """The folder of a search of two trials that are in MLflow, with their files, beside a registered model."""
    with Spool(folder, default_uri(folder.parent)) as spool:
        say_search(spool, 2)
    assert sync(folder) is None
    client = MlflowClient(default_uri(folder.parent))
    client.create_registered_model("shop")
    run = stored(default_uri(folder.parent), folder)[None]["id"]
    client.create_model_version("shop", client.get_run(run).info.artifact_uri, run)
    return folder


def places(storage: Path) -> set[Path]:
    """All that the database says of files."""
    with closing(sqlite3.connect(storage / "mlflow.db")) as store:
        rows = store.execute(
            "SELECT artifact_uri FROM runs UNION SELECT source FROM model_versions UNION "
            "SELECT artifact_location FROM experiments WHERE name != 'Default'"
        )
        return {Path(unquote(urlsplit(place).path)) for (place,) in rows}


def say_more(folder: Path) -> None:
    """A third trial of the search, and send it, as a process does that has not sent before: MLflow remembers places."""
    with Spool(folder, default_uri(folder.parent)) as spool:
        say_trial(spool, 2, folder=folder)
    asked = [sys.executable, "-m", "xlstm_tune.tracking", "sync", str(folder)]
    made = subprocess.run(asked, capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (0, "everything has arrived in MLflow\n"), made.stderr


def below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("old", ["gone", "cannot be made again"])
def test_files_are_found_and_go_where_the_folder_was_moved_to(old: str, sent: Path, tmp_path: Path) -> None:
    """Without that the old place would be made again, or all that comes behind a file wait for ever."""
    before, storage = sent.parent, tmp_path / "50 % another' place"
    kept = below(before / MLFLOW_FILES)
    before.rename(storage)
    if old != "gone":
        before.touch()
    say_more(storage / sent.name)
    assert all(place.is_relative_to(storage / MLFLOW_FILES) for place in places(storage))
    uri = default_uri(storage)
    runs = stored(uri, storage / sent.name)
    check_search({number: run for number, run in runs.items() if number != 2}, 2)
    assert runs[2]["files"] == ["weights.safetensors"]
    assert Path(MlflowClient(uri).download_artifacts(runs[0]["id"], "weights.safetensors")).read_bytes() == bytes(100)
    assert below(storage / MLFLOW_FILES) > kept and not before.is_dir()


def test_a_copy_leaves_what_it_was_copied_from_alone(sent: Path, tmp_path: Path) -> None:
    before, storage = sent.parent, tmp_path / "copy"
    shutil.copytree(before, storage)
    kept, database = below(before), (before / "mlflow.db").read_bytes()
    say_more(storage / sent.name)
    assert below(before) == kept and (before / "mlflow.db").read_bytes() == database
    assert all(place.is_relative_to(storage / MLFLOW_FILES) for place in places(storage))
    assert below(storage / MLFLOW_FILES) > below(before / MLFLOW_FILES)


def test_files_that_were_left_where_they_were_stay_there(sent: Path, tmp_path: Path) -> None:
    before, storage = sent.parent, tmp_path / "database alone"
    storage.mkdir()
    shutil.copy(before / "mlflow.db", storage / "mlflow.db")
    take_files_along(storage / "mlflow.db")
    assert places(storage) == places(before)


def test_the_same_folder_by_another_name_is_no_move(sent: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sent.parent)
    said = places(sent.parent)
    take_files_along(tmp_path / "link" / "mlflow.db")
    assert places(sent.parent) == said


def test_a_database_among_the_files_of_another_names_its_own(sent: Path, tmp_path: Path) -> None:
    """Copied alone into a folder that has runs of its own, or shared by a link from there."""
    said = places(sent.parent)
    (tmp_path / "other" / MLFLOW_FILES / "0123").mkdir(parents=True)
    shutil.copy(sent.parent / "mlflow.db", tmp_path / "other" / "mlflow.db")
    take_files_along(tmp_path / "other" / "mlflow.db")
    assert places(tmp_path / "other") == said
    (tmp_path / "other" / "mlflow.db").unlink()
    (tmp_path / "other" / "mlflow.db").symlink_to(sent.parent / "mlflow.db")
    take_files_along(tmp_path / "other" / "mlflow.db")
    assert places(sent.parent) == said


def test_places_that_somebody_chose_are_left_alone(sent: Path, tmp_path: Path) -> None:
    client = MlflowClient(default_uri(sent.parent))
    for number, place in enumerate(["s3://bucket/mlflow-artifacts", "mlflow-artifacts:/7", "file:///gone/files", None]):
        client.create_experiment(f"own-{number}", artifact_location=place)
    said = places(sent.parent)
    take_files_along(sent.parent / "mlflow.db")
    assert places(sent.parent) == said


@pytest.mark.parametrize("content", [None, b"", b"no database" * 100])
def test_what_is_no_database_of_mlflow_is_left_to_mlflow(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    if content is not None:
        path.write_bytes(content)
    take_files_along(path)
    assert (path.read_bytes() if path.exists() else None) == content
