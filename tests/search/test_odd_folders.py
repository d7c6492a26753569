"""Working folders, locales and variables unlike a developer's: what works, and what is refused in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEARCH = """data:
  source: sample:seattle-weather
  time: {column: date}
  target: temp_max
  categories: [weather]
  lookback: 14
  horizon: 3
  split: {by: time, validation: 0.2, test: 0.2}
training: {epochs: 1}
search: {trials: 2, start_with: none}
space: {model.hidden_size: {choice: [8, 16]}}
model: {family: slstm}
"""
NAMES = (
    "calendar", "random", "statistics", "secrets", "queue", "signal", "select", "token", "copy", "string", "email",
    "platform", "logging", "uuid", "numpy", "pandas", "torch", "ray", "optuna", "rich", "yaml", "data", "test", "code",
)  # fmt: skip


def run(folder: Path | str, room: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m xlstm_tune.ROOM ARGUMENTS` in a folder, with these variables beside ours."""
    return subprocess.run(
        [sys.executable, "-m", f"xlstm_tune.{room}", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A folder with somebody's own files, named as modules are."""
    (tmp_path / "mine.yaml").write_text(SEARCH)
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py is somebody\\'s own')\n")
    return tmp_path


def test_files_named_as_modules_are_no_modules(crowded: Path) -> None:
    for room, arguments, said in (
        ("search", ["mine.yaml", "--dry-run"], "nothing is trained"),
        ("report", ["none"], "no search"),
        ("predict", ["none", "table.csv"], "no search"),
        ("tracking", ["sync", "none"], "no search"),
    ):
        answer = run(crowded, room, *arguments)
        assert "somebody's own" not in answer.stderr and "Traceback" not in answer.stderr
        assert said in answer.stdout + answer.stderr, room


@pytest.mark.slow
def test_nor_are_they_in_a_whole_search(crowded: Path) -> None:
    answer = run(crowded, "search", "mine.yaml", "--name", "whole")
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert (crowded / "searches" / "whole" / "mlflow" / "writer.log").read_text() == ""
    # A locale without the signs of a model's name, in a Python that goes by it.
    answer = run(crowded, "predict", "whole", "sample:seattle-weather", LC_ALL="C", PYTHONUTF8="0")
    assert answer.returncode == 0, answer.stderr
    assert "slstm?" in answer.stdout and "3 rows in forecasts.parquet" in answer.stdout


def test_a_checkout_that_is_not_installed_is_found_where_it_lies() -> None:
    program = "import sys; sys.argv[0] = '-m'; import xlstm_tune; print(sys.path[0] in ('', sys.argv[1]))"
    answer = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "True\n"


def test_what_lies_beside_somebody_elses_module_stays_in_reach(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("said = 'found'\n")
    (tmp_path / "their").mkdir()
    (tmp_path / "their" / "__init__.py").write_text("import xlstm_tune\n")
    (tmp_path / "their" / "module.py").write_text("import helper\nprint(helper.said)\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for start in (["-m", "their.module"], ["-c", "import xlstm_tune, helper; print(helper.said)"]):
        answer = subprocess.run(
            [sys.executable, *start], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert answer.stdout == "found\n"


def test_a_folder_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(odd)
    for folder in (odd, tmp_path):
        Path(folder, "mine.yaml").write_text(SEARCH)
    for folder, arguments, what in (
        (odd, ["mine.yaml"], "the current folder"),
        (str(tmp_path), [f"{odd}/mine.yaml"], "the search file"),
        (str(tmp_path), ["mine.yaml", "--storage", odd], "--storage"),
    ):
        answer = run(folder, "search", *arguments)
        assert answer.returncode == 2 and f"error: {what} has a name that is no text here" in answer.stderr
        assert "udce9" in answer.stderr and not answer.stdout


def test_a_report_from_a_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = "import os, sys, xlstm_tune.report.__main__ as it; os.rmdir(os.getcwd()); sys.exit(it.main(['none']))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=gone, capture_output=True, text=True)
    assert answer.returncode == 2 and "the current folder no longer exists; change to one" in answer.stderr


def test_kernels_that_may_not_be_compiled(tmp_path: Path) -> None:
    answer = run(tmp_path, "search", "quickstart", "--dry-run", NUMBA_DISABLE_JIT="1")
    assert answer.returncode == 2 and "NUMBA_DISABLE_JIT is set" in answer.stderr and "Traceback" not in answer.stderr
