"""The search file: what may stand in it, and what one sampled point of it means.

Imports nothing heavy: a wrong file is refused in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from xlstm_tune.data.config import DataConfig
from xlstm_tune.models.config import ModelConfig, ModelSettings
from xlstm_tune.strict import Spec, did_you_mean, shortened
from xlstm_tune.training.config import TrainingConfig, TrialConfig

Scalar = bool | int | float | str
Objective = Literal["val_rmse", "val_mae", "val_mse_standardised", "val_mae_standardised"]
Cost = Literal["parameters", "latency_ms"]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Of a search. It becomes a folder below the storage folder, which it must not be able to leave."""
TAKEN = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", "mlflow-artifacts")
"""What lies beside the searches: MLflow's database, which SQLite keeps in up to four files, and its artifacts."""
DEFAULT_TRIALS = 32
"""Where `search.trials` is not given and the search is no grid."""

SEARCHABLE: tuple[str, ...] = (
    *(f"model.{key}" for key in ModelConfig.model_fields),
    *(f"training.{key}" for key in TrainingConfig.model_fields if key != "quantiles"),
    "data.lookback",
)
"""Keys that `space:` may hold."""


def _in_seconds(value: float | str | None, where: str) -> float | None:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())
    if not match or not 0 < float(match[1]) < 1e9:
        raise ValueError(f"{where} must be seconds or text such as 30m, 2h or 1d, got '{shortened(value)}'")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


class Dimension(Spec):
    """One line of `space:`, for example `{log_float: [1e-4, 1e-2]}`."""

    choice: list[Scalar] | None = None
    """One of these."""
    float_: Annotated[list[float] | None, Field(alias="float", min_length=2, max_length=2)] = None
    """The least and the greatest; what lies between, evenly."""
    log_float: Annotated[list[float] | None, Field(min_length=2, max_length=2)] = None
    """The same, evenly in the logarithm."""
    int_: Annotated[list[int] | None, Field(alias="int", min_length=2, max_length=2)] = None
    """Whole numbers from the least to the greatest."""
    log_int: Annotated[list[int] | None, Field(min_length=2, max_length=2)] = None
    """The same, evenly in the logarithm."""
    step: int | float | None = None
    """Distance between the values of an `int` or `float` range."""
    when: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """The dimension exists only where each of these keys has (one of) the given values."""

    @property
    def kind(self) -> str:
        """choice, float, log_float, int or log_int."""
        return next(k for k in ("choice", "float_", "log_float", "int_", "log_int") if self._given(k)).rstrip("_")

    def _given(self, field: str) -> bool:
        return getattr(self, field) is not None

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [k.rstrip("_") for k in ("choice", "float_", "log_float", "int_", "log_int") if self._given(k)]
        if len(kinds) != 1:
            given = "none of them" if not kinds else " and ".join(kinds)
            raise ValueError(f"needs exactly one of choice, float, log_float, int, log_int; got {given}")
        if self.step is not None and kinds[0] not in ("int", "float"):
            raise ValueError(f"'step' belongs to int and float ranges, not to {kinds[0]}")
        return self


class ConstraintConfig(Spec):
    """What a model may cost at most; whatever it costs unless given."""

    max_parameters: Annotated[int, Field(ge=1)] | None = None
    """Trainable numbers of one model."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds for the forecast of one sample, on what trials run on."""
    max_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Of training one model, in GiB (2³⁰ bytes), by the estimate that `--dry-run` prints."""

    def by_figure(self) -> dict[str, float]:
        """The limits that are given, by the names of what they limit."""
        limits = {name.removeprefix("max_"): getattr(self, name) for name in type(self).model_fields}
        return {name: float(limit) for name, limit in limits.items() if limit is not None}


class SearchConfig(Spec):
    """How the space is searched."""

    objective: Objective = "val_rmse"
    """What is to be small on the validation part. A list adds `costs`: `[val_rmse, parameters]`."""
    costs: list[Cost] = Field(default_factory=list)
    """What is weighed against the objective: the search then looks for all trials that no other beats in both."""
    constraints: ConstraintConfig = ConstraintConfig()
    algorithm: Literal["tpe", "random", "grid", "gp"] = "tpe"
    """Who proposes: a tree-structured Parzen estimator, chance, every point in order, or a Gaussian process."""
    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Distinct configurations to train; unless given, every point of a grid and 32 otherwise."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Who stops trials early: `asha` those that are not among the best at a rung, `median` those worse than half.
    `none` where there are `costs`, which take nothing else."""
    grace_epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Epochs that every trial gets before the scheduler may stop it; unless given, a tenth of training.epochs, at least
    1."""
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    """ASHA keeps the best one in this many at each rung."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Of the proposals. Each trial draws numbers of its own, by this and its number, so that a search that was
    interrupted proposes the same; `tpe` and `gp` learn from what has ended, which hangs on the clock where several
    trials run at a time."""
    start_with: list[dict[str, Scalar]] | Literal["defaults", "none"] = "defaults"
    """Points tried first; `defaults`: every family with the values of `model:` and `training:`."""
    fuse: Literal["auto", "off"] = "auto"
    """`auto`: configurations of a grid or random search that differ only in settings which leave every tensor's shape
    alone are trained together where that is faster; off = each by itself."""
    time_budget: Annotated[float, Field(gt=0)] | str | None = None
    """Seconds, or text such as 30m, 2h, 1d, after which no more is trained; anew from each start and each resume."""
    storage: str | None = None
    """An Optuna storage URL; unless given, a journal file in the search folder."""

    @property
    def goals(self) -> list[str]:
        """The objective and its costs, by their columns of the trials table; all are to be small."""
        return [self.objective, *self.costs]

    @model_validator(mode="before")
    @classmethod
    def _several(cls, raw: Any) -> Any:
        """A list of objectives as one and its costs; with costs, trials train to their end."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        if isinstance(objective := raw.get("objective"), list):
            if "costs" in raw:
                raise ValueError("'search.objective' is a list, which names the costs; leave out 'search.costs'")
            if not objective:
                raise ValueError("'search.objective' is an empty list; give a metric such as val_rmse first")
            for place, name in enumerate(objective):
                # Told here, by the place in the list that was written: below, there is no list any more.
                what, allowed = ("a cost", get_args(Cost)) if place else ("a metric", get_args(Objective))
                if name not in allowed:
                    raise ValueError(
                        f"'search.objective[{place}]' must be {what}, one of {', '.join(allowed)}, "
                        f"got {shortened(repr(name))}; one metric stands first, and costs follow"
                    )
            raw["objective"], raw["costs"] = objective[0], objective[1:]
        if raw.get("costs"):
            raw.setdefault("scheduler", "none")
        return raw

    @model_validator(mode="after")
    def _costs_fit(self) -> SearchConfig:
        if len(set(self.costs)) < len(self.costs):
            raise ValueError(f"'search.costs' names one cost twice: {', '.join(self.costs)}")
        if self.costs and self.scheduler != "none":
            raise ValueError(
                f"'search.scheduler' is '{self.scheduler}', which stops trials by their error alone and would end the "
                f"cheap ones that a search for {self.objective} and {' and '.join(self.costs)} is after; leave it out"
            )
        return self

    @field_validator("fuse", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # as YAML reads a bare off

    @field_validator("time_budget")
    @classmethod
    def _seconds(cls, value: float | str | None) -> float | None:
        return _in_seconds(value, "search.time_budget")


class ResourceConfig(Spec):
    """What one trial gets of the machine."""

    cpus_per_trial: Annotated[float, Field(ge=0.001, le=1024)] = 1
    """Cores that a trial gets, and so how many run side by side without GPUs."""
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0, le=1024)] = "auto"
    """`auto`: where there are GPUs, the share of one that an estimate of the largest trial's memory gives; none
    elsewhere. 0.25 puts four trials on one."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Most trials at a time; as many as the resources hold unless given."""
    trial_timeout: Annotated[float, Field(gt=0)] | str | None = None
    """Seconds, or text such as 30m, 2h, 1d, within which a trial has to finish an epoch; a minute more for the first of
    a worker, which loads the kernels, and ten where it may have to compile them. A trial that does not hangs: its
    worker is ended, and it goes on from its last checkpoint with another. It may take for ever unless given."""

    @field_validator("trial_timeout")
    @classmethod
    def _seconds(cls, value: float | str | None) -> float | None:
        return _in_seconds(value, "resources.trial_timeout")

    @field_validator("gpus_per_trial")
    @classmethod
    def _share(cls, gpus: float | str) -> float | str:
        if isinstance(gpus, float) and 0 < gpus < 0.001:
            raise ValueError(f"must be 0 or at least 0.001, got {gpus}")
        if isinstance(gpus, float) and gpus > 1 and not gpus.is_integer():  # Ray would wait for ever
            raise ValueError(f"must be a whole number above 1, since a trial shares one GPU or has its own, got {gpus}")
        return gpus


class PopulationConfig(Spec):
    """Members that are trained together inside each trial: every combination of the listed values with every seed.

    Its other keys are settings (training/members.py, SHAPE_PRESERVING) with the list of their values.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[Scalar]] = Field(init=False)

    seeds: Annotated[int, Field(ge=1, le=1024)] = 1
    """Members of each setting, with training.seed, training.seed + 1, and so on; the score is their mean."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any) -> Any:
        for key in raw if isinstance(raw, dict) else ():
            if key not in ("seeds", *SEARCHABLE):
                raise ValueError(
                    f"'population.{key}' is not a setting that members can differ in; "
                    f"{did_you_mean(key, ('seeds', *SEARCHABLE))}"
                )
        return raw

    @property
    def settings(self) -> dict[str, list[Scalar]]:
        """The keys that members differ in besides the seed, and their values."""
        return dict(self.__pydantic_extra__ or {})


class SearchSpec(Spec):
    """A whole search file."""

    name: Annotated[str, Field(min_length=1, max_length=120)]
    data: DataConfig
    search: SearchConfig = SearchConfig()
    space: dict[str, Dimension] = Field(default_factory=dict)
    population: PopulationConfig | None = None
    """None = each trial trains one model."""
    model: ModelSettings = ModelSettings()
    training: TrainingConfig = TrainingConfig()
    resources: ResourceConfig = ResourceConfig()

    @field_validator("space", mode="before")
    @classmethod
    def _flat_keys(cls, raw: Any) -> Any:
        """Settings below their section, as the other sections of the file have them, are told how `space:` has them."""
        for section, lines in raw.items() if isinstance(raw, dict) else ():
            for key in lines if section in ("model", "training", "data") and isinstance(lines, dict) else ():
                if (flat := f"{section}.{key}") in SEARCHABLE:
                    raise ValueError(
                        f"'space.{section}' is no setting but a section, and space has one line for each setting, with "
                        f"its flat key; write `{flat}: {{...}}` instead of '{key}' below '{section}'"
                    )
        return raw

    @model_validator(mode="after")
    def _model_fits(self) -> SearchSpec:
        """What `space:` replaces may be anything: whether all that it combines are models is looked at there."""
        self.model.check_fit([key.removeprefix("model.") for key in self.space if key.startswith("model.")])
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            raise ValueError(
                f"name must be letters, digits, '.', '_' and '-', beginning with a letter or digit, got '{name}'"
            )
        if name.lower() in TAKEN:  # on some disks, letters of either size are one name
            raise ValueError(
                f"name must not be '{name}', where MLflow's runs of all searches lie in the storage folder; choose "
                "another with --name"
            )
        return name

    def resolve(self, params: Mapping[str, Scalar]) -> TrialConfig:
        """The trial that a point of the space means: `params` laid over the fixed values.

        params: flat keys such as `model.hidden_size`; keys not given keep the search file's values.
        Raises SpecError when the combination is not a model, or not one for this task.
        """
        config = self.combine(params)
        self.check(config)
        return config

    def title(self, config: TrialConfig, left_out: Collection[str] = ()) -> str:
        """A trial's name, with every searched setting in which it is not as the fixed values have it."""
        keys = [*self.space, *(self.population.settings if self.population else ())]
        fixed = {key: getattr(getattr(self, key.partition(".")[0]), key.partition(".")[2]) for key in keys}
        return config.title(left_out, fixed)

    def combine(self, params: Mapping[str, Scalar]) -> TrialConfig:
        """As `resolve`, but whether settings fit each other is not looked at: parts of a point may be laid over too."""
        overlay: dict[str, dict[str, Scalar]] = {"model": {}, "training": {}, "data": {}}
        for key, value in params.items():
            section, _, field = key.partition(".")
            overlay[section][field] = value
        settings = ModelSettings.parse(self.model.model_dump() | overlay["model"], "model")
        model = ModelConfig.model_construct(**settings.model_dump())
        training = TrainingConfig.parse(self.training.model_dump() | overlay["training"], "training")
        lookback = DataConfig.parse(self.data.model_dump() | overlay["data"], "data").lookback
        return TrialConfig(model, training, lookback)

    def check(self, config: TrialConfig) -> None:
        """Raise SpecError when the settings of a trial are no model, or one that cannot serve the task."""
        config.model.check_fit()
        config.model.check_problem(self.data.task == "forecast", config.lookback)

    def max_lookback(self) -> int | None:
        """The largest lookback that any trial may ask for, or the baselines, which take the search file's own."""
        fixed = self.data.lookback
        largest = self._largest("data.lookback", fixed)
        return largest if fixed is None else max(fixed, largest or 0)

    def max_epochs(self) -> int:
        """The most epochs that any trial may train."""
        if self.population and (listed := self.population.settings.get("training.epochs")):
            return max(int(epochs) for epochs in listed)
        return self._largest("training.epochs", self.training.epochs) or self.training.epochs

    def _largest(self, key: str, fixed: int | None) -> int | None:
        dimension = self.space.get(key)
        if dimension is None:
            return fixed
        values = dimension.choice or dimension.int_ or dimension.log_int or []
        if dimension.int_ and isinstance(dimension.step, int):
            low, high = dimension.int_
            values = [low, low + (high - low) // dimension.step * dimension.step]
        settled = {other: wanted for other, wanted in dimension.when.items() if other not in self.space}
        for other, wanted in settled.items():
            if self.fixed(other) not in (wanted if isinstance(wanted, list) else [wanted]):
                return fixed
        # Where a dimension does not always exist, a trial without it has the fixed value.
        used = values if settled == dimension.when else [*values, fixed]
        return max((value for value in used if isinstance(value, int)), default=None)

    def fixed(self, key: str) -> Any:
        """The value that the file gives a setting outside `space:`."""
        section, _, field = key.partition(".")
        return getattr(getattr(self, section), field)
