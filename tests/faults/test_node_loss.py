"""A cluster of three nodes, one of which goes away with the trial that it trains."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, write_search
from ray.cluster_utils import Cluster

from xlstm_tune.search.journal import JOURNAL, read_journal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "XLSTM_TUNE_CLUSTER_TESTS" not in os.environ,
        reason="four Ray nodes on one machine do not always start their workers in time; XLSTM_TUNE_CLUSTER_TESTS=1",
    ),
]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing, and nothing else yet."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


def test_what_a_lost_node_trained_goes_on_elsewhere(tmp_path: Path, cluster: Cluster) -> None:
    """Both trials run on a node each; a third node comes when one of the two has gone."""
    file = str(write_search(tmp_path, space={"model.family": {"choice": ["lstm", "slstm"]}}, training={"epochs": 60}))
    whole = Search(tmp_path / "whole")
    whole.run(file)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    search = Search(tmp_path / "searches", XLSTM_TUNE_CHECKPOINT_SHARE="1000")
    search.start(file, "--address", cluster.address)
    search.until(lambda: search.epochs(0) > 3 and search.epochs(1) > 3)
    cluster.remove_node(nodes[0], allow_graceful=False)
    search.until(lambda: "died" in (search.folder / JOURNAL).read_text())
    cluster.add_node(num_cpus=1)
    search.end()
    check_accounted(search.folder, whole.folder)
    told = [json.loads(line) for line in (search.folder / JOURNAL).read_text().splitlines()]
    # Ray may notice the worker's end before the node's.
    assert [event["why"] in ("node lost", "worker died") for event in told if event["e"] == "died"] == [True]
    assert {len(past.rows) for past in read_journal(search.folder).trials.values()} == {60}
