"""How fast a training step is on a CPU, beside the packages that others use, and how far from the machine's limit.

    make peers                          once: xlstm and neuralforecast in an environment of their own
    python benchmarks/cpu_step.py       a quarter of an hour; --write puts the tables into results/cpu_step.md
    python benchmarks/cpu_step.py --threads 1 --rounds 3 --only slstm

Three kinds of cases, each for 128 windows of 96 steps and for 32 sequences of 365 steps × 19 features; width 64, two
layers or blocks, 4 heads, float32:

* pass: forward and backward of the bare stack. LSTM against torch.nn.LSTM, sLSTM and mLSTM against xlstm's
  xLSTMBlockStack (sLSTM: its vanilla backend, the only one for a CPU). The other side gets our weights and input, and
  has to give the same output and input gradient.
* step: forward, loss, backward and optimiser of a whole forecaster on a batch at hand, against neuralforecast's xLSTM
  (horizon 24, dropout 0.1), whose network is xlstm's mLSTM stack between an embedding and a decoder.
* trained: the same as the training loops run it, `training.loop.train` here and `fit` there, cutting a batch's windows
  included: here the mean over an epoch's steps, there from the start of one batch to the start of the next.

Each side is a process of its own; they take turns, A B A B, and the median of all steps counts. Both sides have to
compute something real: finite outputs, no parameter without a gradient. Limits: see work.py and machine.py.

Exit code 1 when a side computes something else than it should, or a target is missed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from machine import describe, write_results
from peers import MISSING, peers_python
from work import work
from worker import Case, Side

TOLERANCE = 1e-4
"""Of the other side's output and input gradient with our weights, float32, as a share of the largest value."""
WINDOWS: dict[str, Any] = {"batch": 128, "steps": 96}
SEQUENCES: dict[str, Any] = {"batch": 32, "steps": 365, "features": 19}
FORECAST: dict[str, Any] = {"horizon": 24, "dropout": 0.1}


@dataclass(frozen=True)
class Match:
    """A case, who the other side is, and how many times its speed ours has to be (None = nothing is asked)."""

    case: Case
    rival: str
    target: float | None = None


MATCHES = (
    Match(Case("pass", "lstm", **WINDOWS), "torch.nn.LSTM", 1 / 1.5),
    Match(Case("pass", "slstm", **WINDOWS), "xlstm", 8),
    Match(Case("pass", "mlstm", **WINDOWS), "xlstm", 4),
    Match(Case("step", "mlstm", **WINDOWS, features=1, **FORECAST), "neuralforecast", 10),
    Match(Case("trained", "mlstm", **WINDOWS, features=1, **FORECAST), "neuralforecast", 10),
    Match(Case("trained", "slstm", **WINDOWS, features=1, **FORECAST), "neuralforecast"),
    Match(Case("pass", "lstm", **SEQUENCES), "torch.nn.LSTM"),
    Match(Case("pass", "slstm", **SEQUENCES), "xlstm"),
    Match(Case("pass", "mlstm", **SEQUENCES), "xlstm"),
    Match(Case("step", "mlstm", **SEQUENCES, **FORECAST), "neuralforecast"),
    Match(Case("trained", "mlstm", **SEQUENCES, **FORECAST), "neuralforecast"),
)


@dataclass
class Outcome:
    """What one match brought, with so many threads. Seconds of a step."""

    match: Match
    threads: int
    ours: float
    theirs: float | None
    """None: there is no other side, or it cannot run the case."""
    cached: float
    """The limit when all lies in cache."""
    streamed: float
    """The limit when all comes from memory."""
    notes: list[str]
    faults: list[str]

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.theirs / self.ours

    @property
    def met(self) -> bool | None:
        """Of the target; None where there is none or no other side."""
        return None if self.ratio is None or self.match.target is None else self.ratio >= self.match.target


@dataclass(frozen=True)
class Clock:
    """How long to time."""

    rounds: int
    seconds: float


def play(match: Match, threads: int, ours: Side, theirs: Side | None, rates: dict[str, float], clock: Clock) -> Outcome:
    """Build both sides, check them, and time them in turns."""
    case = match.case
    with tempfile.TemporaryDirectory() as folder:
        if case.what == "pass" and not case.features and theirs is not None:
            case = replace(case, exchange=str(Path(folder) / "exchange.pt"))
        facts = ours.build(case)
        their_facts = {} if theirs is None else theirs.build(case)
    if "error" in their_facts:
        theirs = None
    our_times: list[float] = []
    their_times: list[float] = []
    for _ in range(clock.rounds):
        our_times += ours.time(clock.seconds)
        if theirs is not None:
            their_times += theirs.time(clock.seconds)
    least = work(case, facts["parameters"])
    return Outcome(
        match,
        threads,
        median(our_times),
        median(their_times) if their_times else None,
        least.limit(rates, "cached"),
        least.limit(rates, "streamed"),
        list(notes(match, facts, their_facts)),
        list(faults(match, facts, their_facts)),
    )


def notes(match: Match, facts: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """What to know about a match."""
    if "backend" in facts:
        yield facts["backend"]
    if "error" in theirs:
        yield f"{match.rival} cannot run it here: {theirs['error']}"
    if "differs" in theirs:
        yield f"with the same weights, output and input gradient differ by {theirs['differs']:.0e} of the largest value"
    if match.case.what != "pass" and "parameters" in theirs:
        yield f"{facts['parameters']:,} parameters here, {theirs['parameters']:,} there"


def faults(match: Match, facts: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """What is not as it should be."""
    for name, side in (("xlstm_tune", facts), (match.rival, theirs)):
        if not side.get("finite", True):
            yield f"{name}: the output is not finite"
        if dead := side.get("dead"):
            yield f"{name}: no gradient for {len(dead)} parameters, such as {dead[0]}"
    if not theirs.get("differs", 0.0) < TOLERANCE:
        yield f"the two sides differ by {theirs['differs']:.1e} of the largest value, with the same weights"


HEADER = (
    "| case | threads | ours, ms | other | other, ms | ratio | wanted | limit, ms | ours / limit |",
    "|---|--:|--:|---|--:|--:|--:|--:|--:|",
)


def row(outcome: Outcome) -> str:
    """A line of the table."""
    match, verdict = outcome.match, {None: "", True: "", False: " (missed)"}[outcome.met]
    cells = [
        f"{match.case.what}: {match.case.title}",
        f"{outcome.threads}",
        f"{1e3 * outcome.ours:.1f}",
        match.rival,
        "–" if outcome.theirs is None else f"{1e3 * outcome.theirs:.1f}",
        "–" if outcome.ratio is None else f"{outcome.ratio:.2f}×",
        "" if match.target is None else f"{match.target:.2g}×{verdict}",
        f"{1e3 * outcome.cached:.0f} – {1e3 * outcome.streamed:.0f}",
        f"{outcome.ours / outcome.cached:.1f} – {outcome.ours / outcome.streamed:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def rate_line(threads: int, rates: dict[str, float]) -> str:
    """The machine's rates in words."""
    return (
        f"- {threads} thread{'s' if threads > 1 else ''}: {rates['flops'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{rates['functions'] / 1e9:.2f} billion exp/s, {rates['cached'] / 1e9:.0f} billion element accesses/s in "
        f"cache and {rates['streamed'] / 1e9:.0f} in memory"
    )


def main(
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Numbers of threads. None: 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side and case.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Of a turn; at least one step is timed.")] = 1.5,
    only: Annotated[str, typer.Option(help="Cases whose name holds this, such as 'slstm' or 'pass'.")] = "",
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Measure xlstm_tune alone.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write the tables to results/cpu_step.md.")] = False,
) -> None:
    """Time training steps of both sides on this machine's CPU."""
    peers = None if no_peers else peers_python()
    if peers is None and not no_peers:
        print(MISSING)
    matches = [match for match in MATCHES if only in f"{match.case.what}: {match.case.title}"]
    if not matches:
        raise typer.BadParameter(f"no case has '{only}' in its name")
    outcomes: list[Outcome] = []
    rate_lines: list[str] = []
    versions: dict[str, str] = {}
    for count in threads or [1, 2]:
        with ExitStack() as stack:
            ours = stack.enter_context(Side(sys.executable, "our_steps.py", count))
            theirs = stack.enter_context(Side(str(peers), "peer_steps.py", count)) if peers else None
            torch_alone = None if no_peers else stack.enter_context(Side(sys.executable, "peer_steps.py", count))
            versions |= theirs.versions() if theirs else {}
            rates = ours.rates()
            rate_lines.append(rate_line(count, rates))
            print(rate_lines[-1], *HEADER, sep="\n")
            for match in matches:
                rival = torch_alone if match.rival == "torch.nn.LSTM" else theirs
                outcomes.append(play(match, count, ours, rival, rates, Clock(rounds, seconds)))
                print(row(outcomes[-1]), flush=True)
    said = dict.fromkeys(f"- {o.match.case.what}: {o.match.case.title}: {note}" for o in outcomes for note in o.notes)
    wrong = [f"{o.match.case.what}: {o.match.case.title}: {fault}" for o in outcomes for fault in o.faults]
    lines = [describe(("torch",), versions) + ".", "", *HEADER, *map(row, outcomes), "", *rate_lines, *said]
    print(*said, *(f"fault: {fault}" for fault in wrong), sep="\n")
    if write:
        print(f"Written to {write_results('cpu_step', lines)}.")
    raise SystemExit(1 if wrong or any(outcome.met is False for outcome in outcomes) else 0)


if __name__ == "__main__":
    typer.run(main)
