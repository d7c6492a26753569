"""gpu.py's way to compile peers: side by side, in processes of their own, as far as time allows."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_cases import Case, Peer
from gpu_child import Lane, Pool, environment

if TYPE_CHECKING:
    from gpu import Session

EXTENSIONS = Path(tempfile.gettempdir()) / "xlstm_tune-gpu"
"""What nvcc made for peers."""
WARMERS = 6
"""Processes that fill Triton's cache at a time: each holds a case in the GPU's memory."""
LONGEST_SECONDS = 75.0
"""For one case that Triton compiles."""

Cases = dict[str, list[Case]]
"""Section → cases."""


def of(ops: tuple[str, ...], cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.op in ops]


class Compiled:
    """Cases of peers that nvcc compiles for each shape: each in a process of its own, kept until it is timed. Use as a
    context."""

    def __init__(self, session: Session, peers: list[Peer], cases: Cases, part: str):
        """part: by whose end all has to be compiled."""
        self.session = session
        jobs = [
            (section, peer.name, case)
            for peer in peers
            for section, some in cases.items()
            for case in of(peer.ops, some)
        ]
        wanted = {"ms": 0, "slstm": 1}  # that have a target
        self.jobs = sorted(jobs, key=lambda job: wanted.get(job[2].op, len(wanted)))
        self.lanes = [Lane(extension_environment(side, case)) for _, side, case in self.jobs]
        if self.jobs:
            session.say(f"compiling {len(self.jobs)} cases of peers")
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as threads:
            futures = [
                threads.submit(self._prepare, lane, side, case, part)
                for lane, (_, side, case) in zip(self.lanes, self.jobs, strict=True)
            ]
            self.answers = [future.result() for future in futures]

    def _prepare(self, lane: Lane, side: str, case: Case, part: str) -> dict[str, Any]:
        left = self.session.left(part)
        if left < 2:
            return {"error": "not run: no time was left"}
        answer = lane.ask({"do": "prepare", "side": side, "case": asdict(case)}, math.inf, left)
        self.session.say(f"{side}: {case.title}: {answer.get('error', 'compiled')}")
        return answer

    def __enter__(self) -> Compiled:
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self.lanes:
            lane.end()

    def __iter__(self) -> Iterator[tuple[Lane, str, str, Case, dict[str, Any]]]:
        """(lane, section, side, case, the lane's answer) one after the other; the lane ends with its turn."""
        for lane, job, answer in zip(self.lanes, self.jobs, self.answers, strict=True):
            yield lane, *job, answer
            lane.end()


def fill_cache(session: Session, peers: list[Peer], cases: Cases, part: str) -> None:
    """Let Triton compile peers' cases into its cache on disk, as `fill` does."""
    wanted = [
        (peer.name, case) for some in cases.values() for peer in peers if peer.triton for case in of(peer.ops, some)
    ]
    fill(session, wanted, part, "peers")


def fill(session: Session, wanted: list[tuple[str, Case]], part: str, whose: str) -> None:
    """Let Triton compile cases of sides into its cache on disk, so that the one process that times them finds them
    there.

    part: by whose end. What goes wrong shows when the case is timed.
    """
    requests = [{"do": "prepare", "side": side, "case": asdict(case)} for side, case in wanted]
    if not requests:
        return
    session.say(f"Triton compiles {len(requests)} cases of {whose}")
    lanes = [Lane(environment(False)) for _ in range(max(1, min(WARMERS, (os.cpu_count() or 2) // 2, len(requests))))]
    with Pool(lanes) as pool:
        for _ in pool.ask(requests, LONGEST_SECONDS, session.deadline(part)):
            pass


def extension_environment(side: str, case: Case) -> dict[str, str]:
    """With a folder for what is compiled of this case alone: the packages' own names of it may coincide."""
    folder = EXTENSIONS / slug(f"{side} {case.title}")
    folder.mkdir(parents=True, exist_ok=True)
    for lock in folder.rglob("lock"):  # of a run that was stopped while it compiled; torch would wait for it for ever
        lock.unlink()
    return environment(False, TORCH_EXTENSIONS_DIR=str(folder), MAX_JOBS="4")


def slug(text: str) -> str:
    """For a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
