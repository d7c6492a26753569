"""The benchmark programs: they run without the packages that they compare with, and the work they count is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


PROGRAMS = ("cpu_step", "search_speed", "accuracy", "overhead", "population", "grid", "chaos", "saving", "serving")
EXPLAIN = f"""
import contextlib, io, json, runpy, sys
sys.path.insert(0, sys.argv[1])
said = {{}}
for program in {PROGRAMS}:
    sys.argv = [f"{{sys.path[0]}}/{{program}}.py", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code
    said[program] = out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def explained() -> dict[str, str]:
    """What each program says of itself: all in one process, which imports torch once."""
    command = [sys.executable, "-c", EXPLAIN, str(BENCHMARKS)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_program_explains_itself(program: str, explained: dict[str, str]) -> None:
    assert f"Usage: {program}.py" in explained[program] and "--help" in explained[program]


@pytest.mark.slow
def test_cpu_step_measures_our_side_without_peers() -> None:
    command = [sys.executable, str(BENCHMARKS / "cpu_step.py"), "--no-peers", "--threads", "1", "--rounds", "1"]
    command += ["--seconds", "0", "--only", "pass: slstm, 32"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (row,) = (line for line in finished.stdout.splitlines() if line.startswith("| pass"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "pass: slstm, 32 × 365 steps × 19 features"
    assert float(cells[2]) > 0 and cells[4] == cells[5] == "–"


@pytest.mark.usefixtures("benchmarks")
def test_work_of_slstm_counts_the_products_of_the_official_stack() -> None:
    pytest.importorskip("xlstm")
    from peer_steps import Pass
    from work import work
    from worker import Case

    case = Case("pass", "slstm", batch=2, steps=48)
    official = Pass(case)
    with FlopCounterMode(display=False) as counter:
        official.run()
    counted = counter.get_flop_counts()["Global"]
    products = sum(counted[op] for op in (torch.ops.aten.mm, torch.ops.aten.bmm))
    # The state before the first step needs no gradient: one product fewer than counted.
    assert work(case, 0).flops == pytest.approx(products, rel=0.01)


@pytest.mark.usefixtures("benchmarks")
def test_work_of_mlstm_is_that_of_the_official_stack_but_for_its_full_square_and_gates() -> None:
    pytest.importorskip("xlstm")
    from peer_steps import Pass
    from work import work
    from worker import Case

    case = Case("pass", "mlstm", batch=2, steps=48)
    official = Pass(case)
    with FlopCounterMode(display=False) as counter:
        official.run()
    counted = counter.get_flop_counts()["Global"]
    products = sum(counted[op] for op in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm))
    inner, tokens = 128, 2 * 48
    square = 6 * 2 * 48 * inner * tokens * case.blocks  # all pairs of steps, later ones included
    causal = 6 * 49 * inner * tokens * case.blocks
    gates = 6 * 2 * inner * case.heads * tokens * case.blocks  # of q and k apart, which both see the convolved input
    assert work(case, 0).flops == pytest.approx(products - square + causal - gates, rel=0.01)


@pytest.mark.usefixtures("benchmarks")
def test_limit_adds_the_three_kinds_of_work() -> None:
    from work import Work

    rates = {"flops": 2.0, "functions": 5.0, "cached": 10.0, "streamed": 1.0}
    least = Work(4.0, 10.0, 20.0)
    assert least.limit(rates, "cached") == 2 + 2 + 2
    assert least.limit(rates, "streamed") == 2 + 2 + 20


@pytest.mark.usefixtures("benchmarks")
def test_search_speed_cuts_the_same_windows_for_both_sides(tmp_path: Path) -> None:
    import search_speed

    source = tmp_path / "ETTh1.csv"
    rows = search_speed.TRAIN + search_speed.VALIDATION + search_speed.TEST
    source.write_text("date,HUFL,OT\n" + "".join(f"{row},0,{row}\n" for row in range(rows)))
    here, there = search_speed.cut(source, 50, tmp_path)
    ours = [line.split(",")[1] for line in here.read_text().splitlines()[1:]]
    theirs = [line.split(",")[2] for line in there.read_text().splitlines()[1:]]
    assert ours[: -search_speed.TEST] == theirs  # neuralforecast is not given the test part
    train = len(theirs) - search_speed.VALIDATION
    assert train - search_speed.LOOKBACK - search_speed.HORIZON + 1 == 50 * search_speed.WINDOWS
    assert theirs[train] == str(search_speed.TRAIN)
