"""A cluster that grows while it is searched: what may come, waiting for the first of it, and room for trials on it.

Ray's autoscaler adds nodes for what waits, and the processes that wait here are trials; so as many are begun as the
largest cluster would hold. A cluster without an autoscaler may grow too, by hand: there, the room is what is there now.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from xlstm_tune.errors import ResourceError
from xlstm_tune.search.placement.resources import Bundle, slots_on

_HERE = ("127.0.0.1", "localhost")
ENDS_WITHIN = 10.0
"""Seconds for a task that does nothing, once there is room for it."""
LOOK_SECONDS = 2.0
"""Between two looks at the nodes."""


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler may start. resources: `CPU`, `GPU`; empty = not known before it is there."""

    resources: Mapping[str, float]
    most: int


@dataclass(frozen=True)
class Growth:
    """What may come to a cluster. types: of the autoscaler; None = nobody told, so that anything may."""

    types: tuple[NodeType, ...] | None
    most: int | None = None
    """Nodes of all types together; None = no limit."""

    def may_bring(self, trial: Bundle) -> bool:
        """Whether a node on which a trial fits may come.

        Where there is no autoscaler, somebody may add one with GPUs by hand, whom the search file asks for.
        """
        if not self.types:
            return self.types is None or trial.gpus > 0
        return any(one.most and (not one.resources or slots_on([one.resources], trial)) for one in self.types)

    def slots(self, trial: Bundle) -> int:
        """Trials on all that may come, by what is known of it."""
        each = sorted(
            (slots_on([one.resources], trial), one.most) for one in self.types or () if slots_on([one.resources], trial)
        )
        left, slots = self.most if self.most is not None else math.inf, 0
        for fits, count in reversed(each):  # the largest first: no more than this can ever be
            taken = int(min(left, count))
            slots, left = slots + fits * taken, left - taken
        return slots

    @property
    def gpus(self) -> bool:
        """Whether an autoscaler says that GPUs may come."""
        return any(one.most and one.resources.get("GPU", 0.0) >= 1 for one in self.types or ())


def growth_of_cluster() -> Growth:
    """What may come to the Ray cluster that this process is connected to.

    An autoscaler that reports its node types to Ray's control store is asked there. That of `ray up` does not; its
    process runs on the head, as a search's driver does, and names the file that it goes by. A head whose monitor has no
    such file is one without an autoscaler.
    """
    from ray._private.state import state  # no public function tells either

    if (told := state.get_cluster_config()) is not None and told.node_group_configs:
        groups = told.node_group_configs
        types = [NodeType(dict(one.resources), one.max_count if one.max_count >= 0 else 10_000) for one in groups]
        return Growth(tuple(types))
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    mine = ray.util.get_node_ip_address()
    # A monitor knows its cluster by this machine's address, where the search may have been given another name of it.
    addresses = {f"--gcs-address={one}:{port}" for one in ((host, mine) if host in (mine, *_HERE) else (host,))}
    for words in _processes():
        if addresses & set(words) and any(word.endswith("/monitor.py") for word in words):
            files = [word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")]
            return read_growth(Path(files[0]).expanduser()) if files else Growth(())
    return Growth(None)


def read_growth(file: Path) -> Growth:
    """The node types of a cluster file as the head has it."""
    try:
        config = yaml.safe_load(file.read_text())
        head, most = config["head_node_type"], config.get("max_workers")
        types = [
            NodeType(one.get("resources") or {}, int(one.get("max_workers", 0 if most is None else most)))
            for name, one in config["available_node_types"].items()
            if name != head or config["provider"]["type"] == "local"  # whose machines share one type with the head
        ]
        return Growth(tuple(types), most)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return Growth(None)  # the autoscaler reads it, whoever else cannot


def _processes() -> list[list[str]]:
    """The command lines of this machine's processes, where there is a /proc to tell them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace").split("\0"))
        except OSError:  # it has ended, or is another's
            continue
    return found


def nodes_now() -> list[dict[str, float]]:
    """Resources of every node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def wait_for_node(trial: Bundle, growth: Growth, where: str, say: Callable[[str], None]) -> None:
    """Wait until a node of the cluster can take a trial, and say so before and after where none is there.

    Raises ResourceError where none can come.
    """
    import ray

    if slots_on(nodes_now(), trial):
        return
    if not growth.may_bring(trial):
        raise ResourceError(
            f"no node of {where} has {trial.describe()}, which each trial asks for, and none will come; change "
            "resources.cpus_per_trial or resources.gpus_per_trial, or the cluster file"
        )
    by_hand = "" if growth.types else "; where no autoscaler adds one, 'ray start --address=...' there does"
    say(f"waiting for a node with {trial.describe()}, which {where} does not have yet{by_hand} (Ctrl-C stops)")
    began = time.monotonic()
    # What waits is what an autoscaler goes by; nothing else would make it add a node before the first trial.
    asked = ray.remote(num_cpus=trial.cpus, num_gpus=trial.gpus, max_retries=-1)(_nothing).remote()
    patience = 0.0
    try:
        while not (slots_on(nodes_now(), trial) or ray.wait([asked], timeout=0)[0]):
            time.sleep(LOOK_SECONDS)
        patience = ENDS_WITHIN
    finally:
        # Where there is room it ends by itself. Ray ends this process where a task is cancelled as it ends.
        if not ray.wait([asked], timeout=patience)[0]:
            ray.cancel(asked)
    say(f"a node with {trial.describe()} has come, after {time.monotonic() - began:.0f} s")


def _nothing() -> None:
    """Runs where there is room for a trial."""


class Room:
    """How many trials may be under way: what the cluster holds now, or may hold once its autoscaler has acted.

    trial: what each takes. limit: `resources.max_concurrent`.
    """

    def __init__(self, trial: Bundle, growth: Growth, limit: int | None) -> None:
        self._trial, self._growth, self._limit = trial, growth, limit
        self._looked, self._now = -math.inf, 1

    def __call__(self) -> int:
        """At least 1, so that something waits where all nodes have gone."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked, self._now = time.monotonic(), self._count()
        return self._now

    def _count(self) -> int:
        now = slots_on(nodes_now(), self._trial)
        # Where nobody tells whether there is an autoscaler, as many wait as run: it would double the cluster.
        may_be = 2 * now if self._growth.types is None else self._growth.slots(self._trial)
        return max(1, min(max(now, may_be), self._limit or 1_000_000))
