"""The points of a space at which something is largest, where there are too many to look at them all."""

from __future__ import annotations

from collections.abc import Callable

from xlstm_tune.errors import SpecError
from xlstm_tune.models.drawn import drawn
from xlstm_tune.search.sampling.domains import Domain
from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.spec import Scalar, SearchSpec
from xlstm_tune.training.config import TrialConfig

SAMPLES = 400
"""Points that are looked at first."""
MOST = 50
"""Values of a choice that are all tried; of longer ones of numbers the least and the largest."""
PASSES = 4
"""Times through all settings: what one of them does may hang on another."""


def furthest(spec: SearchSpec, space: Space, measure: Callable[[TrialConfig], float]) -> list[Params]:
    """For each family the point where `measure` is largest, as far as changing one setting after another finds it.

    That is the largest of all where more of a setting never makes less of what is measured. From the best of
    some points on, each setting takes each of its choices, or the ends of its range, and keeps what measures most.
    """
    best: dict[str, tuple[float, Params]] = {}
    examples = space.examples()
    for point in [examples[place] for place in drawn(len(examples), SAMPLES)]:
        config = spec.combine(point)
        found = measure(config)
        if config.model.family not in best or found > best[config.model.family][0]:
            best[config.model.family] = (found, point)
    return [_climbed(spec, space, measure, *each) for each in best.values()]


def _climbed(
    spec: SearchSpec, space: Space, measure: Callable[[TrialConfig], float], largest: float, point: Params
) -> Params:
    family = spec.combine(point).model.family
    for _ in range(PASSES):
        before = largest
        for domain in space.domains:
            if domain.key not in point or domain.key == "model.family":
                continue
            for value in _ends(domain):
                changed = _with(space, point, domain.key, value)
                try:
                    config = spec.resolve(changed)
                except SpecError:  # no model: other settings have to change before
                    continue
                if config.model.family == family and (found := measure(config)) > largest:
                    largest, point = found, changed
        if largest <= before:
            break
    return point


def _with(space: Space, point: Params, key: str, value: Scalar) -> Params:
    """The point with another value there; what exists beside it only now takes its first value."""
    others = {**point, key: value}
    return space.point(lambda domain: others[domain.key] if domain.key in others else _ends(domain)[0])


def _ends(domain: Domain) -> list[Scalar]:
    if domain.kind != "choice":
        return [domain.canonical(domain.low), domain.canonical(domain.high)]
    values = domain.values or ()
    numbers = [value for value in values if not isinstance(value, str)]
    return [min(numbers), max(numbers)] if len(numbers) > MOST else list(values)
