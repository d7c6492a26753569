"""Where the trials of a search go on a cluster, which may have other nodes in an hour than it has now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from xlstm_tune.search.growth import Growth, Room, growth_of_cluster, nodes_now, wait_for_node
from xlstm_tune.search.packing import cluster_gpu_mib
from xlstm_tune.search.plan import Plan, fit
from xlstm_tune.search.resources import Bundle, Placement, place, slots_on
from xlstm_tune.spec import ResourceConfig


def place_on_cluster(plan: Plan, say: Callable[[str], None]) -> Placement:
    """The placement on the cluster that this process is connected to, once it has a node for a trial.

    Raises ResourceError when no such node is there or may come.
    """
    config, where = plan.spec.resources, f"the cluster at {plan.address}"
    growth = growth_of_cluster()
    wait_for_node(smallest_trial(config, growth, nodes_now()), growth, where, say)
    nodes = nodes_now()
    gpus = [node for node in nodes if node.get("GPU", 0.0) >= 1]
    if gpus and config.gpus_per_trial != 0:
        nodes = gpus  # the others get no trial
    available = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    placement = place(config, available, where)
    told: list[float] = []

    def smallest() -> float | None:
        told.extend(cluster_gpu_mib())
        return min(told, default=None)

    fullest = max(slots_on([node], placement.bundle) for node in nodes)
    placement = fit(placement, plan.spec, plan.space, plan.data, available, smallest, where, fullest)
    if told and max(told) > min(told) > 0:
        placement = replace(
            placement,
            why=f"{placement.why}; that is the smallest GPU of {len(told)} nodes, and others have up to "
            f"{max(told):,.0f} MiB",
        )
    room = Room(placement.bundle, growth, config.max_concurrent)
    return replace(placement, concurrent=room(), room=room)


def smallest_trial(config: ResourceConfig, growth: Growth, nodes: list[dict[str, float]]) -> Bundle:
    """What a node must have for a first trial; with `auto` a whole GPU where any are or may come."""
    if config.gpus_per_trial != "auto":
        return Bundle(config.cpus_per_trial, float(config.gpus_per_trial))
    any_gpu = growth.gpus or any(node.get("GPU", 0.0) >= 1 for node in nodes)
    return Bundle(config.cpus_per_trial, 1.0 if any_gpu else 0.0)
