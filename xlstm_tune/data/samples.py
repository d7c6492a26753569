"""Built-in data, reached as `source: sample:NAME`: one real series and one simulator whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.csv

from xlstm_tune.data import outbreak
from xlstm_tune.errors import DataError
from xlstm_tune.strict import did_you_mean

MOST_ROWS = 20_000_000
"""Of a simulated table; about 5 GB."""


@dataclass(frozen=True)
class Sample:
    """A built-in table, as a file would give it."""

    table: pa.Table
    oracle: dict[str, str] = field(default_factory=dict)
    """Target column → the column with its conditional mean given the inputs. Never an input."""


@dataclass(frozen=True)
class Parameter:
    """A whole number that a sample takes, and its limits (None: no upper one)."""

    default: int
    least: int
    most: int | None = None


@dataclass(frozen=True)
class Entry:
    """What makes a sample, and the parameters it takes."""

    build: Callable[..., Sample]
    parameters: dict[str, Parameter] = field(default_factory=dict)


def seattle_weather() -> Sample:
    """Daily weather of Seattle, 2012 to 2015, 1461 rows (NOAA; from the vega_datasets wheel, no network).

    Columns: date (date32), precipitation (mm), temp_max and temp_min (°C), wind (m/s), weather (text).
    """
    # Imported here: the package reads pandas, which no other data need.
    from vega_datasets import data

    convert = pa.csv.ConvertOptions(
        timestamp_parsers=["%Y/%m/%d"],
        column_types={"date": pa.timestamp("s")}
        | dict.fromkeys(("precipitation", "temp_max", "temp_min", "wind"), pa.float64()),
    )
    table = pa.csv.read_csv(data.seattle_weather.filepath, convert_options=convert)
    return Sample(table.set_column(0, "date", table["date"].cast(pa.date32())))


def simulated_outbreak(counties: int, years: int, days: int, seed: int) -> Sample:
    """Counties × years of daily weather and yearly cases: see `outbreak.simulate`."""
    rows = counties * years * days
    if rows > MOST_ROWS:
        raise DataError(
            f"sample 'outbreak' would have {rows:,} rows (counties × years × days = {counties} × {years} × {days}), "
            f"more than the {MOST_ROWS:,} it can hold; ask for fewer counties or years"
        )
    return Sample(outbreak.simulate(counties, years, days, seed), {"cases": "expected_cases"})


SAMPLES: dict[str, Entry] = {
    "seattle-weather": Entry(seattle_weather),
    "outbreak": Entry(
        simulated_outbreak,
        {
            "counties": Parameter(48, least=1),
            "years": Parameter(22, least=1, most=7999),
            "days": Parameter(outbreak.LONGEST_YEAR, least=30, most=outbreak.LONGEST_YEAR),
            "seed": Parameter(0, least=0),
        },
    ),
}
"""What `sample:NAME` may name."""


def load_sample(name: str, parameters: Mapping[str, int | float] | None = None) -> Sample:
    """The built-in table `name`; `parameters` are those of `SAMPLES[name]`, all optional.

    Raises DataError when the sample or a parameter is unknown (naming the nearest) or a value is out of its limits.
    """
    if name not in SAMPLES:
        raise DataError(f"data.source: there is no sample '{name}'; {did_you_mean(name, SAMPLES)}")
    entry = SAMPLES[name]
    given = dict(parameters or {})
    for key in given:
        if not entry.parameters:
            raise DataError(f"data.sample.{key}: sample '{name}' takes no parameters; remove '{key}'")
        if key not in entry.parameters:
            raise DataError(
                f"data.sample.{key} is not a parameter of sample '{name}'; {did_you_mean(key, entry.parameters)}"
            )
    values = {key: _whole(key, given.get(key, rule.default), rule) for key, rule in entry.parameters.items()}
    return entry.build(**values)


def _whole(key: str, value: int | float, rule: Parameter) -> int:
    limits = f"of at least {rule.least}" if rule.most is None else f"from {rule.least} to {rule.most}"
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or value < rule.least or (rule.most is not None and value > rule.most):
        raise DataError(f"data.sample.{key} must be a whole number {limits}, got {value!r}")
    return int(value)
