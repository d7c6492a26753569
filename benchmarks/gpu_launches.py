"""Which launch parameters are the fastest on a GPU: what the tables of the Triton kernels should say.

    python benchmarks/gpu_launches.py                 nine minutes; writes results/<device>-launches.json and .md
    python benchmarks/gpu_launches.py --only slstm
    python benchmarks/gpu_launches.py --interpret     without a GPU: one candidate each, checked, not timed

Each candidate runs training calls of 365 steps on four heads of each width: of a small batch, a large one, and a
population of 16 that fills the chip. LSTM and sLSTM: samples of a program, warps, and how far it reads ahead; mLSTM's
walk: steps of a chunk and warps. Results are held against those with the table's parameters. A candidate that takes
more than the chip has, or differs, is listed with the reason. All are compiled first, by as many processes as cores.

Exit code 1 when a candidate gives another result, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_cases import GATED, TOLERANCES, Case
from gpu_child import Lane, Pool, environment
from gpu_compiled import slug
from gpu_files import parser, write
from gpu_rows import NOT_RUN, Row, case_of, header, line
from gpu_tables import machine

SHAPES = ((32, 1), (256, 1), (256, 16))
"""(batch, members): few programs, some, and as many as fill a chip."""
STEPS = 365
HEADS = 4
KINDS = tuple((width, dtype) for width in (16, 32, 64, 128) for dtype in ("bfloat16", "float32"))
GATED_KINDS = tuple(kind for kind in KINDS if kind != (128, "float32"))
"""Of the others one kernel runs all steps."""
SAMPLES = {"bfloat16": (8, 16), "float32": (4, 8, 16)}
WARPS = {16: (1, 2, 4), 32: (1, 2, 4, 8), 64: (4, 8, 16), 128: (8, 16)}
"""By head width."""
STAGES = {16: (3,), 32: (3,), 64: (1, 3), 128: (1, 2)}
COMPILED = 0.45
"""Of --seconds, by when compiling has to end."""
REQUEST_SECONDS = 90.0
SECONDS = 0.08
"""Of calls for a time."""


def candidates(op: str, width: int, dtype: str) -> Iterator[dict[str, int]]:
    """Parameters to be tried."""
    if op == "mlstm":
        for chunk in (16, 32, 64):
            for warps in (1, 2, 4, 8):
                if chunk * width <= 4096 and warps * 32 >= width:
                    yield {"CHUNK": chunk, "num_warps": warps, "num_stages": 1}
        return
    for samples in SAMPLES[dtype]:
        for warps in WARPS[width]:
            for stages in STAGES[width]:
                yield {"samples": samples, "warps": warps, "stages": stages}


def wanted(only: str, interpret: bool) -> list[tuple[Case, dict[str, int]]]:
    """Cases of the first shape with their candidates, those whose title holds `only`."""
    batch, members = SHAPES[0]
    found = []
    for op in (*GATED, "mlstm"):
        for width, dtype in GATED_KINDS if op in GATED else KINDS:
            case = Case(op, batch, STEPS, HEADS, width, dtype, members)
            if only in case.title:
                found += [(case, cut) for cut in candidates(op, width, dtype)]
    if interpret:
        return [
            (replace(case, batch=5, steps=20, heads=1), cut)
            for at, (case, cut) in enumerate(found)
            if (case.width, case.dtype) == (16, "float32") and (not at or found[at - 1][0] != case)
        ]
    return found


def request(case: Case, cut: dict[str, int], seconds: float) -> dict[str, Any]:
    return {"do": "launch", "case": asdict(case), "cut": cut, "seconds": seconds}


def judged(row: Row) -> Row:
    """A row, with an error where its results are others than the table's."""
    wrong = "error" not in row and not row["worst"] <= TOLERANCES[row["dtype"]]
    return row | {"error": f"differs by {row['worst']:.1e}", "wrong": True} if wrong else row


def run(arguments: argparse.Namespace, lane: Lane) -> Iterator[Row]:
    """Every candidate compiled and checked, then timed at every shape, a row each; those that cannot run once."""
    started = time.monotonic()
    todo = wanted(arguments.only, arguments.interpret)
    count = 1 if arguments.interpret else max(1, (os.cpu_count() or 2) - 1)
    good = []
    print(f"{len(todo)} candidates", file=sys.stderr, flush=True)
    with Pool([Lane(environment(arguments.interpret)) for _ in range(count)]) as pool:
        # Few samples and steps: what is compiled is the same.
        small = [request(replace(case, batch=5, steps=20), cut, 0.0) for case, cut in todo]
        for asked, answer in pool.ask(small, REQUEST_SECONDS, started + COMPILED * arguments.seconds):
            row = judged(asked["case"] | {"cut": asked["cut"]} | answer)
            if "error" in row or arguments.interpret:
                yield row
            else:
                good.append((case_of(row), asked["cut"]))
    good.sort(key=lambda one: KINDS.index((one[0].width, one[0].dtype)))  # should time end, all ops have had some
    for case, cut in good:
        for batch, members in SHAPES:
            shape = replace(case, batch=batch, steps=STEPS, heads=HEADS, members=members)
            left = started + arguments.seconds - time.monotonic()
            answer = {"error": f"{NOT_RUN}: no time was left"}
            if left > 2:
                answer = lane.ask(request(shape, cut, SECONDS), REQUEST_SECONDS, left)
            yield judged(asdict(shape) | {"cut": cut} | answer)


def named(cut: dict[str, int]) -> str:
    """Parameters in words."""
    words = {"CHUNK": "steps", "num_warps": "warps", "num_stages": ""}
    return ", ".join(f"{number} {words.get(name, name)}" for name, number in cut.items() if words.get(name, name))


def tables(rows: list[Row]) -> list[str]:
    """The fastest candidate of each shape beside the table's own, then every time, then what did not run."""
    shapes: dict[Case, list[Row]] = {}
    for row in rows:
        if "error" not in row:
            shapes.setdefault(case_of(row), []).append(row)
    lines = ["Training calls: forward + backward, milliseconds.", ""]
    lines += header("shape", "by the table", "ms", "the fastest", "ms", "times as fast", numbers=(2, 4, 5))
    every = header("shape", "parameters", "forward", "forward + backward", numbers=(2, 3))
    for case, timed in sorted(shapes.items(), key=lambda one: one[0].title):
        own = next((row for row in timed if row["own"]), None)
        best = min(timed, key=lambda row: float(row["both_ms"]))
        mine, ms, ratio = ("none of these", "", "")
        if own is not None:
            mine, ms, ratio = named(own["cut"]), f"{own['both_ms']:.3f}", f"{own['both_ms'] / best['both_ms']:.2f}×"
        lines.append(line(case.title, mine, ms, named(best["cut"]), f"{best['both_ms']:.3f}", ratio))
        for row in sorted(timed, key=lambda row: float(row["both_ms"])):
            cells = (named(row["cut"]), f"{row['forward_ms']:.3f}", f"{row['both_ms']:.3f}")
            every.append(line(case.title, *cells))
    refused = [line(case_of(row).title, named(row["cut"]), row["error"]) for row in rows if "error" in row]
    if refused:
        refused = ["", "## What did not run", "", *header("shape", "parameters", "reason"), *refused]
    return [*lines, "", "## Every time", "", *every, *refused]


def save(path: Path, found: dict[str, Any], rows: list[Row]) -> None:
    """What there is so far: found, the machine, and rows."""
    write(path, ".json", json.dumps(found | {"rows": rows}, indent=1))
    write(path, ".md", "\n".join([f"# `{found['command']}`", "", machine(found), "", *tables(rows)]))


def parse() -> argparse.Namespace:
    flags = parser(__doc__, 520.0)
    flags.add_argument("--only", default="", help="shapes that have this in their name: 'slstm', '4 × 64, bfloat16'")
    flags.add_argument("--interpret", action="store_true", help="on a CPU, in the interpreter: checked, not timed")
    return flags.parse_args()


def main() -> int:
    arguments = parse()
    with Lane(environment(arguments.interpret)) as lane:
        found = lane.ask({"do": "describe"}, REQUEST_SECONDS)
        if "error" in found:
            print(f"This cannot run: {found['error']}.")
            return 2
        if not found["device"] and not arguments.interpret:
            print("There is no GPU, and this times one; --interpret checks a few candidates on a CPU.")
            return 2
        if arguments.interpret:
            rows = list(run(arguments, lane))
            for row in rows:
                print(f"{case_of(row).title}, {named(row['cut'])}: {row.get('error') or 'ok'}")
            return 1 if not rows or any("error" in row for row in rows) else 0
        command = shlex.join(["python", "benchmarks/gpu_launches.py", *sys.argv[1:]])
        found |= {"date": datetime.date.today().isoformat(), "command": command}
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / (slug(found["device"]) + "-launches" + ("-partial" if arguments.only else ""))
        rows = []
        for row in run(arguments, lane):
            rows.append(row)
            save(path, found, rows)
    print(*tables(rows), f"\nWritten to {path}.md and .json.", sep="\n")
    return 1 if any(row.get("wrong") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
