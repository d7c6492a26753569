"""How a model is trained. Imports no torch, so that a search file is checked in milliseconds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from xlstm_tune.models.config import ModelConfig
from xlstm_tune.strict import Spec

_NAMED = ("family", "pattern", "layers", "hidden_size", "dropout", "patch_length", "patch_stride")
NAMED = (*(f"model.{key}" for key in _NAMED), "training.learning_rate")
"""Keys that a title has of its own."""
_SHORTER = {"training.weight_decay": "wd"}
NOTHING: Mapping[str, Any] = MappingProxyType({})
Level = Annotated[float, Field(gt=0, lt=1)]


class TrainingConfig(Spec):
    """One training run."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Passes over the training part."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Windows or sequences a step."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """At its highest, after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Of weight matrices; biases and gains are spared."""
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    """`sgd` has a momentum of 0.9."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: follows half a cosine that reaches zero just after the last step, or stays."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps over which the learning rate rises from zero."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global norm of the gradient; 0 = no clipping."""
    loss: Literal["mse", "mae", "huber", "quantile"] = "mse"
    """On standardised targets. `quantile`: the model forecasts every level of `quantiles`; scores are those of the
    level nearest to the median."""
    quantiles: Annotated[list[Level], Field(min_length=1, max_length=99)] = [0.1, 0.5, 0.9]
    """Levels of the `quantile` loss, rising. A list, so not searched."""
    loss_weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Factor of the loss before its gradient is clipped; reported losses are without it."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better validation loss after which training ends; 0 = never."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast on a GPU that has it, fp32 elsewhere."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of the first weights, the order of the samples and dropout."""

    @field_validator("quantiles")
    @classmethod
    def _rising(cls, quantiles: list[float]) -> list[float]:
        if any(high <= low for low, high in itertools.pairwise(quantiles)):
            raise ValueError(f"training.quantiles must rise from one to the next, got {quantiles}")
        return quantiles

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles that a model forecasts; empty where it forecasts one number."""
        return tuple(self.quantiles) if self.loss == "quantile" else ()

    def relevant(self) -> dict[str, Any]:
        """Only the keys that decide the result."""
        return self.model_dump(exclude=None if self.levels else {"quantiles"})


@dataclass(frozen=True)
class TrialConfig:
    """Everything that decides one trial's result, given the data."""

    model: ModelConfig
    training: TrainingConfig
    lookback: int | None
    """L, the steps that the model sees; None (regression only) = the whole sequence."""

    def flat(self) -> dict[str, Any]:
        """The settings that matter, as `model.hidden_size`-style keys."""
        settings = {f"model.{key}": value for key, value in self.model.relevant().items()}
        settings |= {f"training.{key}": value for key, value in self.training.relevant().items()}
        if self.lookback is not None:
            settings["data.lookback"] = self.lookback
        return settings

    def key(self) -> str:
        """Canonical text of `flat`: two trials with the same key are the same experiment."""
        return json.dumps(self.flat(), sort_keys=True)

    def title(self, left_out: Collection[str] = (), usual: Mapping[str, Any] = NOTHING) -> str:
        """Short name for people: `ms · 128 · lr 1e-3`.

        left_out: keys that are not named. usual: values of other keys that differ from trial to trial, each of which is
        named where the trial has another.
        """
        model = self.model
        kind = model.pattern if model.family == "xlstm" else f"{model.family}×{model.layers}"
        parts = [kind, str(model.hidden_size)]
        if "training.learning_rate" not in left_out:
            parts.append(f"lr {_short(self.training.learning_rate)}")
        if model.relevant().get("dropout") and "model.dropout" not in left_out:
            parts.append(f"dropout {model.dropout:.2g}")
        if model.patched:
            parts.append(f"patch {model.patch_length}/{model.stride}")
        settings = self.flat()
        for key in usual:
            if key not in (*NAMED, *left_out) and key in settings and settings[key] != usual[key]:
                value = settings[key]
                name = _SHORTER.get(key, key.partition(".")[2])
                parts.append(f"{name} {_short(value) if isinstance(value, float) else value}")
        return " · ".join(parts)


def _short(value: float) -> str:
    """0.001 → 1e-3, 0.000234 → 2.3e-4, 0.05 → 0.05."""
    if 0.01 <= value < 1000 or value == 0:
        return f"{value:.2g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"
