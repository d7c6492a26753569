"""`ray up clusters/local.yaml`, for real: three hosts, which are namespaces of this machine, set up over SSH.

The tests take the same cluster, one after another.
"""

from __future__ import annotations

import json
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_search import ClusterSearch, check_accounted_on
from fault_search import NAME, Search, write_search
from hosts import Host, why_not
from local_cluster import LocalCluster, until

pytestmark = [pytest.mark.slow, pytest.mark.alone]
KNOCK = Path(__file__).with_name("knock.py")
OUTAGE = 20
"""Seconds without a network."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[LocalCluster]:
    """After `ray up`, with all its nodes."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = LocalCluster(tmp_path_factory.mktemp("hosts") / "network", empty_database)
    try:
        cluster.up()
        cluster.wait_for_nodes(3, 600)
        yield cluster
    finally:
        cluster.close()


def mode(host: Host, path: str) -> str:
    return oct(stat.S_IMODE((host.home / path).stat().st_mode))


def token(value: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": value}


def knock(host: Host, address: str, doors: str, **environment: str) -> dict[str, int | str]:
    """What the doors of `knock.py` answer to somebody on a host who shows what the environment says."""
    shown = " ".join(f"{name}={value}" for name, value in environment.items())
    said = host.run(f"{shown} python {KNOCK} {address} {doors}", 240)
    return json.loads(said.splitlines()[-1])


def test_ray_up_starts_the_head_and_every_worker(cluster: LocalCluster) -> None:
    assert cluster.alive() == {host.address for host in cluster.nodes}


def test_every_node_has_the_same_token_for_its_owner_alone(cluster: LocalCluster) -> None:
    tokens = {(host.home / ".ray" / "auth_token").read_text() for host in cluster.nodes}
    assert len(tokens) == 1 and len(tokens.pop()) >= 32
    for host in cluster.nodes:
        assert mode(host, ".ray/auth_token") == mode(host, ".xlstm_tune/env") == "0o600", host.name
        assert mode(host, ".ray") == mode(host, ".xlstm_tune") == "0o700", host.name


def test_an_outsider_without_the_token_gets_nothing(cluster: LocalCluster) -> None:
    """Nor does one with a wrong token. Without one, Ray is told that there is none, or it would not even try."""
    outsider, head = cluster.outsider, cluster.head.address
    for shown, status in (({"RAY_AUTH_MODE": "disabled"}, 401), (token("0" * 64), 403)):
        answers = knock(outsider, head, "dashboard job agent gcs client mlflow", **shown)
        # What people look at listens on the head alone, for those who come through SSH.
        assert {answers[door] for door in ("dashboard", "job", "mlflow")} == {"closed"}, answers
        assert answers["agent"] == status, answers
        assert "authentication" in str(answers["gcs"]), answers
        # Ray Client is not told why: it tries until its patience ends.
        assert str(answers["client"]).startswith("ConnectionError"), answers
        # Somebody else who has an account on the head.
        assert knock(cluster.head, "127.0.0.1", "dashboard job", **shown) == {"dashboard": status, "job": status}
    assert not any((host.place / "tmp" / "an-outsider-was-here").exists() for host in cluster.nodes)


def test_mlflow_wants_its_password(cluster: LocalCluster) -> None:
    right = cluster.head.run('echo "$MLFLOW_TRACKING_USERNAME:$MLFLOW_TRACKING_PASSWORD"').strip()
    for shown, status in ((None, 401), ("admin:password1234", 401), (right, 200)):
        environment = {"USER_AND_PASSWORD": shown} if shown else {}
        assert knock(cluster.head, "127.0.0.1", "mlflow", **environment) == {"mlflow": status}


def test_the_token_lets_in(cluster: LocalCluster) -> None:
    right = token((cluster.head.home / ".ray" / "auth_token").read_text())
    answers = knock(cluster.outsider, cluster.head.address, "gcs agent", **right)
    assert answers == {"gcs": "in", "agent": 200}
    # Ray lets in and then gives up where the process behind the door takes longer than 30 s to start.
    until(lambda: knock(cluster.outsider, cluster.head.address, "client", **right) == {"client": "in"}, 240)
    answers = knock(cluster.head, "127.0.0.1", "dashboard job", **right)
    assert answers == {"dashboard": 200, "job": 200}
    until((cluster.head.place / "tmp" / "an-outsider-was-here").exists, 240)


def test_a_search_outlives_a_cut_network_a_lost_host_and_its_driver(cluster: LocalCluster) -> None:
    """Three trials on three hosts, held until all are there.

    The driver takes a worker that does not answer for 20 to 40 s for lost, be it cut off or held.
    """
    long = {"epochs": 150}
    share = {"cpus_per_trial": 1, "gpus_per_trial": 0.5}
    search = ClusterSearch(cluster)
    search.start(str(write_search(cluster.shared / "file", training=long, resources=share)))
    workers = search.freeze_all(3)
    trial_of = {host.name: number for number, (host, _) in workers.items()}
    assert sorted(trial_of) == sorted(host.name for host in cluster.nodes)
    _, on_cut, on_lost = (trial_of[host.name] for host in cluster.nodes)
    cut, lost = cluster.workers

    cut.cut()
    lost.destroy()
    cut.send(workers[on_cut][1], signal.SIGCONT)
    # Meanwhile, the same search on this machine, with which it is compared.
    whole = Search(cluster.shared / "whole")
    whole.start(str(write_search(cluster.shared / "whole-file", training=long)))
    time.sleep(OUTAGE)
    before = search.epochs(on_cut)
    cut.mend()
    search.wait_for(lambda: search.epochs(on_cut) > before)
    search.wait_for(lambda: on_lost in search.died())
    assert search.epochs(on_lost) < long["epochs"], "else the driver has nothing left to do"

    search.kill()
    search.start("--resume", NAME)
    assert "4 completed" in search.end()
    whole.end()
    check_accounted_on(cluster.head, search.folder, whole.folder)
    trained = {host.name for host, _ in search.workers(on_lost)}
    assert lost.name in trained and trained - {lost.name}


def test_ray_down_leaves_no_process_of_ray(cluster: LocalCluster) -> None:
    """The last test: workers end by themselves when they have not found the head for a minute."""
    assert cluster.ray_processes().keys() == {host.name for host in cluster.nodes if host.alive}
    cluster.down()
    until(lambda: not cluster.ray_processes(), 300, lambda: str(cluster.ray_processes()))
