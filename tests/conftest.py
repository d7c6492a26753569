"""Tests compute on a CPU, Triton's kernels in its interpreter, on machines with a GPU too: everywhere the same.

The few that are about a GPU carry the marker `gpu` and run by `make test-gpu`, where the kernels are compiled: Triton
asks which of both it is to be when it is imported.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from buckets import S3
    from tracked import Server

ON_GPU = os.environ.get("XLSTM_TUNE_TEST_GPU") == "1"
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    if any(Path("/dev").glob("nvidia[0-9]*")):  # elsewhere Ray is told of GPUs that are none, and would refuse them
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Ray gives way to everything else on a machine, so that of two tests side by side one would wait for the other's end.
os.environ.setdefault("RAY_worker_niceness", "0")
# Seconds at the end of every search; tests/predict has searches that register their winner, tests/search/test_run.py
# one with a report.
os.environ.setdefault("XLSTM_TUNE_REGISTER", "off")
os.environ.setdefault("XLSTM_TUNE_REPORT", "off")
os.environ.setdefault("XLSTM_TUNE_IMPORTANCE", "off")
# Searches of tests are tracked beside their results, wherever those of the person who runs the tests are.
os.environ.pop("MLFLOW_TRACKING_URI", None)

# Helpers, whose asserts are to say what they compared, as those of tests do.
HELPERS = (
    "tracked",
    "commands",
    "table_files",
    "split_tables",
    "searcher_bench",
    "trial_data",
    "report_tables",
    "wave_search",
    "fault_search",
    "ssh_head",
    "champions",
    "page_tables",
    "buckets",
    "hosts",
    "local_cluster",
    "cluster_search",
)
pytest.register_assert_rewrite(*HELPERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU run where one was asked for."""
    if ON_GPU:
        import torch

        if not torch.cuda.is_available():
            pytest.exit(f"There is no GPU: torch {torch.__version__} sees no CUDA device.", returncode=2)
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))


@pytest.fixture(autouse=True)
def own_tracking() -> Iterator[None]:
    """MLflow notes a URI that it is given in the environment, where the next test's search would find it."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True, scope="module")
def own_ray() -> Iterator[None]:
    """Ray starts by itself where a worker's task is called here, and the next module's start would find it up."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # which such a task empties
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus


@pytest.fixture(scope="session")
def empty_database() -> Path:
    """An MLflow database without a run, to be copied."""
    from tracked import empty_database  # most tests can do without MLflow

    return empty_database()


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


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of benchmarks, which import their neighbours, as scripts do."""
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server with an empty bucket `searches`."""
    from buckets import S3
    from tracked import free_port

    server = S3(tmp_path_factory.mktemp("s3"), free_port())
    server.make("searches")
    yield server
    server.stop()
