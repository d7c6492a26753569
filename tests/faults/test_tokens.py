"""Clusters that do not take a driver: tokens and versions that differ."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_search import NAME, Search, write_search
from tracked import free_port

pytestmark = pytest.mark.slow


@contextmanager
def cluster(**more: str) -> Iterator[str]:
    """The address of a cluster of one node. more: of its environment."""
    with tempfile.TemporaryDirectory(prefix="open-", dir="/tmp") as folder:  # short: sockets lie below it
        port = free_port()
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
        command += [
            "--num-cpus=1",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
            f"--ray-client-server-port={free_port()}",
        ]
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | more
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


def refused(search: Search, address: str, file: Path) -> str:
    """The sentence with which a search is refused; it leaves no name behind."""
    search.start(str(file), "--address", address)
    output = " ".join(search.end(2).split())
    assert not (search.storage / NAME).exists()
    return output


def test_what_a_cluster_does_not_take_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Ray lets in who asks for tokens where there are none, and would end each trial's worker before it has begun."""
    file, token = write_search(tmp_path), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    with cluster(RAY_AUTH_MODE="disabled") as address:
        said = refused(Search(tmp_path / "searches", **token), address, file)
        assert f"the cluster at {address} was started without token authentication" in said
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '1.2.3'\n")
    with cluster(**token, PYTHONPATH=str(tmp_path)) as address:
        for mine, why in ((token, "Version mismatch"), (token | {"RAY_AUTH_TOKEN": "1" * 64}, "")):
            said = refused(Search(tmp_path / "searches", **mine), address, file)
            assert f"error: the cluster at {address} does not take this process ({why}" in said
            assert "needs the same versions of Ray and Python, and the same token where it asks for one" in said
