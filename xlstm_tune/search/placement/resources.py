"""How many trials run at a time, and on what."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from xlstm_tune.errors import ResourceError
from xlstm_tune.search.placement.limits import cpu_limit, memory_limit
from xlstm_tune.spec import ResourceConfig


@dataclass(frozen=True)
class Bundle:
    """What one trial takes of a node."""

    cpus: float
    gpus: float

    def describe(self) -> str:
        """For people: `1 CPU and 0.5 GPU`."""
        text = f"{self.cpus:g} CPU{'s' if self.cpus != 1 else ''}"
        return text + (f" and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "")


@dataclass(frozen=True)
class Placement:
    """What each trial gets, and how many run at a time."""

    cpus: float
    gpus: float
    concurrent: int
    why: str = field(default="", compare=False)
    """Of trials that share a GPU, or do not, by an estimate; empty where nothing was estimated."""
    width: int = 1
    """Configurations that a trial may train together (`search.fuse`)."""
    room: Callable[[], int] | None = field(default=None, compare=False)
    """Trials that may be under way at this moment, where that changes; None = `concurrent`, always."""

    @property
    def bundle(self) -> Bundle:
        """What a trial takes."""
        return Bundle(self.cpus, self.gpus)

    def describe(self) -> str:
        """For people: `2 trials at a time, each on 1 CPU`."""
        each = f"each on {self.bundle.describe()}"
        return f"{self.concurrent} trial{'s' if self.concurrent != 1 else ''} at a time, {each}"


def slots_on(nodes: Iterable[Mapping[str, float]], trial: Bundle) -> int:
    """Trials that run at a time on nodes of these resources. None straddles two nodes, nor two GPUs that it shares."""
    return sum(_slots(node.get("CPU", 0.0), node.get("GPU", 0.0), trial) for node in nodes)


def _slots(cpus: float, gpus: float, trial: Bundle) -> int:
    fits = math.floor(cpus / trial.cpus + 1e-9)
    if trial.gpus >= 1:
        fits = min(fits, math.floor(gpus / trial.gpus + 1e-9))
    elif trial.gpus:
        fits = min(fits, math.floor(gpus) * math.floor(1 / trial.gpus + 1e-9))
    return fits


def packable(config: ResourceConfig, available: Mapping[str, float]) -> bool:
    """Whether an estimate of the trials' memory decides how many share a GPU."""
    return config.gpus_per_trial == "auto" and available.get("GPU", 0.0) >= 1


def place(
    config: ResourceConfig,
    available: Mapping[str, float],
    where: str = "this machine",
    share: float = 1.0,
    why: str = "",
) -> Placement:
    """Fit trials into the `CPU` and `GPU` counts of a machine or cluster.

    share: GPUs that `gpus_per_trial: auto` gives a trial where there are any, and `why`; see `packing`.
    Raises ResourceError when not even one trial fits.
    """
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    wanted = (share if gpus else 0.0) if config.gpus_per_trial == "auto" else float(config.gpus_per_trial)
    if wanted > gpus:
        raise ResourceError(
            f"resources.gpus_per_trial asks for {wanted:g} GPU(s) a trial, but {where} has {gpus:g}; "
            "ask for fewer, or for 'auto'"
        )
    if config.cpus_per_trial > cpus:
        raise ResourceError(
            f"resources.cpus_per_trial asks for {config.cpus_per_trial:g} CPU(s) a trial, but {where} has {cpus:g}; "
            "ask for fewer"
        )
    fits = _slots(cpus, gpus, Bundle(config.cpus_per_trial, wanted))
    return Placement(config.cpus_per_trial, wanted, max(1, min(fits, config.max_concurrent or fits)), why)


def check_cluster(address: str) -> None:
    """Raise ResourceError unless something listens at a Ray cluster's address: `auto` or host:port.

    Ray itself would try for a minute and then end the process without a word that Python could catch.
    """
    found = address
    if address == "auto":
        from ray._private.utils import read_ray_address  # no public function tells what `auto` will find

        found = os.environ.get("RAY_ADDRESS") or read_ray_address() or ""
    remedy = "start one with 'ray start --head', or leave --address out to use this machine"
    if not found:
        raise ResourceError(f"--address auto finds no Ray cluster on this machine; {remedy}")
    if found.startswith("ray://"):  # a client sees no nodes, and what it trains on could not reach the search's folder
        raise ResourceError(
            f"--address cannot be {found}, which is for programs outside of a cluster; run the search on one of its "
            "machines with --address auto, or give its cluster file with --cluster"
        )
    host, _, port = found.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ResourceError(f"--address must be auto or host:port, got '{found}'")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError, ValueError) as error:  # ValueError: a name that no host can have
        raise ResourceError(f"no Ray cluster answers at {found} ({error}); {remedy}") from None


def local_resources() -> dict[str, float]:
    """CPUs that this process may use, and GPUs that torch can reach."""
    import torch

    return {"CPU": float(cpus()), "GPU": float(torch.cuda.device_count())}


def own_gpus_alone() -> None:
    """In a worker, before torch looks at a GPU: hide those that Ray did not give it.

    Ray names a worker's GPUs in CUDA_VISIBLE_DEVICES, but leaves the variable alone where a worker has none: all of
    them would then train on the first.
    """
    import ray

    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def cpus() -> int:
    """Processors that this process may use: not all of them, where it is bound to some or may have so much of their
    time alone."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return found if (limit := cpu_limit()) is None else max(1, min(found, int(limit)))


def memory_mib() -> float:
    """Memory that this machine, or the container or job that this process runs in, has for programs."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (found if (limit := memory_limit()) is None else min(found, limit)) / 2**20
