"""A search on a cluster that has no node for it yet, and an autoscaler that adds them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, write_search
from growing import GrowingCluster

from xlstm_tune.search.persistence.journal import read_journal

pytestmark = [pytest.mark.slow, pytest.mark.alone]
SPACE = {"model.family": {"choice": ["lstm", "slstm"]}}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrowingCluster]:
    """A head for nothing, and at most two nodes with a GPU that Ray believes in and torch does not find.

    A local Ray session in this process turns token authentication on for the drivers that it starts later; the cluster
    has none, and takes a driver that refuses it for dead.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = GrowingCluster({"gpu": ({"CPU": 1, "GPU": 1}, 2)})
    yield cluster
    cluster.stop()


def test_search_waits_for_the_first_node_and_uses_those_that_follow(
    tmp_path: Path, cluster: GrowingCluster, undisturbed: Callable[..., Path]
) -> None:
    whole = undisturbed(space=SPACE)
    refused = Search(tmp_path / "refused")
    refused.start(
        str(write_search(tmp_path, space=SPACE, resources={"gpus_per_trial": 2})), "--address", cluster.address
    )
    assert "which each trial asks for, and none will come" in refused.end(2, 400)
    assert not refused.folder.exists()

    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path, space=SPACE)), "--address", cluster.address)
    search.until(lambda: search.epochs() > 0, 400)
    first = search.worker(0 if search.epochs(0) else 1)
    os.kill(first, signal.SIGSTOP)  # it would have trained both before a busy machine starts another node
    search.until(lambda: search.epochs(0) and search.epochs(1), 400)
    os.kill(first, signal.SIGCONT)
    output = search.end(0, 500)
    assert f"waiting for a node with 1 CPU and 1 GPU, which the cluster at {cluster.address} does not have" in output
    assert re.search(r"a node with 1 CPU and 1 GPU has come, after \d+ s", output)
    assert "torch finds none where Ray has them" in output
    check_accounted(search.folder, whole)
    workers = {row["worker"] for past in read_journal(search.folder).trials.values() for _, row in past.rows}
    assert len(workers) == 2, "one node for each trial, since both waited"
