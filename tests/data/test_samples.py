"""Built-in data: the real series is what it says; the simulator is plausible, repeatable and has the stated mean."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from xlstm_tune.data import outbreak
from xlstm_tune.data.samples import SAMPLES, load_sample
from xlstm_tune.errors import DataError

COUNTIES, YEARS, DAYS = 48, 22, 365


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """The default outbreak."""
    return load_sample("outbreak", {}).table


def column(table: pa.Table, name: str) -> np.ndarray:
    """[C, Y, T] of the default table, in float64 where numeric."""
    cells = table[name].to_numpy()
    return (cells if cells.dtype == object else cells.astype(np.float64)).reshape(COUNTIES, YEARS, DAYS)


def test_seattle_weather_is_the_real_series() -> None:
    sample = load_sample("seattle-weather", {})
    table = sample.table
    assert table.column_names == ["date", "precipitation", "temp_max", "temp_min", "wind", "weather"]
    assert table.schema.field("date").type == pa.date32()
    assert table.schema.field("weather").type == pa.string()
    assert table.num_rows == 1461 and sum(c.null_count for c in table.columns) == 0
    days = table["date"].to_numpy()
    assert str(days[0]) == "2012-01-01" and np.all(np.diff(days) == np.timedelta64(1, "D"))
    assert table.slice(1, 1).to_pylist()[0] | {"date": None} == {
        "date": None, "precipitation": 10.9, "temp_max": 10.6, "temp_min": 2.8, "wind": 4.5, "weather": "rain",
    }  # fmt: skip
    assert sample.oracle == {}


def test_outbreak_default_has_the_typical_users_columns(table: pa.Table) -> None:
    assert table.column_names == [
        "county", "year", "day", "date", "temp", "visibility", "dew_point", "feels_like", "temp_min", "temp_max",
        "pressure", "humidity", "wind_speed", "wind_deg", "wind_gust", "rain_1h", "rain_3h", "snow_1h", "snow_3h",
        "clouds_all", "weather_id", "weather_main", "weather_description", "population", "cases", "expected_cases",
    ]  # fmt: skip
    assert table.num_rows == COUNTIES * YEARS * DAYS
    assert sum(c.null_count for c in table.columns) == 0
    numbers = [c for c in table.columns if pa.types.is_integer(c.type) or pa.types.is_floating(c.type)]
    assert len(numbers) == 22 and all(np.isfinite(c.to_numpy()).all() for c in numbers)
    for name in ("population", "cases", "expected_cases"):
        assert np.ptp(column(table, name), axis=2).max() == 0, f"{name} must be constant within a sequence"
    assert np.ptp(column(table, "population"), axis=1).max() == 0
    assert len(set(table["county"].to_pylist())) == COUNTIES and table["county"][0].as_py() == "county_00"
    # Takes about 1 s; a loop over days would take many times as long.


def test_outbreak_dates_leave_out_the_leap_day(table: pa.Table) -> None:
    leap = table.filter((pc.field("year") == 2004) & (pc.field("county") == "county_05"))
    dates = [str(date) for date in leap["date"].to_pylist()]
    assert dates[0] == "2004-01-01" and dates[-1] == "2004-12-31" and len(set(dates)) == 365
    assert dates[58:60] == ["2004-02-28", "2004-03-01"]
    assert leap["day"].to_pylist() == list(range(1, 366))


def test_outbreak_weather_obeys_physics(table: pa.Table) -> None:
    w = {name: column(table, name) for name in outbreak.FEATURES}
    assert np.all(w["dew_point"] <= w["temp"])
    assert np.all(w["temp_min"] <= w["temp"]) and np.all(w["temp"] <= w["temp_max"])
    assert np.all(w["wind_gust"] >= w["wind_speed"]) and w["wind_speed"].min() > 0
    assert w["wind_deg"].min() >= 0 and w["wind_deg"].max() < 360
    at_dew_point, at_temp = (np.exp(17.625 * w[name] / (243.04 + w[name])) for name in ("dew_point", "temp"))
    assert np.abs(w["humidity"] - 100 * at_dew_point / at_temp).max() < 0.51
    assert np.all((w["rain_3h"] == 0) | (w["snow_3h"] == 0)) and w["snow_3h"].max() > 0
    assert w["temp"][w["snow_3h"] > 0].max() < 0.5 <= w["temp"][w["rain_3h"] > 0].min()
    assert np.all(w["rain_1h"] <= w["rain_3h"]) and np.all(w["snow_1h"] <= w["snow_3h"])
    assert w["clouds_all"].min() >= 0 and w["clouds_all"].max() <= 100
    assert w["visibility"].min() >= 50 and w["visibility"].max() == 10_000
    assert w["pressure"].min() > 985 and w["pressure"].max() < 1045
    windy_cold = (w["wind_speed"] > 6) & (w["temp"] < 5)
    assert np.all(w["feels_like"][windy_cold] < w["temp"][windy_cold])


def test_outbreak_conditions_agree_with_the_weather(table: pa.Table) -> None:
    code = column(table, "weather_id").astype(int)
    main, description = table["weather_main"].to_pylist(), table["weather_description"].to_pylist()
    triples = set(zip(code.ravel().tolist(), main, description, strict=True))
    assert triples == {(number, *texts) for number, texts in outbreak.CONDITIONS.items()}
    rain, snow, visibility = (column(table, name) for name in ("rain_3h", "snow_3h", "visibility"))
    assert np.array_equal((code >= 200) & (code < 600), rain > 0)
    assert np.array_equal((code >= 600) & (code < 700), snow > 0)
    assert visibility[code == 741].max() < 1000 and visibility[code == 761].max() <= 5000
    assert visibility[code == 800].min() == 10_000
    clouds = column(table, "clouds_all")
    assert clouds[code == 800].max() <= 11 and clouds[code == 804].min() >= 84


def test_outbreak_weather_has_seasons_persistence_and_climates(table: pa.Table) -> None:
    temp = column(table, "temp")
    by_day = temp.mean((0, 1))
    assert 10 < np.ptp(by_day) < 30 and 180 < by_day.argmax() < 260
    assert temp.mean((1, 2)).std() > 1, "counties must differ in climate"
    anomaly = (temp - temp.mean(1, keepdims=True)).reshape(COUNTIES, -1)
    assert 0.5 < np.corrcoef(anomaly[:, 1:].ravel(), anomaly[:, :-1].ravel())[0, 1] < 0.95
    wet = (column(table, "rain_3h") > 0).reshape(COUNTIES, -1)
    after_wet, after_dry = wet[:, 1:][wet[:, :-1]].mean(), wet[:, 1:][~wet[:, :-1]].mean()
    assert after_wet > after_dry + 0.2


def test_outbreak_mean_is_a_function_of_the_shown_columns(table: pa.Table) -> None:
    """The documented equations, day by day in plain Python, from what the table shows."""
    for county, year in ((0, 0), (17, 9), (47, 21)):
        rows = table.slice((county * YEARS + year) * DAYS, DAYS).to_pydict()
        rain = sum(rows["rain_3h"][18:146]) / 128
        dust = 0.0
        for day in range(182, 328):
            hot = 1 / (1 + math.exp(-(rows["temp"][day] - 22) / 2))
            dry = 1 / (1 + math.exp(-(45 - rows["humidity"][day]) / 5))
            dust += hot * dry * (rows["wind_speed"][day] / 4) ** 2 / 146
        g = (rain / (rain + 1.8) - 0.5) / 0.2
        b = (dust / (dust + 0.33) - 0.5) / 0.2
        mean = 50e-5 * rows["population"][0] * math.exp(0.45 * g + 0.35 * b + 0.2 * g * b)
        assert rows["expected_cases"][0] == pytest.approx(mean, rel=1e-9)


def test_outbreak_mean_depends_on_when_things_happen() -> None:
    days = np.arange(365)
    early, late = (days >= 30) & (days < 120), (days >= 330)
    dry_heat, cool = np.where((days > 190) & (days < 320), 30.0, 12.0), np.full(365, 12.0)
    humidity, wind = np.full(365, 30.0), np.full(365, 5.0)

    def mean(rain: np.ndarray, temp: np.ndarray) -> float:
        return float(outbreak.expected_cases(rain, temp, humidity, wind, np.float64(1e5)))

    wet, nothing = early * 8.0, np.zeros(365)
    assert mean(wet, dry_heat) > 2 * mean(late * 8.0, dry_heat)
    assert mean(late * 8.0, dry_heat) == mean(nothing, dry_heat), "late rain must not help"
    # The effect of dry heat grows with what there is to blow about: an interaction.
    assert mean(wet, dry_heat) / mean(wet, cool) > 2 * mean(nothing, dry_heat) / mean(nothing, cool)


def test_outbreak_signal_is_strong(table: pa.Table) -> None:
    cases, mean = (column(table, name)[:, :, 0] for name in ("cases", "expected_cases"))
    rate, mean_rate = (value / column(table, "population")[:, :, 0] for value in (cases, mean))

    def within(value: np.ndarray) -> np.ndarray:
        return value - value.mean(1, keepdims=True)

    assert mean.var() / cases.var() > 0.8
    assert within(mean_rate).var() / within(rate).var() > 0.7
    assert np.corrcoef(within(mean_rate).ravel(), within(rate).ravel())[0, 1] ** 2 > 0.7
    best = np.sqrt(((cases - mean) ** 2).mean())
    per_county = np.sqrt((within(cases) ** 2).mean())
    assert best < 0.3 * cases.std()
    assert best < 0.5 * per_county


def test_outbreak_counts_are_negative_binomial(table: pa.Table) -> None:
    cases, mean = (column(table, name)[:, :, 0] for name in ("cases", "expected_cases"))
    residual = (cases - mean) / np.sqrt(mean + mean**2 / outbreak.DISPERSION)
    # 1056 draws: standard errors 0.031 of the mean and about 0.05 of the variance; four of each.
    assert abs(residual.mean()) < 0.13 and abs(residual.var() - 1) < 0.2


def test_outbreak_is_reproducible_bit_for_bit() -> None:
    size = {"counties": 3, "years": 4, "days": 90}
    assert load_sample("outbreak", {**size, "seed": 5}).table.equals(load_sample("outbreak", {**size, "seed": 5}).table)
    assert not load_sample("outbreak", {**size, "seed": 5}).table.equals(load_sample("outbreak", size).table)


@pytest.mark.parametrize(("counties", "years", "days"), [(2, 3, 60), (1, 1, 30), (5, 1, 365), (120, 2, 30)])
def test_outbreak_small_sizes_keep_all_seasons(counties: int, years: int, days: int) -> None:
    table = load_sample("outbreak", {"counties": counties, "years": years, "days": float(days)}).table
    assert table.num_rows == counties * years * days
    assert table["day"].to_numpy().max() == days
    temp = table["temp"].to_numpy().reshape(-1, days).mean(0)
    late_summer = temp[round(0.5 * days) : round(0.75 * days)].mean()
    assert late_summer > temp[: days // 4].mean() + 3
    assert np.isfinite(table["expected_cases"].to_numpy()).all() and table["expected_cases"].to_numpy().min() > 0
    names = table["county"].to_pylist()
    assert names == sorted(names) and len(set(names)) == counties


def test_ar1_matches_the_recurrence() -> None:
    noise = np.random.default_rng(0).standard_normal((3, 400))
    for keep in (0.0, 0.6, 0.99):
        series = noise.copy()
        for t in range(1, 400):
            series[:, t] = keep * series[:, t - 1] + math.sqrt(1 - keep**2) * noise[:, t]
        np.testing.assert_allclose(outbreak._ar1(noise, keep), series, atol=1e-9)


def test_two_state_matches_the_chain() -> None:
    rng = np.random.default_rng(0)
    draw, dry = rng.random((4, 300)), rng.uniform(0.05, 0.4, (4, 300))
    chain = outbreak._two_state(draw, dry, dry + 0.4)
    for row in range(4):
        state = bool(draw[row, 0] < dry[row, 0])
        for t in range(300):
            state = bool(draw[row, t] < dry[row, t] + (0.4 if state and t else 0.0))
            assert chain[row, t] == state, f"row {row}, day {t}"


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("outbrake", {}, "did you mean 'outbreak'"),
        ("titanic", {}, "known here: outbreak, seattle-weather"),
        ("outbreak", {"county": 3}, "did you mean 'counties'"),
        ("seattle-weather", {"seed": 1}, "takes no parameters"),
        ("outbreak", {"counties": 0}, "data.sample.counties must be a whole number of at least 1, got 0"),
        ("outbreak", {"years": 2.5}, "data.sample.years must be a whole number from 1 to 7999, got 2.5"),
        ("outbreak", {"years": math.nan}, "data.sample.years must be a whole number"),
        ("outbreak", {"days": 29}, "data.sample.days must be a whole number from 30 to 365, got 29"),
        ("outbreak", {"days": 366}, "data.sample.days must be a whole number from 30 to 365, got 366"),
        ("outbreak", {"seed": -1}, "data.sample.seed must be a whole number of at least 0, got -1"),
        ("outbreak", {"seed": True}, "data.sample.seed must be a whole number"),
        ("outbreak", {"counties": "3"}, "data.sample.counties must be a whole number"),
        ("outbreak", {"counties": 1_000_000}, "ask for fewer counties or years"),
    ],
)
def test_load_sample_refuses_in_one_sentence(name: str, parameters: dict[str, float], said: str) -> None:
    with pytest.raises(DataError) as error:
        load_sample(name, parameters)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_samples_defaults_are_within_their_own_limits() -> None:
    for entry in SAMPLES.values():
        for rule in entry.parameters.values():
            assert rule.least <= rule.default <= (rule.most or rule.default)
