"""What the tests of tracking share: MLflow as the writer process has it, and empty databases."""
# ruff: noqa: E402  (MLflow reads some of its variables when it is imported)

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

for variable, value in {  # as the writer process has it; before MLflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ[variable] = value

from mlflow.tracking import MlflowClient


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
