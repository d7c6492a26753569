"""A cluster of two nodes, one of which does not answer any more: how long the question whether workers answer takes.

Asked several times, since Ray is free to choose a node. A process of its own, since it has a token.
"""

from __future__ import annotations

import signal
import time

import ray
from ray.cluster_utils import Cluster

from xlstm_tune.search.placement.cluster import check_workers_answer

TIMES = 4

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=4)
ray.init(address=cluster.address, log_to_driver=False)
raylet = node.all_processes["raylet"][0].process
raylet.send_signal(signal.SIGSTOP)
try:
    began = time.monotonic()
    for _ in range(TIMES):
        check_workers_answer("the cluster")
    print(time.monotonic() - began)
finally:
    ray.shutdown()
    raylet.kill()
    cluster.shutdown()
