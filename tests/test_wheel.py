"""The built wheel carries the shipped search files and works outside the repository."""

from __future__ import annotations

import json
import os
import shutil
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
    take_machine_code(ROOT / "xlstm_tune" / "kernels", place / "xlstm_tune" / "kernels")
    return python


def take_machine_code(here: Path, there: Path) -> None:
    """Copy what Numba keeps beside the kernels, which it takes for sources of the same size and time.

    To compile it again would take a minute and test nothing of the wheel.
    """
    for source in here.glob("*.py"):
        shutil.copystat(source, there / source.name)
    for kept in here.glob("__pycache__/*.nb[ci]"):
        (there / "__pycache__").mkdir(exist_ok=True)
        shutil.copy2(kept, there / "__pycache__")


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_wheel_is_imported_from_the_clean_environment(clean: Path, tmp_path: Path) -> None:
    where = run(clean, "-c", "import xlstm_tune; print(xlstm_tune.__file__)", cwd=tmp_path)
    assert str(clean.parents[1]) in where


DRY_RUNS = f"""
import json
from typer.testing import CliRunner
from xlstm_tune.search.__main__ import app

# The full sample has 386,000 rows; a small one has the same columns.
small = ["data.sample={{counties: 4, years: 8}}", "data.lookback=30", "training.batch_size=2"]
found = {{}}
for space in {SPACES}:
    sizes = [part for change in small for part in ("--set", change)] if space.startswith("grid") else []
    result = CliRunner().invoke(app, [space, "--dry-run", *sizes])
    found[space] = result.exit_code, result.output
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def checked(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and output of a dry run of each shipped space: one process, which imports torch once."""
    return json.loads(run(clean, "-c", DRY_RUNS, cwd=tmp_path_factory.mktemp("dry")))


@pytest.mark.parametrize("space", SPACES)
def test_wheel_checks_each_shipped_space(checked: dict[str, tuple[int, str]], space: str) -> None:
    code, output = checked[space]
    assert code == 0, output
    assert "parameters" in output and "configurations" in output
    if space == "grid_xlstm":
        assert "176 points, 16 of them repeat another: 160 distinct configurations" in output


def test_wheel_runs_the_quickstart_where_no_file_is_given(clean: Path, tmp_path: Path) -> None:
    output = run(clean, "-m", "xlstm_tune.search", "--trials", "2", "--set", "training.epochs=1", cwd=tmp_path)
    assert "running the shipped quickstart" in output
    assert "won: rmse" in output
    assert (tmp_path / "searches" / "quickstart" / "results").is_dir()
