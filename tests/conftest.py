"""Without a GPU, Triton's kernels run in its interpreter, which has to be asked for before Triton is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tracked import Server

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Helpers, whose asserts are to say what they compared, as those of tests do.
HELPERS = (
    "tracked",
    "table_files",
    "split_tables",
    "searcher_bench",
    "trial_data",
    "wave_search",
    "fault_search",
    "page_tables",
)
pytest.register_assert_rewrite(*HELPERS)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    from tracked import MlflowClient  # most tests can do without MLflow

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    """A real one, on an empty database."""
    from tracked import Server

    place = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, place / "mlflow.db")
    server = Server(place)
    server.start()
    yield server
    server.stop()
