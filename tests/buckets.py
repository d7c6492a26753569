"""Places that a search can be kept at: a folder by its URI, and a bucket of a real S3 server on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pyarrow.fs import FileSystem

from xlstm_tune.storage.objects import Objects

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3:
    """moto's S3 server as a process of its own, which can be held still: it then takes connections and says nothing."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._log = (folder / "moto.log").open("wb")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=os.environ | CREDENTIALS)

    def uri(self, bucket: str, path: str = "searches", user: str = "") -> str:
        """The address of a place in a bucket."""
        return f"s3://{user}{bucket}/{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def make(self, bucket: str, seconds: float = 120) -> None:
        """Make a bucket, once the server answers."""
        system, _ = FileSystem.from_uri(self.uri(bucket) + "&allow_bucket_creation=true")
        deadline = time.monotonic() + seconds
        while True:
            try:
                system.create_dir(bucket)
                return
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None
                time.sleep(0.2)

    def hold(self) -> None:
        """Say nothing from now on."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def names(uri: str) -> set[str]:
    """What lies there."""
    return set(Objects(uri).names())
