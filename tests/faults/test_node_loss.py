"""A cluster of three nodes, one of which goes away with the trial that it trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, write_search
from ray.cluster_utils import Cluster

from xlstm_tune.search.persistence.journal import JOURNAL, read_journal

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that trains nothing, and nothing else yet.

    A local Ray session in this process turns token authentication on for what is started after it, and a node with it
    cannot join a head without: it is there, and is never given anything to do.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


def test_what_a_lost_node_trained_goes_on_elsewhere(
    tmp_path: Path, cluster: Cluster, undisturbed: Callable[..., Path]
) -> None:
    """Both trials run on a node each; a third node comes when one of the two has gone."""
    sections = {"space": {"model.family": {"choice": ["lstm", "slstm"]}}, "training": {"epochs": 60}}
    file = str(write_search(tmp_path, **sections))
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    search = Search(tmp_path / "searches", XLSTM_TUNE_CHECKPOINT_SHARE="1000")
    search.start(file, "--address", cluster.address)
    search.until(lambda: search.epochs(0) > 3 and search.epochs(1) > 3)
    cluster.remove_node(nodes[0], allow_graceful=False)
    search.until(lambda: "died" in (search.folder / JOURNAL).read_text())
    cluster.add_node(num_cpus=1)
    search.end()
    check_accounted(search.folder, undisturbed(**sections))
    told = [json.loads(line) for line in (search.folder / JOURNAL).read_text().splitlines()]
    # Ray may notice the worker's end before the node's.
    assert [event["why"] in ("node lost", "worker died") for event in told if event["e"] == "died"] == [True]
    assert {len(past.rows) for past in read_journal(search.folder).trials.values()} == {60}
