"""What a search's driver costs at 512 GPUs and 10,000 trials, and what Ray's OptunaSearch costs beside it.

    python benchmarks/scale.py --write                  all parts
    python benchmarks/scale.py --keep FOLDER --write    goes on with the parts that FOLDER holds from an earlier start

512 worker processes do not fit on a small machine, so this is partly simulated.

Simulated: the workers, their epochs (a minute each on average, half as long to one and a half times as long by
configuration), their errors and the clock (scale_driver.py). ASHA stops trials, of at most ten epochs.

Real, for xlstm_tune: everything that a driver does for a trial and a result, called in the order in which Tune's
controller calls it, with every file written: searcher with TPE and its study on the disk, referee and ASHA, journal,
Parquet tables, MLflow's spool, progress. For stock: OptunaSearch with its defaults (TPE, a study in memory) and Ray's
ASHA. Stock's loggers, and with them everything that would remain of a search, are left out, which favours it.

Real too: Ray's controller (scale_ray.py) in a run with few workers that answer at once. Subtracting a run of one epoch
a trial from one of ten tells a trial's cost from a result's. Both are added to the driver's own in the utilisation.
With --ray-once the second run is left out, and what a trial of one epoch costs is counted for every result: too much.

Costs are processor time of the driver's process, since others use the machine, and what it waits for the disk in fsync:
once in a suggestion, once at a trial's end. A busy machine lengthens both.

Utilisation: the recorded trials (epochs and pace of each) are played again on the simulated slots. A slot waits after
each epoch until the serial driver has handled its result, and after each trial until it has its next one: the dearest
median suggestion and the means of everything else, ours and Ray's. It is told until the last trial is given out, for
then slots have nothing to do whatever the driver does. How long messages and processes take to start is not in it.

Exit code 1 when the utilisation at epochs of a minute is below 95 %.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from machine import describe, write_results

TARGET = 0.95
ACTORS = 4
EPOCH_SECONDS = (10.0, 30.0, 60.0, 300.0)
HERE = Path(__file__).resolve().parent
SIDES = ("xlstm_tune", "stock")


class Parts:
    """Programs and what they printed, kept in a folder: what is there is not measured again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, program: str, *arguments: object, gpu: bool = False) -> list[Any]:
        """The JSON lines that the program prints."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            kept = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
            environment = kept | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
            if not gpu:
                environment["CUDA_VISIBLE_DEVICES"] = ""
            with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
                words = [scratch if word is Path else str(word) for word in arguments]
                command = [sys.executable, str(HERE / program), *words]
                found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            path.write_text(found.stdout)
        return [json.loads(line) for line in path.read_text().splitlines() if line.startswith(("{", "["))]


def ray_costs(one: list[dict[str, float]], many: list[dict[str, float]], epochs: int) -> tuple[float, float]:
    """Milliseconds of Ray's own for a trial and for a result, from runs of one epoch a trial and of many."""
    once, often = ray_share(one[0], one[-1]), ray_share(many[0], many[-1])
    result = max(0.0, (often - once) / (epochs - 1))
    return once - result, result


def ray_share(first: dict[str, float], last: dict[str, float]) -> float:
    """Milliseconds of the driver's thread for one trial between two marks, ours left out."""
    seconds = (last["thread"] - first["thread"]) - (last["ours"] - first["ours"])
    return 1000 * seconds / (last["trials"] - first["trials"])


def utilisation(
    epochs: list[int], paces: list[float], slots: int, seconds: float, trial: float, result: float
) -> float:
    """Share of the slots' time in which they train, until the last trial is given out.

    trial, result: milliseconds of the driver for each.
    """
    trial, result, now, busy = trial / 1000, result / 1000, 0.0, 0.0
    waiting = list(range(len(epochs)))[::-1]
    events: list[tuple[float, int, int]] = []

    def give() -> None:
        nonlocal now
        if waiting:
            now += trial
            index = waiting.pop()
            heapq.heappush(events, (now + seconds * paces[index], index, 1))

    for _ in range(slots):
        give()
    while waiting:
        when, index, epoch = heapq.heappop(events)
        busy += seconds * paces[index]
        now = max(now, when) + result
        if epoch < epochs[index]:
            heapq.heappush(events, (now + seconds * paces[index], index, epoch + 1))
        else:
            give()
    busy += sum(max(0.0, seconds * paces[index] - (when - now)) for when, index, _ in events)
    return busy / (slots * now)


def driver_lines(reports: dict[str, dict[str, Any]], ray: tuple[float, float]) -> list[str]:
    """The main table."""
    lines = [
        "| trials | side | suggestion p50, ms | p99, ms | a result, ms | start and end of a trial, ms "
        "| fsync a trial, ms | results/s, driver alone | results/s, with Ray's controller | memory, MiB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for place in range(len(reports[SIDES[0]]["moments"])):
        for side, report in reports.items():
            moment = report["moments"][place]
            each = moment["results"] / moment["trials"]
            own = moment["suggest_p50_ms"] + moment["rest_ms"] + each * moment["result_ms"]
            with_ray = own + ray[0] + each * ray[1]
            lines.append(
                f"| {moment['trials']:,} | {side} | {moment['suggest_p50_ms']:.0f} | {moment['suggest_p99_ms']:.0f} | "
                f"{moment['result_ms']:.2f} | {moment['rest_ms']:.1f} | "
                f"{1000 * moment['waited'] / moment['trials']:.1f} | "
                f"{1000 * each / own:.1f} | {1000 * each / with_ray:.1f} | {moment['rss_mib']:.0f} |"
            )
    return lines


def quality_lines(found: list[dict[str, Any]]) -> list[str]:
    """Regret with the whole history and with a thinned one, over seeds."""
    about = found[0]
    lines = [
        f"| trials | whole history | thinned to {about['most']} | thinned less whole, ± standard error | random |",
        "|--:|--:|--:|--:|--:|",
    ]
    for share in (25, 50, 75, 100):
        table = {name: np.array([one[name]["regrets"][share - 1] for one in found]) for name in QUALITY}
        gap = table["thinned"] - table["whole"]
        error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else float("nan")
        lines.append(
            f"| {about['trials'] * share // 100:,} | {table['whole'].mean():.5f} | {table['thinned'].mean():.5f} | "
            f"{gap.mean():+.5f} ± {error:.5f} | {table['random'].mean():.5f} |"
        )
    cpu = {name: np.mean([one[name]["cpu"] for one in found]) for name in QUALITY}
    lines.append("")
    lines.append(
        f"{len(found)} seeds. Processor seconds of a run: {cpu['whole']:.0f} with the whole history, "
        f"{cpu['thinned']:.0f} thinned."
    )
    return lines


QUALITY = ("whole", "thinned", "random")


def main(
    trials: Annotated[int, typer.Option(min=1000, help="Of each side.")] = 10_000,
    slots: Annotated[int, typer.Option(min=1, help="Simulated GPUs.")] = 512,
    window: Annotated[
        int, typer.Option(min=0, help="Suggestions of the sampler at each moment, others being random; 0 = all.")
    ] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Of the comparison of histories.")] = 8,
    ray_once: Annotated[bool, typer.Option("--ray-once", help="One run of Ray instead of two.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Where parts are kept.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the tables to results/scale.md.")] = False,
) -> None:
    """Measure the parts that are missing, and print the tables."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="scale-parts-") as scratch:
        parts = Parts(keep or Path(scratch))
        (one,) = parts.get("ray-1", "scale_ray.py", 200, 1, ACTORS, Path, gpu=True)
        many = None if ray_once else parts.get("ray-10", "scale_ray.py", 60, 10, ACTORS, Path, gpu=True)[0]
        reports = {side: parts.get(side, "scale_driver.py", side, trials, slots, window, Path)[-1] for side in SIDES}
        suggestions = parts.get("suggest", "scale_suggest.py", slots, 8)
        quality = [
            parts.get(f"quality-{seed}", "scale_quality.py", 1000, seed, 250, 50)[0] for seed in range(1, seeds + 1)
        ]
    ray = ray_costs(one, many, 10) if many else (0.0, ray_share(one[0], one[-1]))
    began = {side: report["began_rss_mib"] for side, report in reports.items()}
    each = {side: 1024 * (report["moments"][-1]["rss_mib"] - began[side]) / trials for side, report in reports.items()}
    with_ray = 1024 * (one[-1]["rss_mib"] - one[0]["rss_mib"]) / (one[-1]["trials"] - one[0]["trials"])
    growth = ", ".join(
        f"{ray_share(a, b):.1f} ms from trial {a['trials']:,.0f} to {b['trials']:,.0f}"
        for a, b in itertools.pairwise(one)
    )
    lines = [
        describe(("ray", "optuna")) + f". Load average before: {load:.1f}, of which nothing is this program's.",
        "",
        "Simulated are the workers, their epochs and the clock; the driver's objects and files, and the run of Ray's "
        "controller, are real (benchmarks/scale.py says how). "
        + (
            f"The samplers proposed the first 100 trials and the {window} before each moment, whose costs are told; "
            "those between were drawn at random."
            if window
            else ""
        ),
        "",
        f"## The driver, {slots} simulated GPUs",
        "",
        *driver_lines(reports, ray),
        "",
        "Suggestions, starts and ends with their wait for the disk. Results/s: what one driver can take.",
        "",
        f"Memory before the first trial: {began['xlstm_tune']:.0f} MiB (xlstm_tune) and {began['stock']:.0f} MiB "
        f"(stock). A trial adds {each['xlstm_tune']:.1f} and {each['stock']:.1f} KiB, without what Ray keeps of it.",
        "",
        f"A driver that takes the ended search up again (`--resume`) has read its {trials:,} trials and begins the "
        f"next after {reports['xlstm_tune']['resume_seconds']:.0f} s of processor time.",
        "",
        "## Ray's own controller, in a real run",
        "",
        (
            f"{ray[0]:.1f} ms of the driver's thread a trial and {ray[1]:.2f} ms a result"
            if many
            else f"{ray[1]:.1f} ms of the driver's thread for a trial of one epoch, here counted for each result"
        )
        + f", with {ACTORS} workers. For a trial of one epoch: {growth}. Memory with Ray's records: {with_ray:.1f} KiB "
        "a trial.",
        "",
        "## Utilisation of the simulated GPUs",
        "",
        "| mean epoch, s | xlstm_tune | stock |",
        "|--:|--:|--:|",
    ]
    reached = 0.0
    for seconds in EPOCH_SECONDS:
        shares = []
        for report in reports.values():
            moments = report["moments"]
            trial = max(moment["suggest_p50_ms"] for moment in moments) + moments[-1]["rest_ms"] + ray[0]
            result = moments[-1]["result_ms"] + ray[1]
            shares.append(utilisation(report["epochs"], report["paces"], slots, seconds, trial, result))
        lines.append(f"| {seconds:.0f} | {100 * shares[0]:.1f} % | {100 * shares[1]:.1f} % |")
        reached = shares[0] if seconds == 60 else reached
    lines += [
        "",
        f"## A suggestion by what the sampler sees ({slots} trials running)",
        "",
        "| ended trials | whole history, ms | thinned, ms |",
        "|--:|--:|--:|",
        *(f"| {one['ended']:,} | {one['whole_ms']:.0f} | {one['thinned_ms']:.0f} |" for one in suggestions),
        "",
        "## What thinning costs in quality",
        "",
        "Lowest error found, less the lowest possible. The search thins past 1,000 ended trials; here the sampler sees "
        "250 of 1,000, as few as of 4,000 in a search: such a run with the whole history was too long here.",
        "",
        *quality_lines(quality),
    ]
    print(*lines, sep="\n")
    if write:
        print(f"Written to {write_results('scale', lines)}.")
    print(f"Target, 95 % of the slots' time at epochs of a minute: {100 * reached:.1f} %.")
    raise SystemExit(0 if reached >= TARGET else 1)


if __name__ == "__main__":
    typer.run(main)
