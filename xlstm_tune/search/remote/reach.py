"""How the head of a cluster is reached: as Ray's launcher reaches it, over SSH, from the file that `ray up` was given.

One interface, `Head`, over a head behind SSH and one that is a folder on this machine, so that the whole flow can be
walked through in one process with a debugger.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Any

import yaml

from xlstm_tune.errors import ResourceError
from xlstm_tune.search.remote.head import MARK
from xlstm_tune.tracking import hide_credentials

MODULE = "xlstm_tune.search.remote.head"
UNREACHABLE = 255
"""Exit code of ssh itself."""


class Unreachable(Exception):
    """The connection to the head was lost or refused; a sentence. What runs there is not affected."""


class Head(ABC):
    """A machine that runs `head.py`. title: for people."""

    title: str

    @abstractmethod
    def command(self, words: list[str]) -> tuple[list[str], dict[str, str] | None]:
        """The process here, and its environment, that runs `python WORDS` there; its streams are the other's."""

    def start(self, *words: str, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """One command of `head.py`, whose output the caller reads."""
        command, environment = self.command(["-m", MODULE, *words])
        # A session of its own: Ctrl-C is for the one who watches.
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    def open(self, *words: str) -> subprocess.Popen[bytes]:
        """As `start`; the output begins with the answer."""
        process = self.start(*words)
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(MARK):
                break
        return process

    def ask(self, *words: str, send: bytes | None = None) -> Any:
        """The answer of one command. send: what it gets on stdin.

        Raises Unreachable, or ResourceError when the head refuses or has no such program.
        """
        process = self.start(*words, stdin=subprocess.DEVNULL if send is None else subprocess.PIPE)
        output, errors = process.communicate(send)
        self.check(process.returncode, errors, words[0])
        answer = output.partition(MARK)[2]
        return json.loads(answer) if answer else None

    def check(self, code: int, errors: bytes, command: str) -> None:
        """Raise what an exit code of `head.py`, or of the way to it, means."""
        said = hide_credentials(" ".join(errors.decode(errors="replace").split()))
        if code == UNREACHABLE or code < 0:
            raise Unreachable(f"{self.title} cannot be reached ({said[-300:] or 'the connection was lost'})")
        if code and ("No module named" in said or "not found" in said):
            raise ResourceError(
                f"{self.title} has no such xlstm_tune as this one ({said[-200:]}); ship it with 'ray up', and wait "
                "until that has ended"
            )
        if code:
            raise ResourceError(f"{self.title} could not do '{command}': {said[-500:]}")


class SSHHead(Head):
    """A head behind SSH. ssh: the command that opens a connection, host included."""

    def __init__(self, title: str, ssh: list[str]) -> None:
        self.title, self._ssh = title, ssh

    def command(self, words: list[str]) -> tuple[list[str], dict[str, str] | None]:
        """Through a login shell, which knows the environment that the cluster file set up."""
        python = shlex.join(["exec", "python", *words])
        # Not all login shells read them, and what they print would be taken for an answer.
        ready = "for one in ~/.bashrc ~/.xlstm_tune/env; do [ -r $one ] && . $one; done >/dev/null 2>&1; "
        return [*self._ssh, shlex.join(["bash", "-lc", ready + python])], None


class LocalHead(Head):
    """A head that is a home folder on this machine."""

    def __init__(self, home: Path) -> None:
        self.title, self._home = f"the head at {home}", home

    def command(self, words: list[str]) -> tuple[list[str], dict[str, str] | None]:
        """With this interpreter."""
        return [sys.executable, *words], os.environ | {"HOME": str(self._home)}


def find_head(file: str) -> SSHHead:
    """The head of the cluster that `ray up FILE` started. Starts nothing.

    Raises ResourceError with one sentence.
    """
    try:
        config = yaml.safe_load(Path(file).expanduser().read_text())
        name, kind = config["cluster_name"], config["provider"]["type"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ResourceError(
            f"--cluster takes the file that 'ray up' was given, and '{file}' cannot be read as one ({reason})"
        ) from None
    if config.get("docker") or kind in ("kuberay", "kubernetes"):
        raise ResourceError(
            f"--cluster reaches heads over SSH alone, and {file} puts them in containers; run the search on the head, "
            "with --address auto"
        )
    from ray.autoscaler.sdk import get_head_node_ip  # asks the cloud, and makes nothing there

    logging.getLogger("ray").setLevel(logging.ERROR)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            address = get_head_node_ip(str(Path(file).expanduser()))
            return SSHHead(f"the head of '{name}', {address},", _ssh_command(config))
    except (Exception, SystemExit) as error:  # every provider has errors of its own
        if "not found" in str(error) and isinstance(error, RuntimeError):
            raise ResourceError(f"the cluster '{name}' is not up; start it with: ray up {shlex.quote(file)}") from None
        reason = hide_credentials(" ".join(f"{type(error).__name__}: {error}".split()))[-300:]
        raise ResourceError(
            f"the head of the cluster '{name}' was not found ({reason}); see whether 'ray attach {file}' finds it"
        ) from None


def _ssh_command(config: dict[str, Any]) -> list[str]:
    """ssh with the key, user, address and options that Ray's launcher uses for a cluster that is up."""
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.command_runner import SSHCommandRunner

    # As `ray exec` does. Cached by `ray up`; it fills in the key that the cloud made for this cluster.
    config = commands._bootstrap_config(config)
    provider = commands._get_node_provider(config["provider"], config["cluster_name"])
    internal = config["provider"].get("use_internal_ips", False)
    runner = provider.get_command_runner(
        log_prefix="",
        node_id=commands._get_running_head_node(config, "", None, _provider=provider),
        auth_config=config["auth"],
        cluster_name=config["cluster_name"],
        process_runner=subprocess,
        use_internal_ip=internal and not config["provider"].get("use_external_head_ip", False),
    )
    assert isinstance(runner, SSHCommandRunner)
    target = runner._get_ssh_target()
    options = runner.ssh_options.to_ssh_options_list(timeout=20)
    return ["ssh", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", *options, f"{runner.ssh_user}@{target}"]
