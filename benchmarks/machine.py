"""The machine: what it is, and how fast it multiplies, evaluates exp, and goes through tensors."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

SECONDS = 0.4
"""How long each rate is measured; the best of that time counts, since the machine's limit is asked for."""
CACHED = (2**15, 2**16, 2**17)
"""Elements of a tensor for each thread: three of 128 to 512 KiB. Much smaller ones measure the call of an operation,
and below 2¹⁵ torch does not divide one among threads."""
STREAMED = 2**25
"""128 MiB."""


def describe(packages: tuple[str, ...] = ("torch",), others: dict[str, str] | None = None) -> str:
    """One line for a results file: processor, Python, versions, date. others: versions that are not installed here."""
    versions = {name: version(name) for name in packages} | (others or {})
    return ", ".join(
        [
            f"{os.cpu_count()} CPU cores ({processor()})",
            f"Python {platform.python_version()}",
            *(f"{name} {number}" for name, number in versions.items()),
            datetime.date.today().isoformat(),
        ]
    )


def processor() -> str:
    """The processor's name as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def rates() -> dict[str, float]:
    """float32 rates with torch's present number of threads, each per second.

    flops: of a matrix product of 1024 × 1024 × 1024 (a multiplication and an addition are two).
    functions: exp of an element in cache.
    cached, streamed: element accesses (an addition a + b → c has three an element) in cache and in memory.
    """
    square = torch.randn(1024, 1024)
    out = torch.empty_like(square)
    found = {"flops": 2 * 1024**3 / _best(lambda: torch.mm(square, square, out=out))}
    in_cache = [_elementwise(size * torch.get_num_threads()) for size in CACHED]
    found["functions"], found["cached"] = (max(column) for column in zip(*in_cache, strict=True))
    found["streamed"] = _elementwise(STREAMED)[1]
    return found


def _elementwise(size: int) -> tuple[float, float]:
    """exp and element accesses a second on tensors of `size` elements."""
    x = torch.randn(size)
    y, z = x.clone(), x.clone()
    functions = size / _best(lambda: torch.exp(x, out=z))
    return functions, 3 * size / _best(lambda: torch.add(x, y, out=z))


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    run()
    fastest = float("inf")
    until = time.perf_counter() + SECONDS
    while (started := time.perf_counter()) < until:
        run()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def write_results(name: str, lines: list[str]) -> Path:
    """Put Markdown under the command that this program was started with into results/NAME.md. Returns the path.

    Of a file's path in the command only the name is kept.
    """
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:] if word != "--write"]
    path = Path(__file__).resolve().parent / "results" / f"{name}.md"
    path.write_text("\n".join([f"# `{' '.join(['python', f'benchmarks/{name}.py', *words])}`", "", *lines, ""]))
    return path
