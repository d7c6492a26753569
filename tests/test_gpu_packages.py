"""A machine with a GPU has torch, its Triton and the packages of benchmarks/gpu.txt, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("worker", "checks", "limits", "peers", "memory", "mlstm_peers", "stack", "capture")
UNNEEDED = ("ray", "optuna", "mlflow", "pydantic", "typer", "rich", "pyarrow", "safetensors", "epiweeks")
"""What the checks and times do without."""
MISSING = ("ray", "optuna", "mlflow", "typer", "rich", "pyarrow", "epiweeks", "scipy", "yaml")
"""What lies not in benchmarks/gpu.txt."""

pytestmark = pytest.mark.slow


def alone(program: str, *missing: str) -> str:
    """What a program says in an interpreter that lacks these packages."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({missing}))"
    places = {"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", f"{blocked}; {program}"]
    finished = subprocess.run(command, capture_output=True, text=True, env=places, cwd=ROOT)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_gpu_modules_need_torch_triton_and_numba_alone() -> None:
    modules = ["gpu", *(f"gpu_{name}" for name in MODULES)]
    alone(f"import {', '.join(modules)}", *UNNEEDED)


def test_capture_trains_with_the_packages_of_a_gpu_machine() -> None:
    size = {"batch": 4, "steps": 10, "width": 16}
    measured = f"import torch, gpu_capture; print(gpu_capture.measure(2, torch.device('cpu'), {size}))"
    assert "'differs': 0.0" in alone(measured, *MISSING, "safetensors")


def test_gpu_tests_are_found_with_the_packages_of_a_gpu_machine() -> None:
    mark = "pytest.mark." + "gpu"
    collect = "import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-m', 'gpu', *sys.argv[1:]]))"
    files = [str(path) for path in sorted(ROOT.glob("tests/**/*.py")) if mark in path.read_text()]
    said = alone(f"sys.argv[1:] = {files}; {collect}", *MISSING)
    assert "test_capture.py" in said and "test_micro.py" in said and "error" not in said
