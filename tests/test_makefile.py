"""The Makefile's commands, where names hold what a shell takes apart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("search",), '-m xlstm_tune.search "quickstart" --storage "searches" \\\n\t--name "quickstart-$(date'),
        (("search", "FILE=my own.yaml", "STORAGE=~/my runs"), '"my own.yaml" --storage "/home/me/my runs"'),
        (("search", "FILE=my own.yaml"), '--name "my-own-$(date'),
        (("report", "NAME=a", "STORAGE=my runs"), '-m xlstm_tune.report a --storage "my runs"'),
        (("ui", "STORAGE=~/my runs"), '-m xlstm_tune.tracking uri "/home/me/my runs"'),
    ],
)
def test_names_with_spaces_stay_whole(words: tuple[str, ...], said: str) -> None:
    made = subprocess.run(
        ["make", "-n", "-o", ".venv/ready", *words],
        cwd=ROOT,
        env=os.environ | {"HOME": "/home/me"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said in made.stdout
