"""The processes in which gpu.py does everything: one that hangs, crashes or poisons its GPU context costs its own case.

Requests and answers are lines of JSON; see gpu_worker.py for the other end.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parent / ".gpu-packages" / f"{sys.version_info.major}.{sys.version_info.minor}"
"""What `make gpu-packages` brings, for interpreters that have torch and little else."""
CUDA = "/usr/local/cuda"
START_SECONDS = 120.0
"""For an interpreter to start and import torch: a first time from a cold disk takes long."""


class Lost(Exception):
    """The process is gone; the message says how."""


def environment(interpret: bool, **more: str) -> dict[str, str]:
    """That of a worker: it finds this checkout and PACKAGES, and Triton compiles unless `interpret`."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        variables |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    places = [str(HERE.parent), str(PACKAGES), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
    variables["PATH"] = os.pathsep.join([variables.get("PATH", ""), str(PACKAGES / "bin")])  # ninja
    if shutil.which("nvcc") is None and not Path(CUDA).exists():
        # Some peers join this path to others when they are imported, also where nothing of theirs needs nvcc.
        variables.setdefault("CUDA_HOME", CUDA)
    # Without it torch's deterministic mode, which fills new memory with NaN, refuses products on a GPU.
    variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    variables["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # there are as many of us as there are cores
    return variables | more


class TooLong(Lost):
    """It did not answer in time."""


class Child:
    """A running worker."""

    def __init__(self, variables: dict[str, str]):
        self._said = tempfile.TemporaryFile("w+b")  # noqa: SIM115, closed in close()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=variables,
            start_new_session=True,  # so that a compiler which it started ends with it
        )
        self._unread = b""
        try:
            self._read(START_SECONDS, "to start")
        except Lost:
            self.close()
            raise

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer. Raises Lost when there is none in so many seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Lost(self._ended()) from None
        return self._read(seconds, f"for '{request['do']}'")

    def close(self) -> None:
        """End the process and all that it started."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(timeout=3)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._said.close()

    def _read(self, seconds: float, what: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TooLong(f"took longer than {seconds:.0f} s {what}")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                raise Lost(self._ended())
            self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> str:
        """How the process ended, with the last it said."""
        code = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process ended with {how}" + (f": {lines[-1][:200]}" if lines else "")


class Lane:
    """A worker that is started when it is first asked, and anew after it was lost. Use as a context."""

    def __init__(self, variables: dict[str, str]):
        self._variables = variables
        self._child: Child | None = None

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, request: dict[str, Any], seconds: float, left: float = math.inf) -> dict[str, Any]:
        """The answer, or {"error": one line}. left: until the part that it belongs to has to end; what that cuts short
        has not been run, and is no failure."""
        try:
            if self._child is None:
                self._child = Child(self._variables)
            answer = self._child.ask(request, min(seconds, left))
        except TooLong as late:
            self.end()
            return {"error": "not run: no time was left to finish it" if left < seconds else str(late)}
        except Lost as lost:
            self.end()
            return {"error": str(lost)}
        if answer.pop("fatal", False):  # the GPU's context is spoilt
            self.end()
        return answer

    def end(self) -> None:
        """End the worker, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None


class Pool:
    """Lanes that share requests out among them. Use as a context."""

    def __init__(self, lanes: list[Lane]):
        self._lanes = lanes

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(len(self._lanes)) as threads:  # each may take seconds
            list(threads.map(lambda lane: lane.end(), self._lanes))

    def ask(self, requests: list[dict[str, Any]], seconds: float, deadline: float) -> Any:
        """Yield (request, answer) as answers come; after the deadline (time.monotonic) requests are not begun.

        seconds: for each request.
        """
        waiting: SimpleQueue[dict[str, Any]] = SimpleQueue()
        done: SimpleQueue[tuple[dict[str, Any], dict[str, Any]]] = SimpleQueue()
        for request in requests:
            waiting.put(request)

        def work(lane: Lane) -> None:
            while True:
                try:
                    request = waiting.get_nowait()
                except Empty:
                    return
                left = deadline - time.monotonic()
                answer = lane.ask(request, seconds, left) if left > 1 else {"error": "not run: no time was left"}
                done.put((request, answer))

        with ThreadPoolExecutor(len(self._lanes)) as threads:
            futures = [threads.submit(work, lane) for lane in self._lanes]
            for _ in requests:
                while True:
                    try:
                        yield done.get(timeout=1)
                        break
                    except Empty:
                        for future in futures:
                            if future.done():
                                future.result()  # an accident of ours shows
