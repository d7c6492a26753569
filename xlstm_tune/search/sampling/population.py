"""The `population:` section of a search file, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from xlstm_tune.data.words import count
from xlstm_tune.errors import SpecError
from xlstm_tune.search.sampling.domains import Domain, setting
from xlstm_tune.spec import PopulationConfig, Scalar, SearchSpec
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.members import SHAPE_PRESERVING, Member, members_of

MOST_MEMBERS = 1024
"""Of one trial."""
_SHAPES = {
    f"model.{key}"
    for key in (
        "family", "pattern", "layers", "hidden_size", "heads", "bias", "projection", "conv_kernel", "direction", "norm",
        "head_norm", "qkv_block", "proj_factor", "feed_forward", "ff_after", "ff_factor", "patch_length",
        "patch_stride", "channels", "decomposition", "pooling",
    )
}  # fmt: skip
_INPUTS = {"data.lookback", "training.batch_size"}


def check_population(spec: SearchSpec, domains: Mapping[str, Domain]) -> None:
    """Raise SpecError, with one sentence, for a population that could not be trained. domains: what is searched."""
    population = spec.population
    if population is None:
        return
    settings = population.settings
    for key, listed in settings.items():
        _check_values(key, listed, spec)
    for key, dimension in spec.space.items():
        for other in dimension.when:
            if other in settings:
                raise SpecError(
                    f"'space.{key}.when.{other}' is a condition on a setting that the members of a trial differ in; "
                    f"take '{other}' out of 'population' or out of the condition"
                )
    members = population.seeds * math.prod(map(len, settings.values()))
    if members > MOST_MEMBERS:
        raise SpecError(
            f"'population' makes {members:,} members a trial, and at most {MOST_MEMBERS:,} can be trained together; "
            "list fewer values or seeds"
        )
    family = domains.get("model.family")
    if "lstm_torch" in ((family.values or ()) if family else (spec.model.family,)):
        raise SpecError(
            "'population' trains its members as one tensor, and torch's own LSTM (model.family 'lstm_torch') cannot be "
            "vmapped; use 'lstm', which is the same model, or take 'population' out"
        )


def trial_members(spec: SearchSpec, config: TrialConfig) -> list[Member]:
    """The members of a trial; none where the search has no population."""
    if spec.population is None:
        return []
    return members_of(config, spec.population.seeds, spec.population.settings)


def describe_population(population: PopulationConfig, members: Collection[int]) -> str:
    """`9 members a trial: 3 settings × 3 seeds (training.learning_rate 0.0003, 0.001, 0.003)`.

    members: how many trials have; fewer than there are combinations where some make no difference to a model.
    """
    settings = math.prod(map(len, population.settings.values()))
    least, most = min(members), max(members)
    text = f"{count(most, 'member')} a trial: " if least == most else f"{least:,} to {most:,} members a trial: "
    text += f"{count(settings, 'setting')} × {count(population.seeds, 'seed')}"
    if least < settings * population.seeds:
        text += ", without those that make no difference to a model"
    listed = [f"{key} {', '.join(map(str, values))}" for key, values in population.settings.items()]
    return f"{text} ({'; '.join(listed)})" if listed else text


def population_params(population: PopulationConfig | None) -> dict[str, Scalar]:
    """As parameters of an MLflow run: `population.seeds`, `population.training.learning_rate`."""
    if population is None:
        return {}
    listed = {f"population.{key}": ", ".join(map(str, values)) for key, values in population.settings.items()}
    return {"population.seeds": population.seeds, **listed}


def _check_values(key: str, listed: list[Scalar], spec: SearchSpec) -> None:
    """Raise SpecError for a key that members cannot differ in, or values that it refuses."""
    where = f"population.{key}"
    if key == "training.seed":
        raise SpecError(
            f"'{where}' is what 'population.seeds' counts up from training.seed, so that every setting gets the same "
            "seeds; write 'seeds: 3' instead"
        )
    if key not in SHAPE_PRESERVING:
        what = "the shape of the weights" if key in _SHAPES else "what is computed"
        what = "the shape of the inputs" if key in _INPUTS else what
        as_one = "program" if what == "what is computed" else "tensor"
        raise SpecError(
            f"'{where}' changes {what}, and members are trained as one {as_one}; search it in 'space' instead"
        )
    if key in spec.space:
        raise SpecError(
            f"'{key}' stands in 'space' and in 'population'; keep it in 'population' to train its values together in "
            "every trial, or in 'space' to search it"
        )
    if not listed:
        raise SpecError(f"'{where}' has an empty list; give it at least one value, or take the key out")
    values = [setting(key, value, where) for value in listed]
    for index, value in enumerate(values):
        if value in values[:index]:
            raise SpecError(f"'{where}' lists {value!r} twice; members with equal settings would be the same run")
