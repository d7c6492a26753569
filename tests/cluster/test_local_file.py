"""clusters/local.yaml, as far as Ray's own code can say something about it without machines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hosts import ROOT

NODE = "local.cluster.node"
"""Ray's type of every machine of one's own, the head too."""


@pytest.fixture
def config() -> dict[str, Any]:
    """As Ray reads it; without the key, which is on the user's machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "clusters" / "local.yaml").read_text())
    del config["auth"]["ssh_private_key"]
    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_the_first_autoscaler_starts_every_worker_and_the_second_leaves_one_out(config: dict[str, Any]) -> None:
    """Why the file asks for the first; where this fails because Ray does better, the file can do without."""
    from ray.autoscaler._private.resource_demand_scheduler import _add_min_workers_nodes
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus
    from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

    workers, types = len(config["provider"]["worker_ips"]), config["available_node_types"]
    first = _add_min_workers_nodes([{"CPU": 1}], {NODE: 1}, types, workers + 1, NODE, None, None)
    assert first[2] == {NODE: workers}

    address = config["provider"]["head_ip"]
    node = NodeState(node_id=b"head", ray_node_type_name=NODE, status=NodeStatus.RUNNING)
    instance = Instance(
        instance_id="head",
        instance_type=NODE,
        status=Instance.RAY_RUNNING,
        node_kind=NodeKind.HEAD,
        cloud_instance_id=address,
    )
    request = SchedulingRequest(
        node_type_configs=AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs(),
        max_num_nodes=workers + 1,
        current_instances=[AutoscalerInstance(im_instance=instance, ray_node=node, cloud_instance_id=address)],
        disable_launch_config_check=True,
    )
    second = ResourceDemandScheduler(None).schedule(request)
    assert [(launch.instance_type, launch.count) for launch in second.to_launch] == [(NODE, workers - 1)]
    assert any("RAY_enable_autoscaler_v2=0 ray start --head" in line for line in config["head_start_ray_commands"])


def test_what_is_shipped_is_there(config: dict[str, Any]) -> None:
    for place, source in config["file_mounts"].items():
        assert (ROOT / source).exists() and place == f"~/xlstm_tune/{source}"
