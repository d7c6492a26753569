"""Where the trials of a search go on a cluster, which may have other nodes in an hour than it has now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xlstm_tune.errors import ResourceError
from xlstm_tune.search.placement.growth import Growth, Room, growth_of_cluster, nodes_now, wait_for_node
from xlstm_tune.search.placement.packing import cluster_gpu_mib
from xlstm_tune.search.placement.resources import Bundle, Placement, place, slots_on
from xlstm_tune.search.plan import Plan, fit
from xlstm_tune.spec import ResourceConfig

ANSWER_SECONDS = 60.0
"""How long a cluster's first worker may take to start."""


def check_workers_answer(where: str) -> None:
    """Raise ResourceError when this process asks for tokens and the cluster's workers have none.

    Such a cluster lets it in, and each trial's worker is ended before it has begun. Asked is the node that this process
    is connected to: another may be lost already, and not be known to be.
    """
    import ray
    from ray._raylet import (  # type: ignore[attr-defined]  # no public function tells
        AuthenticationMode,
        get_authentication_mode,
    )
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if get_authentication_mode() != AuthenticationMode.TOKEN:
        return

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    worker: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Worker).remote()
    try:
        ray.get(worker.answer.remote(), timeout=ANSWER_SECONDS)
    except ray.exceptions.ActorDiedError:
        raise ResourceError(
            f"{where} was started without token authentication, which this process asks for, so that its workers "
            "cannot answer; start the cluster with RAY_AUTH_MODE=token and the same token, or, where nobody else "
            "reaches its network, set RAY_AUTH_MODE=disabled here too"
        ) from None
    except ray.exceptions.GetTimeoutError:
        pass  # no node is there yet
    finally:
        ray.kill(worker)


class _Worker:
    """Answers."""

    def answer(self) -> None:
        """Nothing, but from there."""


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
