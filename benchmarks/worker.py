"""Steps of both sides in processes of their own: what is asked (Case), who asks (Side), who answers (serve).

A side is a Python interpreter and one of our_steps.py and peer_steps.py. It builds a case, checks that it computes
something real, and times single steps when asked, so that the sides can take turns. Requests and answers are lines of
JSON. Runs in the peers' environment too: needs torch and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    what: str
    """`pass`: forward and backward of the bare stack, input gradient included. `step`: forward, loss, backward and
    optimiser of the whole forecaster on a batch at hand. `trained`: a step as the side's own training loop runs it."""
    model: str
    """lstm, slstm, mlstm or ms, which is an mLSTM and an sLSTM block."""
    batch: int
    steps: int
    features: int = 0
    """Input columns; 0 = the stack's input has the stack's width."""
    horizon: int = 0
    """Steps forecast; 0 for a `pass`."""
    width: int = 64
    heads: int = 4
    blocks: int = 2
    dropout: float = 0.0
    members: int = 0
    """Of a population that trains together; 0 = a single run."""
    exchange: str = ""
    """A file in which our side leaves weights, input, output and input gradient of a `pass`, for the other to repeat;
    empty = each has its own."""

    @property
    def title(self) -> str:
        columns = f" × {self.features} features" if self.features else ""
        return f"{self.model}, {self.batch} × {self.steps} steps{columns}"


class Task(Protocol):
    """A case as one side runs it."""

    def check(self) -> dict[str, Any]:
        """Facts: parameters, finite, dead (names of parameters without a gradient), and what else there is to say."""

    def step(self) -> list[float]:
        """Run one step or a few, and return the seconds of each."""


class Side:
    """A running side. Use as a context: the process ends with it."""

    def __init__(self, interpreter: str, script: str, threads: int):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
        # What the search's workers do by keep_freed_memory(), for both sides: freed memory is not given back.
        environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
            environment[variable] = str(threads)
        if not script.startswith("peer"):
            environment["OMP_WAIT_POLICY"] = "PASSIVE"  # as the search sets it
            environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self._command = [interpreter, str(HERE / script), str(threads)]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._said.close()

    def versions(self) -> dict[str, str]:
        """Of the packages that the side measures."""
        return self._ask(do="versions")

    def rates(self) -> dict[str, float]:
        """What the machine can do with these threads; see machine.py."""
        return self._ask(do="rates")

    def build(self, case: Case) -> dict[str, Any]:
        """Make the case ready and return its facts, or `error` in words."""
        return self._ask(do="build", case=asdict(case))

    def time(self, seconds: float) -> list[float]:
        """Seconds of single steps of the case built last, at least one, for about `seconds`."""
        times: list[float] = self._ask(do="time", seconds=seconds)["times"]
        return times

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            raise RuntimeError(f"{' '.join(self._command)} ended with exit code {code}:\n{self._said.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(
    build: Callable[[Case], Task], versions: Callable[[], dict[str, str]], errors: tuple[type[Exception], ...] = ()
) -> None:
    """Answer requests from standard input until it closes.

    errors: of `build` that are an answer and not an accident, such as a peer that has no such model on a CPU.
    """
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    torch.set_num_threads(int(sys.argv[1]))
    task: Task | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        match request["do"]:
            case "versions":
                answer = versions()
            case "rates":
                from machine import rates

                answer = rates()
            case "build":
                try:
                    task = build(Case(**request["case"]))
                    answer = task.check()
                except errors as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
            case "time":
                assert task is not None
                times: list[float] = []
                until = time.perf_counter() + request["seconds"]
                while not times or time.perf_counter() < until:
                    times += task.step()
                answer = {"times": times}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed(run: Callable[[], object]) -> list[float]:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return [time.perf_counter() - started]


def vital_signs(model: nn.Module, output: Tensor) -> dict[str, Any]:
    """Parameters, whether the output is finite, and which parameters got no gradient or one of zeros only."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "finite": bool(output.isfinite().all()),
        "dead": [name for name, p in model.named_parameters() if p.grad is None or not p.grad.count_nonzero()],
    }


def roughen(model: nn.Module) -> None:
    """Add noise to every parameter, so that none is at an initial value (such as R = 0) that would hide an error."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
