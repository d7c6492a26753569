"""mLSTM's and the stack's results of gpu.py in words: whose gradients are right, and by how much ours is faster.
Standard library alone.

A gradient is right where its error is within the dtype's tolerance (gpu_cases.TOLERANCES), as h's has to be. Ours is
held against the fastest public kernel whose gradients are right behind a norm (gpu_cases.NORM), which every mLSTM block
has; told beside it are the fastest one that is right for any gradient of h, and the fastest of all.
"""

from __future__ import annotations

from collections.abc import Callable

from gpu_cases import ANOTHER_FUNCTION, ANY, NORM, OURS, TOLERANCES, WANTED, Case
from gpu_rows import NOT_RUN, Results, Row, case_of, header, line, open_, verdict

INPUTS = "qkvif"


def right(row: Row, kind: str) -> bool:
    """Whether h, and the gradients under one kind of gradient of h, are right. A stack's are not asked for."""
    if "gradients" not in row:
        return bool(row["op"] == "ms")
    errors = (row["differs"], *row["gradients"][kind].values())
    return all(error <= TOLERANCES[row["dtype"]] for error in errors)


def wrong_gradients(results: Results) -> list[str]:
    """Of ours, at the shapes that are timed: a line each."""
    found = []
    for row in results["timings"]:
        if row["side"].startswith(OURS) and "gradients" in row and not right(row, ANY):
            name, worst = max({"h": row["differs"], **row["gradients"][ANY]}.items(), key=lambda pair: pair[1])
            found.append(f"{row['side']}: {case_of(row).title}: {name} or its gradient differs by {worst:.1e}")
    return found


def agreement_table(results: Results) -> list[str]:
    """The error of h and of each gradient: a row for each side and shape, of a search's shapes the worst."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results["timings"]:
        if "differs" in row and row["op"] in ("mlstm", "ms"):
            searched = row["section"] == "mlstm-search"
            what = f"mlstm, shapes of a search, {row['dtype']}" if searched else case_of(row).title
            groups.setdefault((what, row["side"]), []).append(row)
    if not groups:
        return []
    lines = [
        "## mLSTM and the stack: agreement with float64",
        "",
        f"Relative errors of h (of the stack: its output) and of the gradients of its inputs, under {ANY} gradient of "
        f"h / under one as it comes {NORM} of the head. Allowed: {allowed()}.",
        "",
        *header("shape", "side", "h", *INPUTS, "gradients", numbers=range(2, 8)),
    ]
    for (what, side), rows in groups.items():
        cells = [" / ".join(f"{worst(rows, kind, name):.0e}" for kind in (ANY, NORM)) for name in INPUTS]
        if "gradients" not in rows[0]:
            cells, said = [""] * len(INPUTS), ""
        elif all(right(row, ANY) for row in rows):
            said = "right"
        else:
            said = f"right {NORM}" if all(right(row, NORM) for row in rows) else "WRONG"
        lines.append(line(what, side, f"{max(row['differs'] for row in rows):.0e}", *cells, said))
    return [*lines, ""]


def worst(rows: list[Row], kind: str, name: str) -> float:
    return max((row["gradients"][kind][name] for row in rows if "gradients" in row), default=0.0)


def allowed() -> str:
    return ", ".join(f"{error:.0e} in {dtype}" for dtype, error in TOLERANCES.items())


def wanted(results: Results) -> list[str]:
    """For each wanted figure whether it is reached."""
    rows = [row for row in results["timings"] if row["section"] in ("mlstm", "stack")]
    found = []
    for case, least in WANTED.items():
        ours = [row for row in rows if row["side"] == OURS and case_of(row) == case]
        if ours:
            who = "of the fastest public kernel with right gradients" if case.op == "mlstm" else "of xlstm's fastest"
            judged, said = compare(ours[0], rivals(rows, case), least)
            found.append(f"{case.title}, forward + backward, at least {least:g}× the speed {who}: {judged} ({said}).")
    return found


def rivals(rows: list[Row], case: Case) -> list[Row]:
    """The others at a case, with and without a time."""
    others = [row for row in rows if not row["side"].startswith(OURS) and row["side"] != ANOTHER_FUNCTION]
    return [row for row in others if case_of(row) == case]


def compare(ours: Row, others: list[Row], least: float) -> tuple[str, str]:
    """The verdict, and what it stands on. It is met only when no rival is left that time did not suffice for."""
    if "error" in ours:
        return verdict(not open_(ours), open_(ours)), str(ours["error"])
    rival = fastest(others, lambda row: right(row, NORM))
    left = [row["side"] for row in others if open_(row)]
    parts = [f"ours {ours['both_ms']:.3f} ms", "nobody to compare with" if rival is None else told(ours, rival)]
    for row, what in (
        (fastest(others, lambda row: right(row, ANY)), "the fastest that is right for any gradient of h"),
        (fastest(others, lambda _: True), "the fastest of all"),
    ):
        if row is not None and row is not rival:
            parts.append(f"{what}: {told(ours, row)}")
    if left:
        parts.append(f"{NOT_RUN} for want of time: {', '.join(left)}")
    missed = rival is not None and rival["both_ms"] / ours["both_ms"] < least
    return verdict(missed, rival is None or bool(left)), "; ".join(parts)


def fastest(rows: list[Row], counts: Callable[[Row], bool]) -> Row | None:
    """Of the rows that have a time and count."""
    timed = [row for row in rows if "error" not in row and counts(row)]
    return min(timed, key=lambda row: float(row["both_ms"]), default=None)


def told(ours: Row, other: Row) -> str:
    return f"{other['both_ms'] / ours['both_ms']:.2f}× {other['side']}, {other['both_ms']:.3f} ms"


def fair(results: Results) -> list[Row]:
    """Rows of mLSTM at a search's shapes that count in a race: ours, and the others' whose gradients are right."""
    rows = [row for row in results["timings"] if row["section"] == "mlstm-search" and row["side"] != ANOTHER_FUNCTION]
    return [row for row in rows if row["side"].startswith(OURS) or "error" in row or right(row, NORM)]
