"""The searched space: `space:` of the search file, checked before anything starts.

A setting with a condition (`when`) exists only where every key it names exists and has one of the given values.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xlstm_tune.errors import SpecError
from xlstm_tune.search.sampling.domains import Domain, setting
from xlstm_tune.search.sampling.population import check_population
from xlstm_tune.spec import SEARCHABLE, Dimension, Scalar, SearchSpec
from xlstm_tune.strict import counted, did_you_mean
from xlstm_tune.training.config import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Params = dict[str, Scalar]
"""A point of the space: the keys that exist there, and their values."""

_Need = tuple[tuple[Scalar, ...], str]
"""The values of one setting with which another can exist, and whose condition left no more of them."""

COUNT_LIMIT = 10_000
"""Larger spaces are not enumerated: this many points take a second at worst."""
GRID_LIMIT = 200_000
"""Points of the largest grid."""
SAMPLES = 200
"""Points tried when a space is too large to try them all."""


@dataclass(frozen=True)
class Grid:
    """Every distinct point of a finite space, in the order of the search file."""

    points: list[Params]
    keys: list[str]
    """Of each point's configuration (TrialConfig.key)."""
    size: int
    """The plain product of the listed values, repeats included."""
    duplicates: int
    """Points of the product that are the same experiment as an earlier one."""


class Space:
    """The searched settings, parents before children. Build it with `from_spec`."""

    def __init__(self, spec: SearchSpec, domains: tuple[Domain, ...], notes: tuple[str, ...] = ()) -> None:
        self.domains = domains
        self.notes = notes
        """What the user should know, one sentence each."""
        self._spec = spec

    @classmethod
    def from_spec(cls, spec: SearchSpec) -> Space:
        """Check the sections `space:` and `population:` and order the former. Raises SpecError with one sentence."""
        for key in spec.space:
            if key not in SEARCHABLE:
                raise SpecError(f"'space.{key}' is not a setting that can be searched; {did_you_mean(key, SEARCHABLE)}")
        plain = {key: Domain.from_dimension(key, dimension) for key, dimension in spec.space.items()}
        conditions = {key: _conditions(key, dimension, plain) for key, dimension in spec.space.items()}
        domains: dict[str, Domain] = {}
        needs: dict[str, dict[str, _Need]] = {}
        notes: list[str] = []
        for key in _parents_first(spec, conditions):
            never = _never_met(spec, conditions[key], domains)
            if not never:
                needs[key], never = _all_needs(key, conditions[key], needs)
            if never:
                notes.append(f"'space.{key}' is never searched, because {never}")
                continue
            searched = {other: values for other, values in conditions[key].items() if other in domains}
            domains[key] = replace(plain[key], when=searched)
        check_population(spec, domains)
        space = cls(spec, tuple(domains.values()), tuple(notes))
        space._check_combinations()
        space.starts()
        return space

    def suggest(self, trial: BaseTrial) -> Params:
        """A point proposed by Optuna."""
        return self.point(lambda domain: domain.suggest(trial))

    def draw(self, rng: random.Random) -> Params:
        """A random point, without Optuna."""
        return self.point(lambda domain: domain.draw(rng))

    def point(self, value_of: Callable[[Domain], Scalar]) -> Params:
        """The point with these values, which are asked for in order, of the settings that exist beside those before."""
        params: Params = {}
        for domain in self.domains:
            if domain.exists(params):
                params[domain.key] = value_of(domain)
        return params

    def canonical(self, params: Mapping[str, Any]) -> Params:
        """The same point as read back from a storage: one spelling per value, keys outside the space left out."""
        return {d.key: d.canonical(params[d.key]) for d in self.domains if d.key in params}

    def starts(self) -> list[Params]:
        """The (partial) points to try first, as `search.start_with` says; what they leave open is sampled.

        Raises SpecError for a point that lies outside the space.
        """
        wanted = self._spec.search.start_with
        if wanted == "none" or (wanted == "defaults" and self._spec.search.algorithm == "grid"):
            return []  # a grid's order is the file's
        if wanted == "defaults":
            family = next((d for d in self.domains if d.key == "model.family"), None)
            families = (family.values or ()) if family else (self._spec.model.family,)
            # The search file's own values may be no model where the space has others.
            points = [point for name in families if not self._refusal(point := self.defaults(str(name)))]
        else:
            points = [self._start(number, point) for number, point in enumerate(wanted)]
            for number, point in enumerate(points):
                if refusal := self._refusal(point):
                    raise SpecError(f"search.start_with[{number}] is no model: {refusal}")
        return [point for index, point in enumerate(points) if point not in points[:index]]

    def defaults(self, family: str) -> Params:
        """The search file's fixed values for one family, where they lie in the space."""
        values: Params = {}
        for domain in self.domains:
            value = family if domain.key == "model.family" else self._spec.fixed(domain.key)
            if value is not None and domain.contains(value):
                values[domain.key] = domain.canonical(value)
        return self._existing(values)

    def _refusal(self, point: Params) -> str:
        """Why a point that leaves nothing open is no model; empty for one that is, or whose rest will be sampled."""
        if all(domain.key in point for domain in self.domains if domain.exists(point)):
            try:
                self._spec.resolve(point)
            except SpecError as error:
                return str(error)
        return ""

    def grid(self) -> Grid:
        """All distinct points. Raises SpecError for continuous ranges and for more than 200,000 points."""
        return self._grid

    @cached_property
    def _grid(self) -> Grid:
        product = self._product({domain.key: domain.grid_values for domain in self.domains})
        listed: list[Params] = list(itertools.islice(product, GRID_LIMIT + 1))
        if len(listed) > GRID_LIMIT:
            raise SpecError(
                f"the grid of 'space' has more than {GRID_LIMIT:,} points; list fewer values, or use "
                "search.algorithm: random with a number of trials"
            )
        distinct = self._distinct(listed)
        return Grid(list(distinct.values()), list(distinct), len(listed), len(listed) - len(distinct))

    @cached_property
    def points(self) -> dict[str, Params] | None:
        """Every distinct point by its configuration's key; None when there are infinitely or too many.

        Raises SpecError when a point is not a model.
        """
        values = {domain.key: choices for domain in self.domains if (choices := domain.values) is not None}
        if len(values) < len(self.domains):
            return None
        listed: list[Params] = list(itertools.islice(self._product(values), COUNT_LIMIT + 1))
        return self._distinct(listed) if len(listed) <= COUNT_LIMIT else None

    def examples(self) -> list[Params]:
        """Every distinct point where they can be listed, else some at random, always the same."""
        if self._spec.search.algorithm == "grid":
            return self.grid().points
        if self.points is not None:
            return list(self.points.values())
        rng = random.Random(0)
        return [self.draw(rng) for _ in range(SAMPLES)]

    def count(self) -> int | None:
        """How many distinct configurations there are; None when there are infinitely many or more than 10,000."""
        return None if self.points is None else len(self.points)

    def describe(self) -> str:
        """The size in words: `160 distinct configurations`."""
        count = self.count()
        if count is not None:
            return counted(count, "distinct configuration")
        if any(domain.continuous for domain in self.domains):
            return "infinitely many configurations"
        return f"more than {COUNT_LIMIT:,} configurations"

    def _product(self, values: Mapping[str, Sequence[Scalar]]) -> Iterator[Params]:
        """Every combination, the first key varying slowest; settings whose condition fails are left out."""

        def extend(index: int, params: Params) -> Iterator[Params]:
            if index == len(self.domains):
                yield params
                return
            domain = self.domains[index]
            if not domain.exists(params):
                yield from extend(index + 1, params)
                return
            for value in values[domain.key]:
                yield from extend(index + 1, {**params, domain.key: value})

        return extend(0, {})

    def _check_combinations(self) -> None:
        """Every combination must be a model: a trial that cannot be built would only cost its turn."""
        if self._spec.search.algorithm == "grid":
            self.grid()
        elif self.points is None:  # enumerating has checked them all otherwise
            rng = random.Random(0)
            self._distinct([self.draw(rng) for _ in range(SAMPLES)], "tried at random ")

    def _distinct(self, points: Sequence[Params], how: str = "") -> dict[str, Params]:
        """The first point of each distinct configuration, by its key. Raises SpecError when some are not models.

        Each section (model, training, data) is parsed once per distinct content, then only whether they fit each other
        is looked at: a large grid is checked in a fraction of a second.
        """
        sections: dict[tuple[Any, ...], TrialConfig] = {}

        def section(name: str, params: Params) -> TrialConfig:
            part = {key: value for key, value in params.items() if key.startswith(name)}
            identity = (name, *part.items())
            if identity not in sections:
                sections[identity] = self._spec.combine(part)
            return sections[identity]

        distinct: dict[str, Params] = {}
        refused: list[tuple[Params, SpecError]] = []
        for params in points:
            try:
                model, training, data = (section(name, params) for name in ("model.", "training.", "data."))
                config = TrialConfig(model.model, training.training, data.lookback)
                self._spec.check(config)
            except SpecError as error:
                refused.append((params, error))
                continue
            distinct.setdefault(config.key(), params)
        if refused:
            worst, reason = refused[0]
            if len(refused) == len(points) and not any(key in str(reason) for key in worst):
                raise reason  # of the values that are fixed
            named = ", ".join(f"{key}={value}" for key, value in worst.items())
            raise SpecError(
                f"{len(refused):,} of {len(points):,} combinations {how}in 'space' are no model, such as {named} "
                f"({reason}); "
                "leave them out with 'when', or choose other values"
            )
        return distinct

    def _start(self, number: int, point: Mapping[str, Scalar]) -> Params:
        """One explicit start point, checked."""
        params: Params = {}
        by_key = {domain.key: domain for domain in self.domains}
        for key, value in point.items():
            where = f"search.start_with[{number}].{key}"
            if key not in SEARCHABLE:
                raise SpecError(f"'{where}' is not a setting; {did_you_mean(key, by_key or SEARCHABLE)}")
            value = setting(key, value, where)
            if key in by_key:
                if not by_key[key].contains(value):
                    raise SpecError(f"'{where}' must lie in 'space.{key}', got {value!r}; change one of the two")
                params[key] = by_key[key].canonical(value)
            elif key not in self._spec.space and value != self._spec.fixed(key):
                raise SpecError(
                    f"'{where}' must be a searched setting or keep its fixed value {self._spec.fixed(key)!r}, "
                    f"got {value!r}; add '{key}' to 'space'"
                )
        return self._existing(params)

    def _existing(self, params: Params) -> Params:
        """Without the settings whose condition the given values rule out; what is left open may still meet it."""
        kept: Params = {}
        ruled_out: set[str] = set()
        for domain in self.domains:
            met = all(
                other not in ruled_out and (other not in kept or kept[other] in values)
                for other, values in domain.when.items()
            )
            if not met:
                ruled_out.add(domain.key)
            elif domain.key in params:
                kept[domain.key] = params[domain.key]
        return kept


def _conditions(key: str, dimension: Dimension, domains: Mapping[str, Domain]) -> dict[str, tuple[Scalar, ...]]:
    """The `when` of one line, values in their settings' types. Raises SpecError when it can never be met."""
    conditions: dict[str, tuple[Scalar, ...]] = {}
    for other, wanted in dimension.when.items():
        where = f"space.{key}.when.{other}"
        if other not in SEARCHABLE:
            raise SpecError(f"'{where}' is a condition on an unknown setting; {did_you_mean(other, SEARCHABLE)}")
        listed = wanted if isinstance(wanted, list) else [wanted]
        if not listed:
            raise SpecError(f"'{where}' lists no value, so 'space.{key}' could never be searched; give at least one")
        values = tuple(setting(other, value, where) for value in listed)
        for value in values:
            if other in domains and not domains[other].contains(value):
                raise SpecError(f"'{where}' asks for {value!r}, which 'space.{other}' never takes; name its values")
        conditions[other] = values
    return conditions


def _parents_first(spec: SearchSpec, conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The keys in the order of the file, but each after those it depends on. Raises SpecError for a circle."""
    ordered: list[str] = []

    def visit(key: str, path: tuple[str, ...]) -> None:
        if key in path:
            circle = " → ".join((*path[path.index(key) :], key))
            raise SpecError(f"the conditions in 'space' run in a circle ({circle}); take out one 'when' of them")
        if key in ordered:
            return
        for other in conditions[key]:
            if other in spec.space:
                visit(other, (*path, key))
        ordered.append(key)

    for key in spec.space:
        visit(key, ())
    return ordered


def _never_met(spec: SearchSpec, conditions: Mapping[str, tuple[Scalar, ...]], searched: Mapping[str, Domain]) -> str:
    """Why a condition on settings that are not searched fails for good; empty when it does not."""
    for other, values in conditions.items():
        if other in searched:
            continue
        if other in spec.space:
            return f"'{other}' is never searched either"
        if (fixed := spec.fixed(other)) not in values:
            return f"{other} is fixed at {fixed!r}"
    return ""


def _all_needs(
    key: str, conditions: Mapping[str, tuple[Scalar, ...]], known: Mapping[str, Mapping[str, _Need]]
) -> tuple[dict[str, _Need], str]:
    """What must hold of each other setting where `key` exists, and why that can never be; the latter empty if it can.

    A setting hangs on all that those in its own conditions hang on. known: the needs of those, where they are searched.
    """
    needs: dict[str, _Need] = {}
    own = {other: (values, key) for other, values in conditions.items()}
    for asked in (own, *(known[other] for other in conditions if other in known)):
        for other, (values, whose) in asked.items():
            before, first = needs.get(other, (values, whose))
            both = tuple(value for value in before if value in values)
            if not both:
                return needs, f"{_needs(first, other, before)} and {_needs(whose, other, values)}"
            needs[other] = (both, first if len(both) == len(before) else whose)
    return needs, ""


def _needs(key: str, other: str, values: tuple[Scalar, ...]) -> str:
    return f"'{key}' needs {other} to be {' or '.join(repr(value) for value in values)}"
