"""The kernels on a GPU: are they right, how fast are they, how far from the device's limits, and beside whom.

    make gpu                                  at most nine minutes; writes results/<device>.json and .md
    make gpu ARGS='--only slstm --no-peers'
    make gpu ARGS='--only mlstm'              mLSTM alone, with all the time for it
    python benchmarks/gpu.py --interpret      without a GPU: the checks alone, tiny, in Triton's interpreter

It builds nothing and needs torch (with its Triton), numba and numpy; `make gpu-packages` fetches numba and the peers
into .gpu-packages, for the interpreter at hand, without touching its torch. In this order, until --seconds are over:

* checks: lstm, slstm and mlstm with backend triton against backend reference in float64 on the device, with fresh
  random inputs: head widths from 1 to 1024 (mLSTM: as wide as its kernel goes), three dtypes, with and without initial
  state, resets and lengths; outputs, final states and all gradients (gpu_checks.py). Then capture in a CUDA graph,
  torch.compile, and vmap over members.
* limits: products, memory, the floor under a step of one program (gpu_limits.py).
* ours: forward, and forward and backward, of mLSTM's shapes, a stack (a training step), FlashRNN's shapes and those of
  a search (gpu_cases.py, which says how work is counted too), timed by events, the median counts; with CUDA graphs as
  well.
* ways: what the backward pass needs stored or recomputed, time and memory of both (gpu_ways.py, gpu_memory.py).
* capture: a training step of populations, eager and replayed from a CUDA graph (gpu_capture.py).
* first calls of a shape with an empty Triton cache in a fresh process.
* peers: beside mLSTM those of mlstm_kernels, the official parallel form and FlashAttention, whose gradients are checked
  too (gpu_mlstm_peers.py), and xlstm's stack (gpu_stack.py); beside the others FlashRNN's backends, xlstm's vanilla
  sLSTM, cuDNN's LSTM (gpu_peers.py). What does not run is listed with the reason. FlashRNN's and xlstm's CUDA backends
  are compiled for each shape, side by side, as far as time allows. What was compiled stays in the temporary folder and
  in Triton's cache, and --prepare does nothing else, so that a run after it has the time for the rest.

All of it happens in processes of its own, with a time limit each, and the results are written every second: what was
measured before an accident is kept. With --only, --quick or --no-peers the files are named -partial, and what --only
asks for. On a machine that is lent for minutes, several runs with --only bring more than one for everything.

Exit code 1 when a check fails (the tables are written), 2 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_capture
import gpu_ways
from gpu_cases import (
    CHECK_SIZE,
    CHECK_WIDTHS,
    DESIGN_VARIANTS,
    FEATURES,
    FIRST,
    GATED,
    OPS,
    OURS,
    PEERS,
    QUICK,
    SECTIONS,
    TOLERANCES,
    VARIANTS,
    VMAPPED,
    Case,
)
from gpu_child import Lane, Pool, environment
from gpu_compiled import Compiled, fill, fill_cache, of, slug
from gpu_files import parser, write
from gpu_tables import failures, tables, targets

SECONDS = 500.0
SHARES = {
    "checks": 0.30, "warm": 0.38, "ours": 0.58, "ways": 0.63, "capture": 0.70, "first": 0.74, "mlstm compile": 0.79,
    "mlstm peers": 0.87, "compile": 0.94, "peers": 1,
}  # fmt: skip
"""Of --seconds, by when a part has to end."""
ALONE = ("check", "feature", "first", "capture")
"""Beginnings of --only that leave one part, which then has all the time."""
MOST_WARMED = 512
"""Samples of all members in a case that is compiled ahead; larger ones take the same kernels, and too much memory."""
REQUEST_SECONDS = 75.0
"""For one check, or to prepare or time one case."""
EACH = {"mlstm": 0.4, "stack": 0.4, "long": 0.4, "mlstm-search": 0.15, "search": 0.15}
"""Seconds of calls for a time."""
VMAPPED_CASES = {"batch": 32, "width": 64, "dtype": "bfloat16"}
MLSTM_SECTIONS = ("mlstm", "stack", "mlstm-search")
TINY: dict[str, Any] = {"widths": (5, 16), "dtypes": ("float32", "float16"), "size": (3, 2, 1), "mlstm": (2, 37, 1)}
"""Of --interpret. Its products of bfloat16 are wrong. mLSTM's size is its own: the interpreter takes its steps by the
chunk, and over a few steps its forget gates have gradients of rounding alone."""


class Session:
    """A run: its results, where they are kept, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace, path: Path | None, found: dict[str, Any]):
        self.arguments = arguments
        self.path = path
        """Without the suffix; None = nothing is written."""
        self.started = time.monotonic()
        self.saved = 0.0
        command = ["benchmarks/gpu.py", *sys.argv[1:]]
        self.results: dict[str, Any] = {
            **found,
            "command": shlex.join(["python", *command]),
            "date": datetime.date.today().isoformat(),
            "seed": arguments.seed,
            "unfinished": True,
            **{part: [] for part in ("checks", "features", "floors", "timings", "ways", "capture", "first", "refused")},
            "limits": {},
        }

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Take in a row of results, and write all of them every second."""
        self.results[part].append(row)
        if time.monotonic() - self.saved > 1:
            self.save()

    def save(self) -> None:
        if self.path is None:
            return
        told = self.results | {"targets": targets(self.results)}
        # One by one: what was measured is kept, whatever becomes of its table.
        write(self.path, ".json", json.dumps(told, indent=1))
        write(self.path, ".md", "\n".join(tables(self.results)))
        self.saved = time.monotonic()

    def deadline(self, part: str) -> float:
        """When a part has to end, by time.monotonic()."""
        alone = self.arguments.interpret or self.arguments.only.startswith(ALONE)
        share = 1.0 if alone else SHARES[part]
        return self.started + float(share * self.arguments.seconds)

    def left(self, part: str) -> float:
        return self.deadline(part) - time.monotonic()

    def wanted(self, title: str) -> bool:
        return self.arguments.only in title

    def takes(self, op: str, width: int) -> bool:
        """Whether our kernel of an op, or a design of it, takes heads so wide."""
        widest: dict[str, int] = self.results.get("widest", {})
        return width <= widest.get(op, width)

    def designs(self, name: str) -> list[str]:
        """`name` with each design that mLSTM's kernel can be asked for by name."""
        return [f"{name}, {design}" for design in self.results.get("designs", ())]

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:4.0f} s  {text}", file=sys.stderr, flush=True)


def check(session: Session, lane: Lane) -> None:
    """Part 1: correctness, in nearly as many processes as cores, since most of the time is Triton's compiling; `lane`
    is one of them."""
    arguments = session.arguments
    widths: Iterable[int] = (5, 64, 130) if arguments.quick else CHECK_WIDTHS
    dtypes: Iterable[str] = TOLERANCES
    size = mlstm_size = CHECK_SIZE
    feature_width = 64
    if arguments.interpret:
        widths, dtypes, feature_width = TINY["widths"], TINY["dtypes"], TINY["widths"][0]
        size, mlstm_size = TINY["size"], TINY["mlstm"]
    checks = [
        {"do": "check", "op": op, "dtype": dtype, "width": width, "variant": variant}
        # By variant: those of one size share kernels, which the first then compiles and the next find in the cache.
        for variant in VARIANTS
        for width in widths
        for dtype in dtypes
        for op in (*OPS, *session.designs("mlstm"))
        if (op in OPS or variant in DESIGN_VARIANTS)
        and session.takes(op, width)
        and session.wanted(f"check: {op}, {width}, {dtype}, {variant}")
    ]
    features = [
        {"do": "feature", "op": op, "name": name, "width": width}
        for op in OPS
        for name in FEATURES
        for width in ((feature_width,) if arguments.interpret else (feature_width, 256))
        if session.takes(op, width) and session.wanted(f"feature: {op}, {name}")
    ]
    checks += gpu_ways.checks(session, widths, dtypes, size)
    # Features first: they are few, and nothing else shows whether a search's steps can be captured.
    requests = features + [request | {"seed": arguments.seed} for request in checks]
    for request in requests:
        request.setdefault("size", mlstm_size if request["op"].startswith("mlstm") else size)
    session.say(f"{len(requests)} checks")
    count = 1 if arguments.interpret else max(1, min(14, (os.cpu_count() or 2) - 2, len(requests)))
    with Pool([lane, *(Lane(environment(arguments.interpret)) for _ in range(count - 1))]) as pool:
        for request, answer in pool.ask(requests, REQUEST_SECONDS, session.deadline("checks")):
            part = "checks" if "variant" in request else "features"
            kept = {name: request[name] for name in ("op", "dtype", "width", "variant", "name") if name in request}
            session.add(part, kept | answer)


def measure(session: Session) -> None:
    """Part 2: the device's limits and our times."""
    warm_up(session)
    with Lane(environment(False)) as lane:
        session.say("limits")
        session.results["limits"] = lane.ask({"do": "limits"}, REQUEST_SECONDS)
        for op in GATED:
            for dtype in ("bfloat16", "float32"):
                answer = lane.ask({"do": "floor", "op": op, "dtype": dtype}, REQUEST_SECONDS)
                session.add("floors", {"op": op, "dtype": dtype} | answer)
        for section, cases in chosen(session).items():
            time_cases(session, lane, OURS, section, cases, "ours")
            for side in session.designs(OURS) if section.startswith("mlstm") else ():
                alone = [case for case in cases if case.members == 1 and case.dtype == "bfloat16"]
                time_cases(session, lane, side, section, alone, "ours")
        vmapped = [
            case
            for case in chosen(session)["search"]
            if case.members > 1 and all(getattr(case, name) == value for name, value in VMAPPED_CASES.items())
        ]
        time_cases(session, lane, VMAPPED, "search", vmapped, "ours")
        gpu_ways.time_ways(session, lane, REQUEST_SECONDS)
        gpu_capture.time_capture(session, lane, REQUEST_SECONDS)


def warm_up(session: Session) -> None:
    """Have our kernels compiled that the checks did not need: one process alone would spend most of its time on it."""
    cases = [case for some in chosen(session).values() for case in some if case.batch * case.members <= MOST_WARMED]
    sides = [OURS, *session.designs(OURS)]
    wanted = [(side, case) for side in sides for case in cases if side == OURS or case.op == "mlstm"]
    fill(session, wanted, "warm", "ours")


def chosen(session: Session) -> dict[str, list[Case]]:
    """The cases that are asked for, by section."""
    sections = QUICK if session.arguments.quick else SECTIONS
    return {
        section: [case for case in cases if session.wanted(f"{section}: {case.title}")]
        for section, cases in sections.items()
    }


def time_cases(
    session: Session,
    lane: Lane,
    side: str,
    section: str,
    cases: Iterable[Case],
    part: str,
    prepared: dict[str, Any] | None = None,
) -> None:
    """Time cases of a side one after the other; prepared: the lane's answer where it has prepared the case already."""
    for case in cases:
        row = {"section": section, "side": side} | asdict(case) | (prepared or {})
        left = session.left(part)
        if "error" not in row and left < 2:
            session.add("timings", row | {"error": "not run: no time was left"})
            continue
        if prepared is None:
            session.say(f"{side}: {case.title}")
            request = {"do": "prepare", "side": side, "case": asdict(case)}
            row |= lane.ask(request, REQUEST_SECONDS, left)
        if "error" not in row:
            each = EACH[section] / (4 if session.arguments.quick else 1)
            timing = {"do": "time", "seconds": each, "graph": side == OURS and section != "stack"}
            row |= lane.ask(timing, REQUEST_SECONDS, max(2, session.left(part)))
        session.add("timings", row)


def first_calls(session: Session) -> None:
    """Part 3: first calls, an empty cache for each."""
    rows = [
        {"op": op, "dtype": dtype, "width": width}
        for op, dtype, width in FIRST[:: 3 if session.arguments.quick else 1]
        if session.takes(op, width) and session.wanted(f"first: {op}, {width}, {dtype}")
    ]

    def first(row: dict[str, Any]) -> dict[str, Any]:
        left = session.left("first")
        if left < 2:
            return {"error": "not run: no time was left"}
        with tempfile.TemporaryDirectory() as folder, Lane(environment(False, TRITON_CACHE_DIR=folder)) as lane:
            return lane.ask({"do": "first", **row}, REQUEST_SECONDS, left)

    if rows:
        session.say(f"first calls of {len(rows)} shapes")
        # Compiling takes a core; with one in three at work they do not slow each other down.
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 3)) as threads:
            for row, answer in zip(rows, threads.map(first, rows), strict=True):
                session.add("first", row | answer)


def time_peers(session: Session) -> None:
    """Part 4: the others, as far as time allows."""
    cases = chosen(session)
    if not any(cases.values()):
        return
    ready = []
    with Lane(environment(False)) as lane:
        for peer in PEERS:
            answer = lane.ask({"do": "refusal", "side": peer.name}, REQUEST_SECONDS)
            if "error" in answer:
                session.add("refused", {"side": peer.name, "error": answer["error"]})
            else:
                ready.append(peer)
        quick = [peer for peer in ready if not peer.compiled and not peer.slow]
        for section in MLSTM_SECTIONS:
            fill_cache(session, quick, {section: cases[section]}, "mlstm compile")
            for peer in quick:
                time_cases(session, lane, peer.name, section, of(peer.ops, cases[section]), "mlstm peers")
        for peer in quick:
            time_cases(session, lane, peer.name, "long", of(peer.ops, cases["long"]), "peers")
        lane.end()
        with Compiled(session, [peer for peer in ready if peer.compiled], by_nvcc(cases), "compile") as compiled:
            for own, section, side, case, answer in compiled:
                time_cases(session, own, side, section, [case], "peers", prepared=answer)
        for peer in quick:
            time_cases(session, lane, peer.name, "search", of(peer.ops, cases["search"]), "peers")
        slow = [peer for peer in ready if peer.slow]
        for section in ("mlstm", "long", "search"):
            for peer in slow:
                alone = [case for case in of(peer.ops, cases[section]) if case.members == 1]
                time_cases(session, lane, peer.name, section, alone, "peers")


def by_nvcc(cases: dict[str, list[Case]]) -> dict[str, list[Case]]:
    """The sections of whose cases nvcc compiles each."""
    return {section: cases[section] for section in ("stack", "long")}


def prepare_peers(session: Session) -> int:
    """Compile what peers need to be compiled, nothing else. Exit code 1 where something was not."""
    ready = []
    with Lane(environment(False)) as lane:
        for peer in PEERS:
            if peer.compiled:
                answer = lane.ask({"do": "refusal", "side": peer.name}, REQUEST_SECONDS)
                session.say(f"{peer.name}: {answer.get('error', 'can be compiled')}")
                ready += [] if "error" in answer else [peer]
    cases = chosen(session)
    fill_cache(session, list(PEERS), {section: cases[section] for section in MLSTM_SECTIONS}, "peers")
    with Compiled(session, ready, by_nvcc(cases), "peers") as compiled:
        return int(not ready or any("error" in answer for answer in compiled.answers))


def parse() -> argparse.Namespace:
    flags = parser(__doc__, SECONDS)
    flags.add_argument("--only", default="", help="what has this in its name: 'slstm', 'check: ', 'long: ', '12 × 64'")
    flags.add_argument("--no-peers", action="store_true", help="our side alone")
    flags.add_argument("--prepare", action="store_true", help="compile peers, nothing else")
    flags.add_argument("--quick", action="store_true", help="fewer shapes, shorter times")
    flags.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the checks' inputs (default: any)")
    flags.add_argument("--interpret", action="store_true", help="checks alone, on a CPU, in Triton's interpreter")
    return flags.parse_args()


def main() -> int:
    arguments = parse()
    with Lane(environment(arguments.interpret)) as lane:
        found = lane.ask({"do": "describe"}, REQUEST_SECONDS)
        if "error" in found:
            print(f"This cannot run: {found['error']}.")
            return 2
        if arguments.interpret:
            session = Session(arguments, None, found | {"device": "Triton's interpreter on a CPU"})
            check(session, lane)
            session.results["unfinished"] = False
            print("\n".join(tables(session.results)))
            return 1 if failures(session.results) else 0
        if not found["device"]:
            print(
                f"There is no GPU: torch {found['versions']['torch']} sees no CUDA device, and this measures one; "
                "--interpret runs its checks on a CPU."
            )
            return 2
        partial = "-partial" if arguments.only or arguments.quick or arguments.no_peers else ""
        partial += f"-{slug(arguments.only)}" if arguments.only else ""
        session = Session(arguments, arguments.out / (slug(found["device"]) + partial), found)
        if arguments.prepare:
            return prepare_peers(session)
        arguments.out.mkdir(parents=True, exist_ok=True)
        session.save()
        try:
            check(session, lane)
            for part in (measure, first_calls, *(() if arguments.no_peers else (time_peers,))):
                session.save()
                part(session)
            session.results["unfinished"] = False
        finally:
            session.save()
    print("\n".join(tables(session.results)))
    print(f"\nWritten to {session.path}.md and .json.")
    return 1 if failures(session.results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
