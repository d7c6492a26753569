"""A cluster without tokens, and a driver that asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_search import NAME, Search, write_search
from tracked import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def address() -> Iterator[str]:
    """Of a cluster of one node that asks nobody for a token."""
    with tempfile.TemporaryDirectory(prefix="open-", dir="/tmp") as folder:  # short: sockets lie below it
        port = free_port()
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
        command += [
            "--num-cpus=1",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
            f"--ray-client-server-port={free_port()}",
        ]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        with (Path(folder) / "start.log").open("wb") as log:
            node = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while b"Ray runtime started" not in (Path(folder) / "start.log").read_bytes():
                assert node.poll() is None, (Path(folder) / "start.log").read_text()
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            node.terminate()
            node.wait(60)


def test_a_driver_that_asks_for_tokens_is_told_that_the_cluster_has_none(address: str, tmp_path: Path) -> None:
    """Ray lets it in, and would end each trial's worker before it has begun."""
    file = str(write_search(tmp_path))
    search = Search(tmp_path / "searches", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    search.start(file, "--address", address)
    output = search.end(2)
    assert f"the cluster at {address} was started without token authentication" in " ".join(output.split())
    assert not (search.storage / NAME).exists()
