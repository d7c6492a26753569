"""`--dry-run`: what a search would do, in numbers, without training anything."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from xlstm_tune.data.cut import PARTS
from xlstm_tune.data.periods import ordered_values
from xlstm_tune.data.words import count, listing
from xlstm_tune.models.baselines import JUDGED
from xlstm_tune.models.drawn import drawn
from xlstm_tune.models.forecaster import count_parameters
from xlstm_tune.report.differences import compare_pairs
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.predictions import Model, facts, of_squares
from xlstm_tune.report.resampling import FEWEST
from xlstm_tune.search.finals.finalists import TEST, actual, sample_labels
from xlstm_tune.search.placement.packing import largest_configs
from xlstm_tune.search.placement.resources import memory_mib
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.record import data_facts
from xlstm_tune.search.sampling.extremes import furthest
from xlstm_tune.search.sampling.population import describe_population, trial_members
from xlstm_tune.spec import PopulationConfig
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import shape_of
from xlstm_tune.training.memory import estimate_trial, kept_weights, rough_size
from xlstm_tune.training.metrics import score_units
from xlstm_tune.training.micro import out_of_memory

EXAMPLES = 20
"""Points of a space that are looked at for the members of their populations."""


def print_plan(plan: Plan, console: Console) -> None:
    """Shapes, split sizes, distinct configurations, parameter counts, memory."""
    spec = plan.spec
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(style="bold")
    ends = _ends(plan)
    for title, text in [*data_lines(plan), *space_lines(plan), *model_lines(plan, ends)]:
        grid.add_row(title, escape(text))
    where = plan.placement.describe() if plan.placement else f"decided by the cluster at {plan.address}"
    grid.add_row("placement", where)
    if plan.placement and plan.placement.width > 1:
        grid.add_row("together", f"up to {plan.placement.width} configurations of one shape in a trial (search.fuse)")
    if plan.placement and plan.placement.why:
        grid.add_row("GPUs", escape(plan.placement.why))
    elif plan.address and plan.spec.resources.gpus_per_trial == "auto":
        grid.add_row("GPUs", "shared by as many trials as their memory holds, which the cluster tells at the start")
    grid.add_row("results", escape(str(plan.folder)))
    console.print(f"\n[bold]{spec.name}[/]: {spec.data.task}, nothing is trained", highlight=False)
    console.print(grid, highlight=False)
    console.print(_baselines(plan), highlight=False)
    for note in (*plan.notes, *_out_of_reach(plan, _parameters(plan, ends[0])), *too_little(plan)):
        console.print(f"note: {note}", highlight=False, markup=False)


def data_lines(plan: Plan) -> list[tuple[str, str]]:
    """The table, its split, and the shapes that a model sees."""
    data, table = plan.data, plan.table
    counts = ", ".join(f"{part} {len(samples):,}" for part, samples in data.parts.items())
    unit = "windows" if data.task == "forecast" else "sequences"
    series = f"{len(table.keys):,} {'series' if data.task == 'forecast' else 'sequences'}"
    return [
        ("table", f"{len(table.values):,} rows, {series}, {data.features.shape[1]} input columns"),
        ("target", ", ".join(data.target_names)),
        ("input", f"[batch, {data.lookback} steps, {data.features.shape[1]} features]"),
        *([("static", listing(data.static_names, "input"))] if data.static_names else []),
        (
            "output",
            f"[batch, {data.horizon} step{'s' if data.horizon > 1 else ''}, {len(data.target_names)} target(s)]",
        ),
        (unit, counts),
        *_parts(plan),
    ]


def _parts(plan: Plan) -> list[tuple[str, str]]:
    """Where the parts begin, by the time of what is forecast or of the sequences, or by what orders these; nothing
    where no time divides."""
    split = plan.spec.data.split
    if "time" not in split.by or (plan.table.time_kind == "order" and split.order is None):
        return []
    train, validation, test = (_span(plan, part) for part in PARTS)
    return [("parts", f"train {train[0]} … {train[1]}, validation from {validation[0]}, test from {test[0]}")]


def _span(plan: Plan, part: str) -> tuple[str, str]:
    """Earliest and latest time that a part's windows forecast, or of the rows of its sequences, or the lowest and
    highest value of `data.split.order`, as the user wrote."""
    data, table = plan.data, plan.table
    samples = data.parts[part]
    if (order := plan.spec.data.split.order) is not None:
        sequences = np.searchsorted(table.offsets, data.starts[samples], side="right") - 1
        values, column = ordered_values(table, order)[0][sequences], table.key_names.index(order)
        return table.keys[sequences[values.argmin()]][column], table.keys[sequences[values.argmax()]][column]
    first, last = data.starts[samples], data.ends[samples] - 1
    if data.task == "forecast":
        first, last = data.ends[samples], data.ends[samples] + data.horizon - 1
    earliest, latest = first[np.argmin(table.time[first])], last[np.argmax(table.time[last])]
    return table.time_label(int(earliest)), table.time_label(int(latest))


def space_lines(plan: Plan) -> list[tuple[str, str]]:
    """How many configurations there are and how many will be trained."""
    search = plan.spec.search
    lines = [("grid" if search.algorithm == "grid" else "space", plan.size())]
    scheduler = "all epochs each" if search.scheduler == "none" else search.scheduler
    trials = f"{count(plan.trials, 'trial')} of {count(plan.spec.max_epochs(), 'epoch')}"
    lines.append(("search", f"{search.algorithm}, {trials}, {scheduler}"))
    if plan.spec.population:
        lines.append(("population", _population(plan, plan.spec.population)))
    return lines


def _population(plan: Plan, population: PopulationConfig) -> str:
    examples = plan.space.examples()
    points = (examples[place] for place in drawn(len(examples), EXAMPLES))
    return describe_population(population, {len(trial_members(plan.spec, plan.spec.combine(one))) for one in points})


def model_lines(plan: Plan, ends: tuple[TrialConfig, TrialConfig]) -> list[tuple[str, str]]:
    """Parameters of the smallest and largest model; memory that training takes. ends: of `_ends`."""
    least, most = ends
    counts = [f"{_parameters(plan, config):,} ({config.title()})" for config in ends]
    return [
        ("parameters", counts[1] if least == most else " to ".join(counts)),
        ("memory", _memory(plan)),
    ]


def _parameters(plan: Plan, config: TrialConfig) -> int:
    return count_parameters(config.model, shape_of(plan.data, config))


def _ends(plan: Plan) -> tuple[TrialConfig, TrialConfig]:
    """The configurations with the fewest and the most parameters."""

    def found(sign: int) -> TrialConfig:
        points = furthest(plan.spec, plan.space, lambda config: sign * _parameters(plan, config))
        return max(map(plan.spec.resolve, points), key=lambda config: sign * _parameters(plan, config))

    return found(-1), found(1)


def _out_of_reach(plan: Plan, least: int) -> list[str]:
    """A note where no model looked at is within the limits of size. least: parameters of the smallest."""
    limits = plan.spec.search.constraints
    if limits.max_parameters is not None and least > limits.max_parameters:
        why = f"max_parameters is {limits.max_parameters:,}, and the smallest model has {least:,} parameters"
    elif limits.max_memory_gib is not None and (gib := _least_gib(plan)) > limits.max_memory_gib:
        why = f"max_memory_gib is {limits.max_memory_gib:g}, and what seems to take least {gib:.3g} GiB by an estimate"
    else:
        return []
    return [f"search.constraints.{why}: no trial would be trained; raise the limit, or search smaller models"]


def _least_gib(plan: Plan) -> float:
    """To train what seems to take least; of each family the one that the formula says so of is measured."""

    def size(config: TrialConfig) -> float:
        return rough_size(config, plan.data) + kept_weights(config, plan.data)

    found = [plan.spec.resolve(point) for point in furthest(plan.spec, plan.space, lambda config: -size(config))]
    small = [config for config in found if size(config) * 4 / 2**20 <= memory_mib() / 4]  # enough to be measured here
    try:
        mib = min((estimate_trial(config, plan.data).total_mib for config in small), default=None)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        mib = None
    return (min(map(size, found)) * 4 / 2**20 if mib is None else mib) / 1024


def too_little(plan: Plan) -> list[str]:
    """Why the test part can hardly tell two models apart, shown by the baselines."""
    truth = actual(plan.table, plan.data, TEST)
    known = {
        Model(one.name, None, None): np.square(one.predictions[TEST] - truth).mean((1, 2))
        for one in plan.baselines
        if np.isfinite(one.predictions[TEST]).all()
    }
    kept = {model: squares for model, squares in known.items() if model.name not in ("mean", "last_value")}
    if len(kept) < 2:
        kept = known
    if len(kept) < 2:
        return []
    series, time = zip(*sample_labels(plan.table, plan.data, TEST), strict=True)
    judged = of_squares(TEST, series, time, kept, plan.data.horizon)
    seen = facts(data_facts(plan))
    pairs = compare_pairs(judged, list(combinations(kept, 2)), seen).differences
    most = max(pairs, key=lambda one: one.blocks)
    if most.blocks >= FEWEST and not most.beyond:
        return []
    why = " ".join(compare_pairs(judged, [(most.a, most.b)], seen).notes).rstrip(".")
    return [
        f"models can hardly be told apart on the test part; of the baselines, {most.a.name} and {most.b.name} come "
        f"nearest to it: {why}"
    ]


def _memory(plan: Plan) -> str:
    """What training the configuration takes that seems to take most, where this machine has room to find out."""
    most, *others = largest_configs(plan.spec, plan.space, plan.data)
    if (weights := _parameters(plan, most) * 4 / 2**20) > memory_mib() / 4:
        return f"not measured: the weights alone of the largest take {weights:,.0f} MiB, too much for this machine"
    if (rough := rough_size(most, plan.data) * 4 / 2**20) > memory_mib() / 4:
        return f"roughly {rough:,.0f} MiB to train what takes most ({most.title()}), too much to measure it here"
    try:
        room = memory_mib() / 4  # of other families weights alone may be too much
        small = [one for one in others if _parameters(plan, one) * 4 / 2**20 <= room]
        estimates = [(estimate_trial(one, plan.data), one) for one in (most, *small)]
        memory, most = max(estimates, key=lambda one: one[0].total_mib)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return f"not measured: a few steps of what takes most ({most.title()}) are too much for this process"
    of_one = ", one member" if plan.spec.population else ""
    return (
        f"about {memory.total_mib:,.0f} MiB to train what takes most ({most.title()}{of_one}): "
        f"{memory.activations_mib:,.0f} activations, "
        f"{memory.weights_mib + memory.gradients_mib + memory.optimiser_mib:,.0f} weights, gradients, optimiser"
    )


def _baselines(plan: Plan) -> Grid:
    """What a model has to beat."""
    table = Grid(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("to beat")
    for part in JUDGED:
        table.add_column(f"{part} RMSE", justify="right")
    for baseline in plan.baselines:
        figures = (
            score_units(baseline.predictions[part], actual(plan.table, plan.data, part), plan.data.target_std)["rmse"]
            for part in JUDGED
        )
        table.add_row(baseline.name, *(number(figure) for figure in figures))
    if plan.best_possible:
        table.add_row("best possible (the true mean)", *(number(plan.best_possible[part]) for part in JUDGED))
    return table
