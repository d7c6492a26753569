"""The members of a population: who they are, and what the trial that holds them scores. Imports no torch.

A population is every combination of the listed values (a setting) with every seed. All its members have weights of one
shape, so that they can be trained in one pass.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xlstm_tune.models.config import ModelConfig
from xlstm_tune.training.config import TrainingConfig, TrialConfig

Scalar = bool | int | float | str

SHAPE_PRESERVING: tuple[str, ...] = (
    "training.learning_rate",
    "training.weight_decay",
    "training.clip",
    "training.seed",
    "training.loss_weight",
    "training.warmup",
    "training.schedule",
    "training.patience",
    "training.epochs",
    "model.dropout",
    "model.forget_bias",
)
"""Keys in which members may differ: they keep the shape of every tensor, and the program that runs."""

WIDTH_CPU = 8
"""Members in a pass on a CPU: more gain nothing (benchmarks/population.py)."""
WIDTH_GPU = 64
"""On a GPU, memory permitting. Not measured yet."""
GAINS_UP_TO = 2**20
"""On a CPU, the numbers of a hidden layer (batch × tokens × hidden size) up to which a pass of several is faster: it
shares what a step costs beside its arithmetic, and larger layers leave the cache. Steps of 8 sLSTM members on one core,
as multiples of 8 alone: 1.7 at 2¹⁵·⁵, 1.2 at 2¹⁷·⁵, 1.1 at 2¹⁹·⁵, 0.9 at 2²⁰·⁵ and above."""
LSTM_GAINS_UP_TO = 2**18
"""The same of an LSTM: 1.9, 1.1, 1.1 and 1.0."""


def width_for(config: TrialConfig, lookback: int, gpu: bool) -> int:
    """How many members like `config` are trained in one pass; 1 = one after another, which is as fast or faster.

    lookback: L of the data, where the config does not say.
    """
    model = config.model
    if model.family == "lstm_torch":
        return 1  # torch's own LSTM knows no vmap
    if gpu:
        return WIDTH_GPU
    layer = config.training.batch_size * model.tokens(config.lookback or lookback) * model.hidden_size
    most = LSTM_GAINS_UP_TO if model.family in ("lstm", "lstm_scratch") else GAINS_UP_TO
    return WIDTH_CPU if layer <= most else 1


@dataclass(frozen=True)
class Member:
    """One training run of a population."""

    index: int
    """Its place among the members of its trial, from 0."""
    group: int
    """Which setting it belongs to, from 0: its members differ in the seed alone."""
    setting: dict[str, Scalar]
    """The values that its setting gives to the population's keys; empty where only seeds differ."""
    seed: int
    config: TrialConfig

    @property
    def title(self) -> str:
        """Short name for people, unlike that of any other member: `learning_rate 0.001 seed 2`."""
        words = [f"{key.rpartition('.')[2]} {value}" for key, value in self.setting.items()]
        return " ".join([*words, f"seed {self.seed}"])


@dataclass(frozen=True)
class Score:
    """What a population scores: its best setting's mean over the seeds."""

    group: int
    members: tuple[int, ...]
    """Of the best setting."""
    winner: int
    """The best of them, whose weights stand for the trial."""
    mean: dict[str, float]
    """Every metric, at each member's best epoch."""
    std_error: float | None
    """Of the objective's mean; None with one seed."""


def members_of(config: TrialConfig, seeds: int, settings: Mapping[str, Sequence[Scalar]]) -> list[Member]:
    """Settings × seeds, the last key varying fastest among settings, and seeds faster than those.

    config: the trial's own configuration; its seed is the first of `seeds` consecutive ones.
    settings: keys of SHAPE_PRESERVING and their values. A combination that makes no difference to this model (the
    dropout of an LSTM of one layer) is the same experiment as an earlier one, and is left out.
    """
    members: list[Member] = []
    seen: set[str] = set()
    for values in itertools.product(*settings.values()):
        configured = _lay_over(config, dict(zip(settings, values, strict=True)))
        if configured.key() in seen:
            continue
        group = len(seen)
        seen.add(configured.key())
        setting = {key: _value(configured, key) for key in settings}
        for step in range(seeds):
            seed = (config.training.seed + step) % 2**63  # the largest seed is followed by 0
            own = _lay_over(configured, {"training.seed": seed})
            members.append(Member(len(members), group, setting, seed, own))
    return members


def score_of(
    members: Sequence[Member],
    best: Sequence[Mapping[str, float] | None],
    failed: Sequence[bool],
    objective: str,
) -> Score | None:
    """The population's score so far; None when no setting has all its seeds.

    best: each member's metrics at its best epoch so far, None before its first. failed: members that are out.
    objective: the metric that decides.
    """
    scores = []
    for group, seeds in itertools.groupby(members, key=lambda member: member.group):
        indices = tuple(member.index for member in seeds)
        found = [figures for index in indices if (figures := best[index]) is not None and not failed[index]]
        if len(found) < len(indices):
            continue
        mean = {name: statistics.fmean(figures[name] for figures in found) for name in found[0]}
        values = [figures[objective] for figures in found]
        winner = indices[values.index(min(values))]
        scores.append(Score(group, indices, winner, mean, standard_error(values)))
    return min(scores, key=lambda score: score.mean[objective], default=None)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of `values`: their sample deviation (ddof 1) over √n; None with fewer than two."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def check_one_shape(configs: Sequence[TrialConfig]) -> None:
    """Raise ValueError unless the members are alike but for what SHAPE_PRESERVING names."""
    first, *others = ({k: v for k, v in config.flat().items() if k not in SHAPE_PRESERVING} for config in configs)
    for other in others:
        for key in first | other:
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"members of a population must not differ in {key}, got {first.get(key)!r} and {other.get(key)!r}"
                )


def _lay_over(config: TrialConfig, setting: Mapping[str, Scalar]) -> TrialConfig:
    """`config` with the values of a setting, in their own types (1 is 1.0 as a learning rate)."""
    model = _below("model.", setting)
    training = config.training.model_dump() | _below("training.", setting)
    return TrialConfig(
        ModelConfig.parse(config.model.model_dump() | model, "model") if model else config.model,
        TrainingConfig.parse(training, "training"),
        config.lookback,
    )


def _below(prefix: str, setting: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {key.removeprefix(prefix): value for key, value in setting.items() if key.startswith(prefix)}


def _value(config: TrialConfig, key: str) -> Scalar:
    section, _, field = key.partition(".")
    value: Scalar = getattr(getattr(config, section), field)
    return value
