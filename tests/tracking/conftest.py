"""What the tests of tracking share: a search folder beside an empty database."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """A search folder in a storage folder whose name needs quoting, beside an empty database."""
    folder = tmp_path / "my störage" / "s"
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder.parent / "mlflow.db")
    return folder
