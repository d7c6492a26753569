"""The built wheel carries the shipped search files and works outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SPACES = ("quickstart", "xlstm_forecast", "long_horizon", "lstm_vs_xlstm", "grid_xlstm", "grid_lstm")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment that holds the wheel, and this one's dependencies but not this one's xlstm_tune.

    The dependencies are reached by path: downloading them again would take minutes and test nothing of ours.
    """
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"xlstm_tune/search_spaces/{space}.yaml" for space in SPACES} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    place = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    # A plain path in a .pth file: the editable install's own .pth files in that folder are not followed.
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_wheel_is_imported_from_the_clean_environment(clean: Path, tmp_path: Path) -> None:
    where = run(clean, "-c", "import xlstm_tune; print(xlstm_tune.__file__)", cwd=tmp_path)
    assert str(clean.parents[1]) in where


@pytest.mark.parametrize("space", SPACES)
def test_wheel_checks_each_shipped_space(clean: Path, tmp_path: Path, space: str) -> None:
    # The full sample has 386,000 rows; a small one has the same columns.
    sizes = ["--set", "data.sample={counties: 4, years: 8}"] if space.startswith("grid") else []
    output = run(clean, "-m", "xlstm_tune.search", space, "--dry-run", *sizes, cwd=tmp_path)
    assert "parameters" in output and "configurations" in output
    if space == "grid_xlstm":
        assert "176 points, 16 of them repeat another: 160 distinct configurations" in output


def test_wheel_runs_the_quickstart_where_no_file_is_given(clean: Path, tmp_path: Path) -> None:
    output = run(clean, "-m", "xlstm_tune.search", "--trials", "2", "--set", "training.epochs=1", cwd=tmp_path)
    assert "running the shipped quickstart" in output
    assert "won: rmse" in output
    assert (tmp_path / "searches" / "quickstart" / "results").is_dir()
