"""A Ray cluster of one machine whose autoscaler adds nodes: Ray's fake provider, apart from any other Ray here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from tracked import free_port

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The node id that the fake provider gives the head."""


class GrowingCluster:
    """A head without resources, and nodes of these types: resources and how many there may be of each."""

    def __init__(self, types: dict[str, tuple[dict[str, float], int]], second: bool = True) -> None:
        """second: Ray's second autoscaler, which is the default; the first otherwise."""
        self.address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        self._folder = Path(tempfile.mkdtemp(prefix="grow-", dir="/tmp"))  # short: sockets lie below it
        nodes = {
            name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}
            for name, (resources, most) in types.items()
        }
        nodes["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config: dict[str, Any] = {
            "cluster_name": "growing",
            "max_workers": sum(most for _, most in types.values()),
            "provider": {
                "type": "external",  # Ray's wheels lack the defaults of "fake_multinode"
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": self.address,
                "head_node_id": HEAD,
                "launch_multiple": True,
            },
            "available_node_types": nodes,
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 30,
            "auth": {},
            **{name: {} for name in ("file_mounts", "docker")},
            **{name: [] for name in ("cluster_synced_files", "initialization_commands", "setup_commands")},
            **{name: [] for name in ("head_setup_commands", "worker_setup_commands")},
            **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
        }
        file = self._folder / "autoscaler.json"
        file.write_text(json.dumps(config))
        environment = os.environ | {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_AUTH_MODE": "disabled",  # `ray start` would ask for a token, which drivers on their own do not
            "RAY_agent_register_timeout_ms": "300000",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": str(int(second)),
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        }
        self._command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0"]
        self._command += ["--num-gpus=0", f"--port={self.address.rpartition(':')[2]}", f"--temp-dir={self._folder}"]
        self._command += [f"--autoscaling-config={file}", "--include-dashboard=false", "--disable-usage-stats"]
        self._command += ["--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={free_port()}"]
        self._environment = environment
        for tries in reversed(range(3)):  # Ray gives a node thirty seconds, which a busy machine does not always have
            if self._starts():
                return
            self._end()
            assert tries, self._said()

    def _starts(self) -> bool:
        """Whether the head is up within its time."""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=(self._folder / "start.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while "Ray runtime started" not in self._said():
            if self._process.poll() is not None:
                return False
            time.sleep(0.2)
        return True

    def _said(self) -> str:
        return (self._folder / "start.log").read_text()

    def stop(self) -> None:
        """End it, and leave nothing behind. Says why where it has ended by itself, which no test wants."""
        ended, said = self._process.poll(), self._said()
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)
        assert ended is None, f"the head ended by itself, with exit code {ended}: {said[-3000:]}"

    def _end(self) -> None:
        """End every process of this cluster, and of no other: they all name its folder or its address."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):  # it has ended
                    words = path.read_text(errors="replace")
                    if str(self._folder) in words or self.address in words:
                        os.kill(int(path.parent.name), number)
            time.sleep(2)
        self._process.wait(30)
