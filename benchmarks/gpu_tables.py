"""The results of gpu.py in words: Markdown tables, what failed, and which targets are met. Standard library alone."""

from __future__ import annotations

from typing import Any

from gpu_capture import capture_table, wrong_captures
from gpu_cases import ANOTHER_FUNCTION, FIRST_SECONDS, LONG_MS, OURS, PEERS, TOLERANCES, WORK, Case
from gpu_mlstm_tables import agreement_table, fair, wanted, wrong_gradients
from gpu_rows import NOT_RUN, Results, Row, case_of, header, line, open_, verdict
from gpu_ways import ways_table


def failures(results: Results) -> list[str]:
    """Checks that failed, a line each. What time did not suffice for is none."""
    found = []
    for row in results["checks"]:
        name = f"{row['op']}, width {row['width']}, {row['dtype']}, {row['variant']}"
        if "error" in row:
            if not row["error"].startswith(NOT_RUN):
                found.append(f"{name}: {row['error']}")
        elif not row["worst"] <= TOLERANCES[row["dtype"]]:
            found.append(f"{name}: {row['where']} differs by {row['worst']:.1e}")
    for row in results["features"]:
        said = said_of(row)
        if said != "ok" and not said.startswith(NOT_RUN):
            found.append(f"{row['op']}, {row['name']}, width {row['width']}: {said}")
    return found + wrong_gradients(results) + wrong_captures(results.get("capture", []))


def said_of(row: Row) -> str:
    return str(row.get("error") or row["said"])


def tables(results: Results) -> list[str]:
    """Lines of Markdown."""
    lines = [f"# `{results['command']}`", "", machine(results), ""]
    if results["unfinished"]:
        lines += ["**Unfinished**: the run was still going on, or was stopped, when this was written.", ""]
    lines += check_tables(results)
    if results["limits"]:
        lines += limits_table(results)
    if results["first"]:
        lines += first_table(results)
    for section, title in (
        ("mlstm", "mLSTM"),
        ("stack", "A training step of a stack: an mLSTM and an sLSTM block, with AdamW"),
        ("long", "16 × 1,024 steps, 768 units in bfloat16"),
        ("mlstm-search", "mLSTM at the shapes of a search: 64 × 365 steps"),
        ("search", "Shapes of a search: 365 steps"),
    ):
        lines += timings_table(results, section, title)
    lines += ways_table(results["ways"], header, line, lambda row: case_of(row).title)
    lines += capture_table(results.get("capture", []), header, line)
    lines += agreement_table(results)
    lines += missing_table(results)
    if results["timings"] or results["first"]:
        lines += ["## Targets", "", *(f"- {line}" for line in targets(results)), ""]
    return lines


def machine(results: Results) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    size = ""
    if "processors" in results:
        size = f" ({results['processors']} multiprocessors, {results['memory_gib']:.0f} GiB)"
    return f"{results['device']}{size}, {versions}, {results['date']}."


def check_tables(results: Results) -> list[str]:
    """The worst relative error by op and dtype, and the other checks one by one."""
    lines = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results["checks"]:
        groups.setdefault((row["op"], row["dtype"]), []).append(row)
    if groups:
        lines += ["## Checks", "", f"Against the reference in float64; random inputs of seed {results['seed']}.", ""]
        lines += header("op", "dtype", "worst relative error", "at", "allowed", "passed", "", numbers=(2, 4, 5))
    for (op, dtype), rows in groups.items():
        measured = [row for row in rows if "error" not in row]
        allowed = TOLERANCES[dtype]
        good = sum(row["worst"] <= allowed for row in measured)
        worst = max(measured, key=lambda row: float(row["worst"]), default=None)
        found = "–" if worst is None else f"{worst['worst']:.1e}"
        place = "" if worst is None else f"{worst['where']}, width {worst['width']}, {worst['variant']}"
        failed = failures({**results, "features": []})
        bad = any(one.startswith(f"{op}, width ") and f", {dtype}, " in one for one in failed)
        verdict = "FAILED" if bad else "ok" if good == len(rows) else "incomplete"
        lines.append(line(op, dtype, found, place, f"{allowed:.0e}", f"{good} of {len(rows)}", verdict))
    if results["features"]:
        lines += ["", *header("op", "check", "head width", "result", numbers=(2,))]
        names = {"graph": "CUDA graph", "compile": "torch.compile(fullgraph)", "vmap": "vmap over members"}
        for row in results["features"]:
            lines.append(line(row["op"], names[row["name"]], row["width"], said_of(row)))
    failed = failures(results)
    if failed:
        lines += ["", "Failed:", "", *(f"- {one}" for one in failed)]
    return [*lines, ""] if lines else []


def limits_table(results: Results) -> list[str]:
    """What the device can do, measured in the same run."""
    limits = results["limits"]
    lines = ["## The device's limits", "", *header("limit", "measured", numbers=(1,))]
    if "error" in limits:
        lines.append(line("products and memory", limits["error"]))
    else:
        for dtype, rate in limits["flops"].items():
            lines.append(line(f"products in {dtype}", f"{rate / 1e12:.1f} TFLOP/s"))
        lines.append(line("memory, a copy read and written", f"{limits['bandwidth'] / 1e9:,.0f} GB/s"))
    for row in results["floors"]:
        found = row.get("error") or f"{row['forward'] * 1e6:.2f}, with backward {row['both'] * 1e6:.2f} µs"
        lines.append(line(f"a step of one program, {row['op']}, {row['dtype']}", found))
    return [*lines, ""]


def first_table(results: Results) -> list[str]:
    """Seconds of first calls."""
    lines = ["## First call of a shape", "", "Forward and backward, empty Triton cache, a fresh process.", ""]
    names = ("op", "head width", "dtype", "first, s", "second, s", "another batch and length, s")
    lines += header(*names, numbers=(1, 3, 4, 5))
    for row in results["first"]:
        cells = (
            [row["error"], "", ""]
            if "error" in row
            else [f"{row['first']:.2f}", f"{row['second']:.4f}", f"{row['other']:.2f}"]
        )
        lines.append(line(row["op"], row["width"], row["dtype"], *cells))
    return [*lines, ""]


def timings_table(results: Results, section: str, title: str) -> list[str]:
    """Every time that was measured."""
    rows = [row for row in results["timings"] if row["section"] == section and "error" not in row]
    if not rows:
        return []
    lines = [
        f"## {title}",
        "",
        "Milliseconds. Share of the limit and of the floor: see benchmarks/gpu_cases.py; of forward / of forward and "
        "backward.",
        "",
        *header(
            "shape", "side", "forward", "forward + backward", "µs a step", "in a CUDA graph", "of the limit",
            "of the floor", "memory, GiB", numbers=(2, 3, 4, 5, 6, 7, 8),
        ),
    ]  # fmt: skip
    for row in sorted(rows, key=place(rows)):
        graph = row.get("graph_ms")
        lines.append(
            line(
                case_of(row).title,
                f"**{row['side']}**" if row["side"] == OURS else row["side"],
                f"{row['forward_ms']:.3f}",
                f"{row['both_ms']:.3f}",
                f"{row['forward_ms'] * 1e3 / row['steps']:.2f} / {row['both_ms'] * 1e3 / row['steps']:.2f}",
                "" if graph is None else f"{graph:.3f}",
                shares(limit_shares(row, results)),
                shares(floor_shares(row, results)),
                f"{row['peak_gib']:.1f}",
            )
        )
    if any(row["side"].startswith("cuDNN") for row in rows):
        lines += ["", "cuDNN's LSTM does more: one full recurrent matrix, and the products of its inputs."]
    if any(row["side"] == ANOTHER_FUNCTION for row in rows):
        lines += ["", f"{ANOTHER_FUNCTION} (torch's, causal) is another function of q, k and v, for orientation."]
    return [*lines, ""]


def place(rows: list[Row]) -> Any:
    """A key that keeps shapes in the order of their first row, and in a shape the fastest side first."""
    order: dict[Case, int] = {}
    for row in rows:
        order.setdefault(case_of(row), len(order))
    return lambda row: (order[case_of(row)], row["both_ms"])


def limit_shares(row: Row, results: Results) -> tuple[float, float] | None:
    """The limit's share of the measured time, forward, and forward and backward; None where it was not measured."""
    limits = results["limits"]
    if "flops" not in limits or row["op"] not in WORK:
        return None
    forward, both = WORK[row["op"]](case_of(row))
    rate, bandwidth = limits["flops"][row["dtype"]], limits["bandwidth"]
    return (
        forward.limit(rate, bandwidth) / (row["forward_ms"] / 1e3),
        both.limit(rate, bandwidth) / (row["both_ms"] / 1e3),
    )


def floor_shares(row: Row, results: Results) -> tuple[float, float] | None:
    """As `limit_shares`, of the time that as many steps of one small program take."""
    for found in results["floors"]:
        if (found["op"], found["dtype"]) == (row["op"], row["dtype"]) and "error" not in found:
            return (
                found["forward"] * row["steps"] / (row["forward_ms"] / 1e3),
                found["both"] * row["steps"] / (row["both_ms"] / 1e3),
            )
    return None


def shares(found: tuple[float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.0%} / {found[1]:.0%}"


def missing_table(results: Results) -> list[str]:
    """What was not timed, and why: a row for each side and reason."""
    groups: dict[tuple[str, str], list[str]] = {(row["side"], row["error"]): [] for row in results["refused"]}
    for row in results["timings"]:
        for kind, side in (("error", row["side"]), ("graph_error", f"{row['side']}, in a CUDA graph")):
            if kind in row:
                groups.setdefault((side, row[kind]), []).append(case_of(row).title)
    if not groups:
        return []
    lines = ["## Not timed", "", *header("side", "shapes", "reason")]
    for (side, why), titles in groups.items():
        what = "all" if not titles else titles[0] if len(titles) == 1 else f"{len(titles)}, such as {titles[0]}"
        lines.append(line(side, what, why))
    return [*lines, ""]


def targets(results: Results) -> list[str]:
    """Each target and whether it is met. A shape that we cannot run misses its target; one that time did not suffice
    for leaves it open."""
    slstm = [row for row in results["timings"] if row["section"] == "long" and row["op"] == "slstm"]
    search = [row for row in results["timings"] if row["section"] == "search"]
    found = wanted(results)
    found += race(
        "sLSTM, forward + backward, ahead of FlashRNN's best backend at every width", slstm, "FlashRNN", results
    )
    found += race("a search's shapes, forward + backward, ahead of every peer", search, "", results)
    what = "mLSTM at a search's shapes, forward + backward, ahead of every public kernel with right gradients"
    found += race(what, fair(results), "", results)
    for row in slstm:
        most = LONG_MS.get((row["op"], row["heads"], row["width"]))
        if row["side"] == OURS and most is not None:
            ms = row.get("both_ms", float("inf"))
            said = row.get("error") or f"{ms:.2f} ms"
            judged = verdict(ms > most and not open_(row), open_(row))
            found.append(f"{case_of(row).title}, at most {most:g} ms: {judged} ({said}).")
    calls = results["first"]
    if calls:
        slow = [row for row in calls if row.get("first", float("inf")) > FIRST_SECONDS and not open_(row)]
        what = f"first call of a shape, at most {FIRST_SECONDS:g} s"
        found.append(f"{what}: {verdict(bool(slow), any(map(open_, calls)))}.")
        for row in slow:
            said = row.get("error") or f"{row['first']:.1f} s"
            found.append(f"not so: {row['op']}, width {row['width']}, {row['dtype']}: {said}.")
    return found


def race(what: str, rows: list[Row], rival: str, results: Results) -> list[str]:
    """Whether we are ahead, at each of our shapes, of the fastest side whose name begins with `rival`."""
    ours = [row for row in rows if row["side"] == OURS]
    rivals = [row for row in rows if not row["side"].startswith(OURS) and row["side"].startswith(rival)]
    if not ours:
        return []
    behind, ahead, undecided = [], 0, 0
    for row in ours:
        case = case_of(row)
        others = [one for one in rivals if case_of(one) == case]
        best = min((one for one in others if "error" not in one), key=_both, default=None)
        if "error" in row and not open_(row):
            behind.append(f"{case.title}: {row['error']}")
        elif "error" not in row and best is not None and best["both_ms"] <= row["both_ms"]:
            behind.append(f"{case.title}: {row['both_ms']:.2f} ms, {best['side']} {best['both_ms']:.2f} ms")
        elif open_(row) or best is None or any(map(open_, others)):
            undecided += 1
        else:
            ahead += 1
    asked = {row["op"] for row in ours}
    able = {peer.name for peer in PEERS if asked & set(peer.ops) and peer.name.startswith(rival)}
    refused = [row for row in results["refused"] if row["side"] in able - {ANOTHER_FUNCTION}]
    absent = sorted({row["side"] for row in [*rivals, *refused] if "error" in row})
    line = f"{what}: {verdict(bool(behind), bool(undecided))}, ahead at {ahead} of {len(ours)}"
    line += f", with nobody to compare with or no time at {undecided}" if undecided else ""
    line += f"; not running at every shape: {', '.join(absent)}" if absent else ""
    return [f"{line}.", *(f"not so: {one}." for one in behind)]


def _both(row: Row) -> float:
    return float(row["both_ms"])
