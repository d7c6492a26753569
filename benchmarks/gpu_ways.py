"""Storing or recomputing what a backward pass of LSTM and sLSTM needs: what gpu.py checks and times of both ways, and
their table. What the ways are stands in xlstm_tune/kernels/gated_triton.py. Standard library alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from gpu_cases import Case

WAYS = ("store", "recompute")
VARIANT = "recompute"
"""Of a check: as `masks`, recomputing."""
CHECKED = (5, 64, 130)
"""Head widths: padded, on chip, and step by step."""
CHECKED_STEPS = 130
"""Three pieces, the last one short."""
SHAPES = (
    (16, 1024, 12, 64, "bfloat16", 1),
    (16, 1024, 3, 256, "bfloat16", 1),
    (32, 365, 4, 64, "float32", 1),
    (256, 365, 4, 64, "bfloat16", 16),
)
"""Of the authors' shapes one on chip and one step by step; of a search's a small one, and one that fills the chip."""
CASES = tuple(Case(op, *shape) for op in ("slstm", "lstm") for shape in SHAPES)
SECONDS = 0.2
"""Of calls for a time."""


def checks(
    session: Any, widths: Iterable[int], dtypes: Iterable[str], size: tuple[int, int, int]
) -> list[dict[str, Any]]:
    """Requests to check recomputed gradients; size: (batch, steps, heads), of which the steps are replaced."""
    batch, _, heads = size
    return [
        {"do": "check", "op": op, "dtype": dtype, "width": width, "variant": VARIANT}
        | {"size": (batch, CHECKED_STEPS, heads)}
        for width in CHECKED
        if width in set(widths)
        for dtype in dtypes
        for op in ("lstm", "slstm")
        if session.wanted(f"check: {op}, {width}, {dtype}, {VARIANT}")
    ]


def time_ways(session: Any, lane: Any, longest: float) -> None:
    """Time CASES both ways into the session's results; longest: seconds for one of them."""
    for case in CASES[:: len(SHAPES) if session.arguments.quick else 1]:
        for way in WAYS:
            title = f"ways: {case.title}, {way}"
            if not session.wanted(title):
                continue
            row = asdict(case) | {"way": way}
            left = session.left("ways")
            if left < 2:
                session.add("ways", row | {"error": "not run: no time was left"})
                continue
            session.say(title)
            request = {"do": "way", "case": asdict(case), "way": way, "seconds": SECONDS}
            session.add("ways", row | lane.ask(request, longest, left))


def ways_table(
    rows: list[dict[str, Any]], header: Callable[..., list[str]], line: Callable[..., str], title: Callable[..., str]
) -> list[str]:
    """Both ways side by side; header, line and title are those of gpu_tables.py."""
    if not rows:
        return []
    lines = [
        "## Storing or recomputing what the backward pass needs",
        "",
        "Training calls. Kept: between forward and backward, of each unit and step besides h, where nothing else keeps "
        "the gates. Peak: in both passes, above what was there before. By itself a call goes the way marked with *.",
        "",
        *header(
            "shape", "way", "forward, ms", "forward + backward, ms", "kept, bytes", "kept, MiB", "peak, MiB",
            "gradients", numbers=(2, 3, 4, 5, 6),
        ),
    ]  # fmt: skip
    for row in rows:
        name = row["way"] + ("*" if row.get("chosen") else "")
        if "error" in row:
            lines.append(line(title(row), name, row["error"], *[""] * 5))
            continue
        same = {True: "the stored ones, to the last bit", False: "differ in their last bits", None: ""}[row.get("same")]
        times = (f"{row['forward_ms']:.3f}", f"{row['both_ms']:.3f}")
        memory = (f"{row['kept_bytes_a_unit']:.2f}", f"{row['kept_mib']:.0f}", f"{row['peak_mib']:.0f}")
        lines.append(line(title(row), name, *times, *memory, same))
    return [*lines, ""]
