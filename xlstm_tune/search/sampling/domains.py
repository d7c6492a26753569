"""What one line of `space:` may take: checked against the setting it stands for, and put in that setting's own type."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from xlstm_tune.data.config import DataConfig
from xlstm_tune.errors import SpecError
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.spec import Dimension, Scalar
from xlstm_tune.strict import explain
from xlstm_tune.training.config import TrainingConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

LIST_LIMIT = 200_000
"""Ranges with more values than this are sampled, never listed."""

_OWNERS: dict[str, type[BaseModel]] = {"model": ModelConfig, "training": TrainingConfig, "data": DataConfig}


def setting(key: str, value: Scalar, where: str) -> Scalar:
    """`value` in the type of the setting `key` (1 becomes 1.0 for a float), as the config class would read it.

    where: how the message names the place, such as `space.model.dropout`.
    Raises SpecError when the setting refuses the value by its type or bounds.
    """
    section, _, field = key.partition(".")
    owner = _OWNERS[section]
    info = owner.model_fields[field]
    # The field alone, not the whole config: what other settings rule out is judged per combination, not here.
    kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    adapter: TypeAdapter[Scalar] = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        raise SpecError(explain(error, owner, value, where)) from None


@dataclass(frozen=True)
class Domain:
    """One searched setting: its values, and when it exists at all."""

    key: str
    kind: str
    """choice, float, log_float, int or log_int."""
    listed: tuple[Scalar, ...] = ()
    """A choice's values as written, repeats included."""
    low: float = 0.0
    high: float = 0.0
    """Both ends belong to the range."""
    step: float | None = None
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """Other searched key → the values under which this setting exists."""

    @classmethod
    def from_dimension(cls, key: str, dimension: Dimension) -> Domain:
        """Raises SpecError for an empty choice, an impossible range or step, or values that the setting refuses."""
        where = f"space.{key}"
        if dimension.choice is not None:
            if not dimension.choice:
                raise SpecError(f"'{where}' has an empty choice; list at least one value, or take the key out")
            return cls(key, "choice", tuple(setting(key, value, where) for value in dimension.choice))
        bounds = dimension.float_ or dimension.log_float or dimension.int_ or dimension.log_int
        assert bounds is not None  # Dimension has exactly one kind
        low, high = bounds
        if low >= high:
            raise SpecError(f"'{where}' must have a lower end below its upper end, got {low} and {high}")
        if dimension.kind.startswith("log") and low <= 0:
            raise SpecError(f"'{where}' must begin above 0 on a logarithmic scale, got {low}; begin at 1e-5, say")
        for bound in bounds:
            setting(key, bound, where)
        step = dimension.step
        if dimension.kind == "int":
            if step is not None and step != int(step):
                raise SpecError(f"'{where}' must have a whole number as the step of an int range, got {step}")
            step = 1 if step is None else int(step)
        if step is not None and step <= 0:
            raise SpecError(f"'{where}' must have a step above 0, got {step}")
        if step is not None:
            try:
                count = int((Decimal(str(high)) - Decimal(str(low))) // Decimal(str(step)))
            except InvalidOperation:  # more digits than a decimal has
                raise SpecError(
                    f"'{where}' must have a step that its range holds fewer than 1e28 times, got step {step} from "
                    f"{low} to {high}; leave the step out"
                ) from None
            if not count:
                raise SpecError(f"'{where}' must have a step within its range, got step {step} from {low} to {high}")
            # Optuna would lower the upper end itself, and warn at every trial.
            high = _on_step(low, step, count)
        return cls(key, dimension.kind, low=low, high=high, step=step)

    @property
    def whole(self) -> bool:
        """Whether the values of this range are whole numbers."""
        return self.kind in ("int", "log_int")

    @property
    def continuous(self) -> bool:
        """Whether there are infinitely many values."""
        return self.kind == "log_float" or (self.kind == "float" and self.step is None)

    @property
    def values(self) -> Sequence[Scalar] | None:
        """Every value once, in order; None when there are infinitely many, or more than 200,000."""
        if self.kind == "choice":
            return tuple(dict.fromkeys(self.listed))
        if self.continuous or (self.high - self.low) / (self.step or 1) >= LIST_LIMIT:
            return None
        if self.whole:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        assert self.step is not None
        return tuple(_on_step(self.low, self.step, index) for index in range(self._index(self.high) + 1))

    @property
    def grid_values(self) -> Sequence[Scalar]:
        """The values of a grid, a choice's repeats included. Raises SpecError for a continuous or logarithmic range."""
        if self.kind == "choice":
            return self.listed
        if self.kind == "log_int" or (values := self.values) is None:
            remedy = "give it a step or a choice" if self.kind in ("int", "float") else "give it a choice"
            raise SpecError(
                f"'space.{self.key}' is a {self.kind} range, and a grid needs values that can be listed; "
                f"{remedy}, or use search.algorithm: tpe"
            )
        return values

    def exists(self, params: Mapping[str, Scalar]) -> bool:
        """Whether the point with these values, given for all settings before this one, has this setting too."""
        return all(other in params and params[other] in values for other, values in self.when.items())

    def contains(self, value: Scalar) -> bool:
        """Whether a value (already in the setting's type) can be drawn."""
        if self.kind == "choice":
            return value in self.listed
        if isinstance(value, (bool, str)) or not self.low <= value <= self.high:
            return False
        if self.whole:
            return value == int(value) and (int(value) - int(self.low)) % int(self.step or 1) == 0
        nearest = self.canonical(value)
        return math.isclose(value, float(nearest), rel_tol=1e-9, abs_tol=1e-12)

    def canonical(self, value: Scalar) -> Scalar:
        """One spelling per value: the sampler's 0.30000000000000004 on a step of 0.1 is 0.3."""
        if self.kind == "choice" or isinstance(value, (bool, str)):
            return value
        if self.whole:
            return int(value)
        return float(value) if self.step is None else _on_step(self.low, self.step, self._index(value))

    def suggest(self, trial: BaseTrial) -> Scalar:
        """Ask Optuna for a value; the parameter's name is the key, and its distribution never changes."""
        if self.kind == "choice":
            value: Scalar = trial.suggest_categorical(self.key, tuple(dict.fromkeys(self.listed)))
        elif self.whole:
            low, high, log = int(self.low), int(self.high), self.kind == "log_int"
            value = trial.suggest_int(self.key, low, high, step=int(self.step or 1), log=log)
        else:
            log = self.kind == "log_float"
            value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=log)
        return self.canonical(value)

    def draw(self, rng: random.Random) -> Scalar:
        """A random value, without Optuna."""
        if self.kind == "choice":
            return rng.choice(tuple(dict.fromkeys(self.listed)))
        if self.kind == "int":
            return rng.randrange(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.kind == "float":
            return self.canonical(rng.uniform(self.low, self.high))
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        value = min(max(value, self.low), self.high)  # exp(log(x)) may miss x by a rounding error
        return round(value) if self.whole else value

    def _index(self, value: float) -> int:
        assert self.step is not None
        return round((value - self.low) / self.step)


def _on_step(low: float, step: float, index: int) -> float:
    """low + index × step; in decimal arithmetic for fractions, so that three steps of 0.1 are 0.3."""
    if isinstance(low, int) and isinstance(step, int):
        return low + index * step
    return float(Decimal(str(low)) + index * Decimal(str(step)))
