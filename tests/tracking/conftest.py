"""What the tests of tracking share: empty databases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tracked import MlflowClient


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """A search folder in a storage folder whose name needs quoting, beside an empty database."""
    folder = tmp_path / "my störage" / "s"
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder.parent / "mlflow.db")
    return folder
