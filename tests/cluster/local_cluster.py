"""A cluster of machines of one's own, as a user of clusters/local.yaml starts it, on hosts that are namespaces."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hosts import ROOT, Host, Network, new_key

SHIPPED = ("xlstm_tune", "search_spaces", "clusters", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
RAY = ("gcs_server", "raylet", "ray::", "/ray/", "ray.util")
"""What command lines of Ray's processes hold; one of them each."""
# As `ray list nodes` tells, which asks the dashboard: that takes longer to come up.
ALIVE = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(*(node.node_manager_address for node in nodes if node.state == 0))
"""
UP = "cd ~/xlstm_tune && ray up --yes clusters/local.yaml"
DOWN = "cd ~/xlstm_tune && ray down --yes clusters/local.yaml"


class LocalCluster:
    """A client, a head, two workers, and an outsider on the same network. `up` and `down` are the user's commands."""

    def __init__(self, place: Path, database: Path) -> None:
        """place: a new folder. database: an empty one of MLflow."""
        self.network = Network(place)
        self.client, self.head, *self.workers, self.outsider = (
            self.network.add(name) for name in ("client", "head", "worker-1", "worker-2", "outsider")
        )
        self.shared = self.network.shared
        self.nodes = [self.head, *self.workers]
        for host in self.network.hosts:
            _install(host)
        (self.client.home / ".ssh").mkdir(mode=0o700)
        public = new_key(self.client.home / ".ssh" / "id_ed25519")
        for node in self.nodes:
            node.start_sshd(public)
        # MLflow takes a while to make an empty one.
        (self.head.home / ".xlstm_tune" / "mlflow").mkdir(parents=True)
        shutil.copy(database, self.head.home / ".xlstm_tune" / "mlflow" / "mlflow.db")
        self._ship()

    def _ship(self) -> None:
        """The working tree on the client, and in it the cluster file with what a user changes, and a little more."""
        project = self.client.home / "xlstm_tune"
        project.mkdir()
        for name in SHIPPED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, project / name)
            else:
                shutil.copy2(ROOT / name, project / name)
        file = project / "clusters" / "local.yaml"
        config: dict[str, Any] = yaml.safe_load(file.read_text())
        config["provider"] |= {"head_ip": self.head.address, "worker_ips": [host.address for host in self.workers]}
        config["auth"]["ssh_user"] = "root"
        # The kernels that were compiled here go with the project, or every host would compile them for half a minute.
        config["rsync_exclude"].remove("__pycache__")
        # Each host would count all processors as its own. The GPUs are a word: torch finds none and takes the CPU.
        size = "--num-cpus=1 --num-gpus=1 --object-store-memory=100000000 --include-log-monitor=false"
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[commands] = [line.replace("ray start", f"ray start {size}") for line in config[commands]]
        file.write_text(yaml.safe_dump(config, sort_keys=False))

    def up(self, seconds: float = 900) -> None:
        """Returns when the head is up, as the command does; see `wait_for_nodes`.

        Ray gives a node 30 seconds to come up in, a fixed number that is too small for a very busy machine: there the
        command is given again, as a person would.
        """
        deadline = time.monotonic() + seconds
        while "timed out during startup" in (said := self.client.run(UP, seconds, code=None)):
            assert time.monotonic() < deadline, said
        assert "Failed to setup head node" not in said, said

    def down(self, seconds: float = 300) -> str:
        return self.client.run(DOWN, seconds)

    def alive(self) -> set[str]:
        """Addresses of Ray's nodes, as the head has them."""
        said = self.head.run(f"python -c {shlex.quote(ALIVE)} {self.head.address}:6379", code=None)
        return {host.address for host in self.nodes} & set(said.split())

    def wait_for_nodes(self, count: int, seconds: float = 300) -> None:
        until(lambda: len(self.alive()) >= count, seconds, lambda: self.head.run("ray status", code=None))

    def ray_processes(self) -> dict[str, list[str]]:
        """Command lines of Ray's processes by host, of hosts that have some."""
        found = {host.name: list(host.processes(*RAY).values()) for host in self.network.hosts if host.alive}
        return {name: lines for name, lines in found.items() if lines}

    def close(self) -> None:
        self.network.close()


def until(condition: Callable[[], Any], seconds: float, say: Callable[[], str] = str) -> Any:
    """What the condition says once that is true. say: what an error tells beside."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"it did not come true in {seconds:g} s {say()}"
        time.sleep(0.2)
    return answer


def _install(host: Host) -> None:
    """The environment of these tests as the host's ~/venv, with what clusters/node.sh leaves when it has installed it.

    To install it with pip would take minutes for each host. PYTHONPATH, since that environment has the project from
    here, and on the hosts it is to be the one that was shipped.
    """
    venv = host.home / "venv"
    venv.mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != "installed":
            (venv / part.name).symlink_to(part)
    pins = b"".join((ROOT / name).read_bytes() for name in ("constraints.txt", "pyproject.toml"))
    (venv / "installed").write_text(f"gpu {hashlib.sha256(pins).hexdigest()[:16]}\n")
    with (host.home / ".bashrc").open("a") as file:
        file.write("export PATH=~/venv/bin:$PATH PYTHONPATH=~/xlstm_tune RAY_AUTH_MODE=token\n")
        file.write("export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0\n")
        # Ray is short of patience where four hosts and other tests share two processors.
        file.write("export RAY_worker_register_timeout_seconds=240 RAY_agent_register_timeout_ms=240000\n")
        file.write("export XLSTM_TUNE_REGISTER=off XLSTM_TUNE_REPORT=off\n")
