"""Hosts of namespaces: they see each other and nobody else, and leave nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import HOME, Host, Network, find_tool, new_key, why_not


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    network = Network(tmp_path / "network")
    yield network
    network.close()


def reaches(host: Host, address: str, port: int = 22) -> bool:
    return "SSH-" in host.run(f"timeout 2 bash -c 'head -c 4 </dev/tcp/{address}/{port}'", code=None)


def around() -> tuple[str, str]:
    """This machine's network devices and mounts."""
    links = subprocess.run([find_tool("ip") or "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return links, Path("/proc/self/mounts").read_text()


def test_hosts_have_their_own_files_processes_and_names(network: Network) -> None:
    one, other = network.add("one"), network.add("other")
    one.run("echo mine > ~/file; echo mine > /tmp/file; sleep 100 >/dev/null 2>&1 &")
    assert (one.home / "file").read_text() == "mine\n" and not (HOME / "file").exists()
    assert other.run("ls ~/file /tmp/file", code=2).count("No such file") == 2
    assert one.processes("sleep 100") and not other.processes("sleep 100")
    assert one.run("hostname").split() == ["one"]
    (network.shared / "file").write_text("ours")
    assert one.run(f"cat {network.shared}/file") == other.run(f"cat {network.shared}/file") == "ours"


def test_a_cut_network_comes_back_and_a_destroyed_host_does_not(network: Network) -> None:
    client, server = network.add("client"), network.add("server")
    (client.home / ".ssh").mkdir(mode=0o700)
    server.start_sshd(new_key(client.home / ".ssh" / "id_ed25519"))
    options = "-o StrictHostKeyChecking=no -o BatchMode=yes"
    assert "server" in client.run(f"ssh {options} {server.address} hostname")
    (client.home / ".ssh" / "id_ed25519").unlink()
    assert "Permission denied" in client.run(f"ssh {options} {server.address} hostname", code=255)
    server.cut()
    assert not reaches(client, server.address)
    server.mend()
    assert reaches(client, server.address)
    server.destroy()
    assert not server.alive and not reaches(client, server.address)


def test_hosts_leave_nothing_on_this_machine(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    before = around()
    network = Network(tmp_path / "network")
    host = network.add("one")
    host.run("setsid sleep 1000 >/dev/null 2>&1 &")
    first = {Path(f"/proc/{space.pid}") for space in (network.switch, host.space)}
    assert around() == before and all(process.exists() for process in first)
    network.close()
    # The kernel ends all processes of a namespace with its first one, and with the last the namespace.
    assert around() == before and not any(process.exists() for process in first)
