"""What the data are and how they are cut. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from xlstm_tune.strict import Spec, did_you_mean

CSV = (".csv", ".csv.gz", ".csv.bz2", ".csv.zst", ".tsv", ".tsv.gz", ".txt")
"""How the names of text tables end."""
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".arrows", ".feather", ".ipc")
READABLE = (*CSV, *PARQUET, *ARROW)
"""File name endings that can be read."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
"""One column name or a list of them."""
Cycles = Annotated[list[Literal["year", "week", "day"]], BeforeValidator(_as_list)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""More than any table has rows, and less than what would overflow."""
Size = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | str
"""Of a part: a share (0.15), a number of steps, periods or groups (2880), or where it begins (2018-01-01)."""


class TimeConfig(Spec):
    """The column that orders the rows of a series."""

    column: str
    """Its name; `time: date` says as much as `time: {column: date}`."""
    format: Literal["auto", "iso", "epoch", "mmwr-week", "iso-week"] = "auto"
    """`auto` reads ISO dates and date columns; epoch numbers, MMWR weeks (2006_1) and ISO weeks (2006-W01) are asked
    for by name."""
    unit: Literal["s", "ms", "us", "ns"] = "s"
    """Of epoch numbers."""


class SplitConfig(Spec):
    """Which rows or sequences may be seen when."""

    by: Names = ["time"]
    """`time`: the last part is the test. Column names: whole groups stay on one side. Both: late groups only."""
    order: str | None = None
    """Regression: the column of `sequence`, of numbers or ISO dates, whose values are the time that `by: time` goes by;
    the time column unless given. Sizes then are shares or numbers of its values, or the value where a part begins, as
    text ("2007")."""
    train: Size | None = None
    """Everything before validation unless given; then what follows the test part is left out."""
    validation: Size = 0.15
    """The part that models are chosen by. A share (0.15), a number of steps, periods or groups (2880), or where the
    part begins (2018-01-01)."""
    test: Size = 0.15
    """The part that is looked at once, after the search; sized as `validation`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Which groups fall on which side."""


def _as_column(value: Any) -> Any:
    if isinstance(value, bool | int | float):  # as YAML reads a bare 2020
        raise ValueError(f"must be the name of a column or a mapping of keys to values, got {value}; put it in quotes")
    return {"column": value} if isinstance(value, str) else value


class DataConfig(Spec):
    """A table of sequences and the question asked of it."""

    source: Names
    """Path, glob, folder, s3:// or file:// URI, or sample:NAME."""
    sample: dict[str, int | float] = Field(default_factory=dict)
    """Parameters of a built-in sample, such as {counties: 48, years: 22, seed: 0}."""
    task: Literal["forecast", "regression"] = "forecast"
    """`forecast`: the next `horizon` steps of each target. `regression`: one value per sequence."""
    time: Annotated[TimeConfig | None, BeforeValidator(_as_column)] = None
    """A column's name alone will do. None: the rows are in order."""
    series: Names = []
    """Forecasts: the columns that tell one series from another (long format); none = one series."""
    sequence: Names = []
    """Regression: the columns that make one sequence, such as [county, year]."""
    target: Names
    """One column, several, or `all`."""
    target_minimum: float | None = None
    """The least value that a target can have, such as 0 for counts: no forecast and no interval goes below it."""
    features: Names = ["all"]
    """Inputs: `all` (every column but time, series, sequence and static) or a list; a forecast's targets are always
    inputs."""
    exclude: Names = []
    """Columns that `all` leaves out."""
    static: Names = []
    """Columns that are constant within a series (forecast) or sequence (regression), such as a county's size: given to
    the model once a sample, not as inputs of every step."""
    categories: Names = []
    """Text columns, each turned into one 0/1 input per value seen in the training part."""
    calendar: Cycles = []
    """Cycles told from the time column as sine and cosine inputs: of `year`, `week`, `day`, in UTC where times carry an
    offset."""
    missing: Literal["error", "forward_fill", "interpolate", "drop"] = "error"
    """What becomes of blank cells: the table is refused, they take the last value before them, values on the line
    between their neighbours, or the rows that hold them are left out."""
    lookback: Steps | None = None
    """L, the steps a model sees. Forecasts must give it; in a regression it is the whole sequence unless given."""
    horizon: Steps = 1
    """H, the steps forecast."""
    stride: Steps = 1
    """Steps between training windows; validation and test always use every window."""
    season: Steps | None = None
    """Period of the seasonal naive baseline in steps; told from the time step, where it can be, unless given."""
    split: SplitConfig = SplitConfig()

    @property
    def labels(self) -> list[str]:
        """Columns whose cells are names, also where they are written in digits."""
        return [*self.series, *self.sequence, *self.categories]

    @model_validator(mode="after")
    def _task_fits(self) -> DataConfig:
        if self.task == "forecast":
            if self.lookback is None:
                raise ValueError("'data.lookback' is missing; a forecast needs it: how many steps the model sees")
            if self.static and not self.series:
                raise ValueError(
                    "'data.static' needs 'data.series' in a forecast: within a single series such a column says nothing"
                )
            if self.sequence:
                raise ValueError(
                    "'data.sequence' belongs to task: regression; a forecast names its series in 'data.series'"
                )
            if self.split.order is not None:
                raise ValueError("'data.split.order' belongs to task: regression; a forecast is split by its time")
        else:
            if not self.sequence:
                raise ValueError("'data.sequence' is missing; a regression needs the columns that make one sequence")
            if self.series:
                raise ValueError("'data.series' belongs to task: forecast; a regression names 'data.sequence'")
            if self.horizon != 1:
                raise ValueError("'data.horizon' belongs to task: forecast; a regression has one target per sequence")
            if self.split.order is not None and self.split.order not in self.sequence:
                hint = did_you_mean(self.split.order, self.sequence, dotted=False)
                raise ValueError(f"'data.split.order' names '{self.split.order}', not one of data.sequence; {hint}")
            if self.split.order is not None and "time" not in self.split.by:
                raise ValueError(
                    "'data.split.order' is what by: time goes by; add time to 'data.split.by' or leave it out"
                )
        return self
