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

from xlstm_tune.search.placement.cluster import ANSWER_SECONDS

pytestmark = pytest.mark.slow
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


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
    file = write_search(tmp_path)
    with cluster(RAY_AUTH_MODE="disabled") as address:
        said = refused(Search(tmp_path / "searches", **TOKEN), address, file)
        assert f"the cluster at {address} was started without token authentication" in said
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '1.2.3'\n")
    with cluster(**TOKEN, PYTHONPATH=str(tmp_path)) as address:
        for mine, why in ((TOKEN, "Version mismatch"), (TOKEN | {"RAY_AUTH_TOKEN": "1" * 64}, "")):
            said = refused(Search(tmp_path / "searches", **mine), address, file)
            assert f"error: the cluster at {address} does not take this process ({why}" in said
            assert "needs the same versions of Ray and Python, and the same token where it asks for one" in said


def test_a_node_that_does_not_answer_is_not_taken_for_a_cluster_without_tokens() -> None:
    """Nor waited for: a host may be lost for half a minute before Ray knows."""
    command = [sys.executable, str(Path(__file__).with_name("frozen_node.py"))]
    asked = subprocess.run(command, env=os.environ | TOKEN, capture_output=True, text=True, timeout=400)
    assert asked.returncode == 0, asked.stderr
    assert float(asked.stdout.splitlines()[-1]) < ANSWER_SECONDS
