"""`python -m xlstm_tune.report`: names, places, and one sentence for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import report_tables
from page_tables import write_search

from xlstm_tune.report import page
from xlstm_tune.report.__main__ import main
from xlstm_tune.results import ResultsWriter


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_plotly", lambda: "/* plotly */")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    write_search(tmp_path / "storage" / "quickstart", 4)
    return tmp_path / "storage"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What stderr says of a refused command."""
    assert main(list(arguments)) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and answer.err.count("\n") == 1 and answer.err.startswith("error: ")
    return answer.err


def test_page_is_written_into_the_search_folder_and_its_place_printed(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["quickstart", "--storage", str(storage)]) == 0
    path = storage / "quickstart" / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    first = path.read_text(encoding="utf-8")
    assert first.startswith("<!DOCTYPE html>") and first.rstrip().endswith("</html>")
    monkeypatch.chdir(storage)
    assert main(["./quickstart"]) == 0  # a path, and the page once more
    assert not [one for one in path.parent.iterdir() if one.name.endswith(".tmp")]


def test_output_goes_where_it_is_asked_for(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--storage", str(storage), "--output", str(tmp_path / "mine.html")]) == 0
    assert (tmp_path / "mine.html").exists() and not (storage / "quickstart" / "report.html").exists()


def test_unknown_name_is_refused_with_the_nearest(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'quickstart'?" in refused(capsys, "quikstart", "--storage", str(storage))
    assert "known here: quickstart" in refused(capsys, "zzz", "--storage", str(storage))
    assert "no search lies there" in refused(capsys, "zzz", "--storage", str(storage / "nowhere"))
    assert "holds no search" in refused(capsys, "a\0b", "--storage", str(storage))


def test_folder_without_results_is_refused(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (storage / "empty").mkdir()
    assert "holds no results of a search" in refused(capsys, "empty", "--storage", str(storage))


def test_damaged_search_is_refused_in_a_sentence(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = storage / "quickstart" / "spec.yaml"
    for text in ("a: [", "- a", "search: {objective: val_accuracy}"):
        spec.write_text(text)
        refused(capsys, "quickstart", "--storage", str(storage))
    spec.unlink()
    part = next((storage / "quickstart" / "results" / "trials").glob("part-*.parquet"))
    part.write_bytes(b"not a table")
    assert "cannot be read" in refused(capsys, "quickstart", "--storage", str(storage))
    part.unlink()
    with ResultsWriter(storage / "quickstart") as writer:
        writer.trial({"trial": 0, "status": "completed", "params": "{", "val_rmse": 1.0})
    assert "are damaged" in refused(capsys, "quickstart", "--storage", str(storage))


def test_output_that_cannot_be_written_is_refused(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["quickstart", "--storage", str(storage), "--output"]
    assert "must be a file" in refused(capsys, *place, str(tmp_path))
    assert "cannot be written" in refused(capsys, *place, str(tmp_path / "nowhere" / "page.html"))
    assert "cannot be written" in refused(capsys, *place, str(tmp_path / ("a" * 300 + ".html")))


def test_several_names_are_compared_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = tmp_path / "searches"
    report_tables.write_search(storage / "first", name="first", families={"slstm": 2.0})
    report_tables.write_search(storage / "second", name="second", families={"lstm": 3.0})
    assert main(["first", "second", "--storage", str(storage)]) == 0
    assert capsys.readouterr().out == f"{storage / 'comparison.html'}\n"
    text = (storage / "comparison.html").read_text()
    assert (
        "first has the lowest RMSE on validation" in text
        and "On test, by RMSE, it is better than 1 of 1 other." in text
    )
    report_tables.write_search(storage / "third", name="third", data={"fingerprint": "other"})
    said = refused(capsys, "first", "third", "--storage", str(storage))
    assert "cannot be compared" in said


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys; from xlstm_tune.report.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    )
    program += "print(sorted({'torch', 'ray', 'mlflow', 'optuna', 'plotly'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("[]\n")


def test_building_a_page_needs_neither_ray_nor_mlflow_nor_torch() -> None:
    program = "import sys, xlstm_tune.report.page; print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
