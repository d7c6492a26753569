"""What training many members of one shape in one pass gains on a CPU, against as many runs by themselves.

    python benchmarks/population.py               six minutes; --write puts the table into results/population.md
    python benchmarks/population.py --only slstm

Steps of a member a second: 32 windows of 96 steps, width 64, two layers or blocks, dropout 0.1, all by the loops that a
search runs. A population and single runs, each in two ways, take turns on the same two cores:

* one process of two threads; single runs one after another;
* two processes of one thread, side by side, as a search on two cores runs trials: two populations, or two single runs.

The ratio is that of the faster ways. The most that it could be is that of the limit (work.py, all but the products in
cache, to the same in memory; machine.py) at the rates of both processes side by side. Exit code 1 when a target is
missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Annotated, TypeVar

import typer
from machine import describe, write_results
from work import work
from worker import Case, Side

CASE = Case("trained", "lstm", batch=32, steps=96, features=1, horizon=24, dropout=0.1)
MODELS = ("lstm", "slstm", "mlstm", "ms")
MEMBERS = (1, 4, 8, 16)
TARGETS = {("slstm", 8): 2.0}
"""Times the speed of separate runs; elsewhere 1."""
SLACK = 0.95
"""Of a target: two timings of the same differ by as much."""
Answer = TypeVar("Answer")
SCRIPT = "population_steps.py"
HEADER = (
    "| members | model | together, 1 × 2 threads | together, 2 × 1 | single, 1 × 2 | single, 2 × 1 "
    "| ratio | at most | wanted |",
    "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
)


def at_once(sides: list[Side], ask: Callable[[Side], Answer]) -> list[Answer]:
    """What the sides answer, asked at the same time."""
    with ThreadPoolExecutor(len(sides)) as pool:
        return list(pool.map(ask, sides))


def speed(sides: list[Side], seconds: float) -> float:
    """Steps of a member a second that the sides, at the same time, run."""
    return sum(1.0 / median(times) for times in at_once(sides, lambda side: side.time(seconds)))


def limits(sides: list[Side], case: Case, parameters: int) -> tuple[float, float]:
    """Steps of a member a second that the sides' rates allow: all but the products in cache, and in memory."""
    least, rates = work(case, parameters), at_once(sides, Side.rates)
    cached, streamed = (sum(1.0 / least.limit(one, where) for one in rates) for where in ("cached", "streamed"))
    return cached, streamed


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way and case.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Of a turn; at least one epoch is timed.")] = 2.0,
    only: Annotated[str, typer.Option(help="Models whose name holds this.")] = "",
    write: Annotated[bool, typer.Option("--write", help="Write the table to results/population.md.")] = False,
) -> None:
    """Time populations against single runs on this machine's CPU."""
    models = [model for model in MODELS if only in model]
    if not models:
        raise typer.BadParameter(f"no model has '{only}' in its name; there are {', '.join(MODELS)}")
    rows: list[str] = []
    missed = False
    print(*HEADER, sep="\n")
    for model in models:
        with ExitStack() as stack:
            ways = [
                [stack.enter_context(Side(sys.executable, SCRIPT, threads)) for _ in range(processes)]
                for processes, threads in 2 * ((1, 2), (2, 1))
            ]
            together, single = ways[:2], ways[2:]
            alone = replace(CASE, model=model)
            facts = [side.build(alone) for way in single for side in way]
            most = limits(single[1], alone, facts[0]["parameters"])
            for members in MEMBERS:
                for side in (side for way in together for side in way):
                    side.build(replace(CASE, model=model, members=members))
                turns = [[speed(way, seconds) for way in ways] for _ in range(rounds)]
                speeds = [median(column) for column in zip(*turns, strict=True)]
                ratio, target = max(speeds[:2]) / max(speeds[2:]), TARGETS.get((model, members), 1.0)
                short = ratio < SLACK * target
                missed |= short
                verdict = f"{target:g}×{' (missed)' if short else ''}"
                told = " | ".join(f"{one:.0f}" for one in speeds)
                bound = " – ".join(f"{one / max(speeds[2:]):.1f}" for one in reversed(most))
                rows.append(f"| {members} | {model} | {told} | {ratio:.2f}× | {bound}× | {verdict} |")
                print(rows[-1], flush=True)
    if write:
        lines = [describe() + ". Steps of a member a second.", "", *HEADER, *rows]
        print(f"Written to {write_results('population', lines)}.")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
