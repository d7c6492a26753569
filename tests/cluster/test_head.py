"""What clusters/head.sh and node.sh leave on a machine: secrets for their owner alone, a server with a password.

The scripts run as they are, in a home of their own whose ~/venv is this environment. Nothing is installed: a venv that
says that it has what is wanted is taken at its word, which is also how a second `ray up` takes seconds.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SECRETS = (".ray/auth_token", ".xlstm_tune/env", ".xlstm_tune/mlflow_password", ".xlstm_tune/mlflow_secret_key")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Machine:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        # Wrapped, not linked: the scripts write beside the interpreter what they have installed.
        tools = home / "venv" / "bin"
        tools.mkdir(parents=True)
        (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (tools / "python").chmod(0o755)
        wanted = (ROOT / "constraints.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
        (home / "venv" / "installed").write_text(f"gpu {hashlib.sha256(wanted).hexdigest()[:16]}\n")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "XLSTM_TUNE_MLFLOW_PORT": str(self.port),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        # A umask under which careless files would be everyone's to read.
        return subprocess.run(
            ["bash", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, umask=0o022
        )

    def file(self, name: str) -> str:
        return (self.home / name).read_text()

    def mode(self, name: str) -> int:
        return (self.home / name).stat().st_mode & 0o777

    def answer(self, path: str, password: str | None = None, host: str | None = None) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if password is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
        if host is not None:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("head"))
    for words in (("clusters/node.sh",), ("clusters/head.sh",)):
        result = machine.run(*words)
        assert result.returncode == 0, result.stderr
    yield machine
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(machine.file(".xlstm_tune/mlflow/server.pid")), signal.SIGKILL)


def test_secrets_are_for_their_owner_alone(head: Machine) -> None:
    assert {name: oct(head.mode(name)) for name in SECRETS} == dict.fromkeys(SECRETS, "0o600")
    assert head.mode(".ray") == head.mode(".xlstm_tune") == head.mode(".xlstm_tune/mlflow") == 0o700
    assert head.mode(".xlstm_tune/mlflow/users.db") == head.mode(".xlstm_tune/mlflow/mlflow.db") == 0o600


def test_shells_learn_where_mlflow_is_and_that_ray_wants_a_token(head: Machine) -> None:
    shown = head.run("-c", ". ~/.bashrc; env").stdout.splitlines()
    assert {
        "RAY_AUTH_MODE=token",
        f"MLFLOW_TRACKING_URI=http://127.0.0.1:{head.port}",
        "MLFLOW_TRACKING_USERNAME=admin",
        f"MLFLOW_TRACKING_PASSWORD={head.file('.xlstm_tune/mlflow_password')}",
    } <= set(shown)
    assert any(line.startswith(f"PATH={head.home}/venv/bin:") for line in shown)


PATHS = [
    "/",
    "/api/2.0/mlflow/experiments/search?max_results=1",
    "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
]


@pytest.mark.parametrize("path", PATHS)
def test_mlflow_answers_to_its_password_alone(head: Machine, path: str) -> None:
    password = head.file(".xlstm_tune/mlflow_password")
    assert (head.answer(path), head.answer(path, "password1234"), head.answer(path, password)) == (401, 401, 200)


def test_mlflow_listens_on_the_loopback_alone(head: Machine) -> None:
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    places = [fields[1] for fields in listening if fields[3] == "0A" and fields[1].endswith(f":{head.port:04X}")]
    assert set(places) == {f"0100007F:{head.port:04X}"}


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:5001", 200), ("localhost:5000", 200), ("evil.example", 403)])
def test_mlflow_is_reached_through_a_tunnel_but_not_under_a_strange_name(head: Machine, host: str, status: int) -> None:
    assert head.answer(PATHS[1], head.file(".xlstm_tune/mlflow_password"), host) == status


def test_scripts_leave_what_is_there_as_it_is(head: Machine) -> None:
    before = {name: head.file(name) for name in (*SECRETS, ".bashrc", ".xlstm_tune/mlflow/server.pid")}
    for words in (("clusters/node.sh",), ("clusters/head.sh",), ("clusters/node.sh", "token")):
        result = head.run(*words)
        assert result.returncode == 0, result.stderr
    assert {name: head.file(name) for name in before} == before


def test_head_refuses_what_is_not_its_server(head: Machine) -> None:
    """A server that another person's head started, on the same port."""
    (head.home / ".xlstm_tune" / "mlflow_password").rename(head.home / "kept")
    try:
        result = head.run("clusters/head.sh")
    finally:
        (head.home / "kept").rename(head.home / ".xlstm_tune" / "mlflow_password")
    assert result.returncode == 1
    assert f"127.0.0.1:{head.port} is not this cluster's MLflow server" in result.stderr


def test_head_refuses_a_bucket_that_it_cannot_write_to(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    result = machine.run("clusters/head.sh", "s3://nobody-has-this/mlflow")
    assert result.returncode == 1
    assert "cannot write to s3://nobody-has-this/mlflow" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_node_without_the_token_does_not_start(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    result = machine.run("clusters/node.sh", "token")
    assert result.returncode == 1
    assert f"has no {machine.home}/.ray/auth_token" in result.stderr


def test_token_that_others_could_read_is_closed(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    (machine.home / ".ray").mkdir(mode=0o755)
    (machine.home / ".ray" / "auth_token").write_text("token")
    assert machine.mode(".ray/auth_token") == 0o644
    assert machine.run("clusters/node.sh", "token").returncode == 0
    assert (machine.mode(".ray/auth_token"), machine.mode(".ray")) == (0o600, 0o700)


def test_environment_is_read_before_ubuntus_bashrc_ends(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    (machine.home / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")
    for _ in range(2):
        result = machine.run("clusters/node.sh")
        assert result.returncode == 0, result.stderr
    assert machine.file(".bashrc").splitlines() == [". ~/.xlstm_tune/env", "case $- in *i*) ;; *) return ;; esac"]
    assert "RAY_AUTH_MODE=token" in machine.run("-c", ". ~/.bashrc; env").stdout
