"""The head of a cluster, as far as `--cluster` sees one: an sshd on loopback, with a home of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import yaml
from tracked import ROOT, free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def without_sshd() -> str:
    """Why no sshd can be started here; empty where one can."""
    if SSHD is None or not all(map(shutil.which, ("ssh", "ssh-keygen", "bash"))):
        return "sshd, ssh and bash are needed (apt-get install openssh-server)"
    if os.getuid() == 0:  # then sshd wants a folder, which a boot would have made
        try:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            return f"sshd run by root wants the folder /run/sshd ({error.strerror})"
    return ""


class SSHServer:
    """A head that `ray up` would know, and its cluster file. place: an empty folder. environment: of its searches."""

    def __init__(self, place: Path, **environment: str) -> None:
        self.home, self.port, self.name = place / "home", free_port(), f"test-{uuid.uuid4().hex[:12]}"
        self._place = place
        (self.home / ".xlstm_tune").mkdir(parents=True)
        (self.home / "bin").mkdir()
        (self.home / "bin" / "python").symlink_to(sys.executable)
        # As the cluster files set a node up; what a shell prints must not be taken for an answer.
        (self.home / ".bashrc").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\necho welcome\n")
        variables = {"PYTHONPATH": str(ROOT), **environment}
        lines = [f"export {name}='{value}'\n" for name, value in variables.items()]
        (self.home / ".xlstm_tune" / "env").write_text("".join(lines))
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / key)], check=True)
        shutil.copy(place / "user.pub", place / "authorized")
        (place / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {place / 'host'}\n"
            f"AuthorizedKeysFile {place / 'authorized'}\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n"
            f"SetEnv HOME={self.home}\n"
        )
        # Ray knows no other port than 22.
        proxy = f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{self.port}; cat <&3 & cat >&3'"
        self.file = place / "cluster.yaml"
        self.file.write_text(
            yaml.safe_dump(
                {
                    "cluster_name": self.name,
                    "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
                    "auth": {
                        "ssh_user": getpass.getuser(),
                        "ssh_private_key": str(place / "user"),
                        "ssh_proxy_command": proxy,
                    },
                }
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start sshd, and let Ray's launcher know of the head as `ray up` does."""
        from ray.autoscaler._private.local.node_provider import (
            LocalNodeProvider,
            record_local_head_state_if_needed,
        )

        self.open()
        record_local_head_state_if_needed(
            LocalNodeProvider(yaml.safe_load(self.file.read_text())["provider"], self.name)
        )

    def open(self) -> None:
        """Let connections in."""
        assert SSHD is not None
        log = str(self._place / "sshd.log")
        self._process = subprocess.Popen([SSHD, "-D", "-f", str(self._place / "sshd_config"), "-E", log])
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None, Path(log).read_text()
                time.sleep(0.05)

    def shut(self) -> None:
        """End sshd, and with it every connection that it has begun."""
        if self._process is not None:
            children = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True, check=False
            )
            for pid in children.stdout.split():
                subprocess.run(["kill", pid], check=False)
            self._process.kill()
            self._process.wait()
            self._process = None

    def down(self) -> None:
        """Leave nothing behind, in Ray's temporary folders either."""
        self.shut()
        from ray.autoscaler._private.local.config import get_lock_path, get_state_path

        for path in (get_lock_path(self.name), get_state_path(self.name)):
            Path(path).unlink(missing_ok=True)
        for cache in Path("/tmp").glob("ray-config-*"):
            if cache.is_file() and self.name in cache.read_text():
                cache.unlink()
