"""A simulated outbreak: counties × years of daily weather, each year ending in one count of cases.

The mechanism is the "grow and blow" account of valley fever (Comrie 2005; Gorris et al. 2018): a wet season early in
the year lets a soil fungus grow, then hot, dry, windy days later in the same year blow its spores about. Rain that
comes late does not help, so a model has to know when things happened, not only how much of them there was:

    growth = R / (R + R50)        R = mean of rain_3h over the growing season (5 to 40 % of the year), mm/day
    blow   = D / (D + D50)        D = mean over the blowing season (50 to 90 %) of hot · dry · (wind_speed / 4)²
                                  hot = sigmoid((temp − 22) / 2),  dry = sigmoid((45 − humidity) / 5)
    log mean = log(rate · population) + b_g·g + b_b·b + b_x·g·b       g, b: growth and blow, standardised
    cases ~ negative binomial with that mean and variance mean + mean² / DISPERSION

The mean depends on nothing but the columns of the table, so it is the best prediction there is, and its error is the
best possible one. `population` is given as plain inhabitants, not as a logarithm: the mean is proportional to it, so a
linear baseline can use it as it is, and LSTMs trained on either did equally well (no difference beyond their spread
over seeds).

Shapes: C counties, Y years, T days of a year.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[np.float64]

FIRST_YEAR = 2001
LONGEST_YEAR = 365
FEATURES = (
    "temp",
    "visibility",
    "dew_point",
    "feels_like",
    "temp_min",
    "temp_max",
    "pressure",
    "humidity",
    "wind_speed",
    "wind_deg",
    "wind_gust",
    "rain_1h",
    "rain_3h",
    "snow_1h",
    "snow_3h",
    "clouds_all",
    "weather_id",
    "weather_main",
    "weather_description",
)
"""The daily weather columns: °C, m, hPa, %, m/s, degrees, mm, as OpenWeather's metric units have them."""

CONDITIONS = {
    201: ("Thunderstorm", "thunderstorm with rain"),
    300: ("Drizzle", "light intensity drizzle"),
    500: ("Rain", "light rain"),
    501: ("Rain", "moderate rain"),
    502: ("Rain", "heavy intensity rain"),
    600: ("Snow", "light snow"),
    601: ("Snow", "snow"),
    701: ("Mist", "mist"),
    741: ("Fog", "fog"),
    761: ("Dust", "dust"),
    800: ("Clear", "clear sky"),
    801: ("Clouds", "few clouds"),
    802: ("Clouds", "scattered clouds"),
    803: ("Clouds", "broken clouds"),
    804: ("Clouds", "overcast clouds"),
}
"""weather_id → (weather_main, weather_description)."""

GROWING = (0.05, 0.4)
BLOWING = (0.5, 0.9)
RAIN_50 = 1.8
DUST_50 = 0.33
RATE = 50e-5
DISPERSION = 40.0


def simulate(counties: int = 48, years: int = 22, days: int = LONGEST_YEAR, seed: int = 0) -> pa.Table:
    """Counties × years × days rows, one per day, in the order county, year, day.

    Columns: county (text), year, day (1 …), date (date32; 29 February is left out), the 19 of `FEATURES`, population
    (inhabitants, fixed per county), cases (of the year, the same on each of its days), expected_cases (their mean given
    weather and population). `days` below 365 makes a shorter year from 1 January with all its seasons in it.
    The same arguments give the same table, bit for bit.
    """
    rng = np.random.default_rng(seed)
    population = _round(np.clip(rng.lognormal(np.log(150_000), 0.5, counties), 20_000, 1_000_000), -2)
    weather = _weather(rng, counties, years, days)
    mean = expected_cases(
        weather["rain_3h"], weather["temp"], weather["humidity"], weather["wind_speed"], population[:, None]
    )
    cases = rng.negative_binomial(DISPERSION, DISPERSION / (DISPERSION + mean))  # [C, Y]

    year = FIRST_YEAR + np.arange(years)
    width = max(2, len(str(counties - 1)))
    names = pa.array([f"county_{number:0{width}d}" for number in range(counties)])
    columns: dict[str, pa.Array] = {
        "county": names.take(pa.array(np.repeat(np.arange(counties), years * days))),
        "year": pa.array(np.tile(np.repeat(year, days), counties)),
        "day": pa.array(np.tile(np.arange(1, days + 1), counties * years)),
        "date": pa.array(np.tile(_dates(year, days).ravel(), counties)),
    }
    codes = weather.pop("weather_id").ravel().astype(np.int64)
    known = np.array(sorted(CONDITIONS))
    place = pa.array(np.searchsorted(known, codes))
    texts = {
        "weather_main": pa.array([CONDITIONS[int(code)][0] for code in known]).take(place),
        "weather_description": pa.array([CONDITIONS[int(code)][1] for code in known]).take(place),
        "weather_id": pa.array(codes),
    }
    for name in FEATURES:
        columns[name] = texts[name] if name in texts else pa.array(weather[name].ravel().astype(np.float32))
    columns["population"] = pa.array(np.repeat(population.astype(np.int64), years * days))
    columns["cases"] = pa.array(np.repeat(cases.ravel(), days))
    columns["expected_cases"] = pa.array(np.repeat(mean.ravel(), days))
    return pa.table(columns)


def expected_cases(rain_3h: Array, temp: Array, humidity: Array, wind_speed: Array, population: Array) -> Array:
    """Mean of the year's cases given its weather, by the equations above.

    The four weather arrays are [..., T] in the table's units, the population broadcasts to [...]; returns [...].
    """
    days = rain_3h.shape[-1]

    def season(start: float, end: float) -> slice:
        return slice(round(start * days), round(end * days))

    rain = rain_3h[..., season(*GROWING)].mean(-1)
    late = season(*BLOWING)
    hot_dry = _sigmoid((temp[..., late] - 22) / 2) * _sigmoid((45 - humidity[..., late]) / 5)
    dust = (hot_dry * (wind_speed[..., late] / 4) ** 2).mean(-1)
    # Standardised by constants near the default sample's own, so that a county's mean does not depend on the others.
    growth = (rain / (rain + RAIN_50) - 0.5) / 0.2
    blow = (dust / (dust + DUST_50) - 0.5) / 0.2
    return np.asarray(RATE * population * np.exp(0.45 * growth + 0.35 * blow + 0.2 * growth * blow))


def _weather(rng: np.random.Generator, counties: int, years: int, days: int) -> dict[str, Array]:
    """Daily weather, [C, Y, T] each, rounded as the table shows it, so that the mean is a function of the table.

    Each quantity is a county's climate + the season + a slow anomaly (months; half of it common to all counties)
    + day-to-day noise. Time runs on over the new year.
    """
    shape = (counties, years * days)
    season = 2 * np.pi * (np.arange(years * days) % days) / days  # 0 … 2π over the year

    def climate(low: float, high: float) -> Array:
        return rng.uniform(low, high, (counties, 1))

    def noise(keep: float) -> Array:
        return _ar1(rng.standard_normal(shape), keep)

    def anomaly() -> Array:
        keep = float(np.exp(-1 / (0.3 * days)))
        common = _ar1(rng.standard_normal((1, years * days)), keep)
        return np.asarray((common + _ar1(rng.standard_normal(shape), keep)) / np.sqrt(2))

    # Two wet spells a year: one in spring, which feeds the fungus, and one in autumn, which does not.
    spell = np.exp(3 * (np.cos(season - 1.2) - 1)) + 0.8 * np.exp(3 * (np.cos(season - 5.9) - 1))
    wetness = anomaly()
    to_wet = np.clip(climate(0.7, 1.3) * (0.04 + 0.3 * spell) * np.exp(0.7 * wetness), 0.01, 0.6)
    wet = _two_state(rng.random(shape), to_wet, to_wet + 0.3)
    amount = (0.1 + rng.gamma(1.5, 3.0 * climate(0.7, 1.3) * np.exp(0.4 * wetness))) * wet

    clouds = 100 * _sigmoid(1.3 * noise(0.5) - 0.7 + 0.5 * spell)
    clouds = np.where(wet, 60 + 0.4 * clouds, clouds)
    warmth = -np.cos(season - 0.8)
    temp = climate(13, 20) + climate(7, 11) * warmth + 2.0 * anomaly() + 2.3 * noise(0.75) - 2.0 * wet
    swing = climate(9, 15) * (1 - 0.5 * clouds / 100)
    spread = climate(9, 14) + 5 * warmth + 3.0 * anomaly() + 2.0 * noise(0.6) - 6.0 * wet - 0.03 * clouds
    # A softplus keeps the dew point below the temperature; above 26 °C it is hardly ever seen outdoors.
    dew_point = np.minimum(temp - 2 * np.logaddexp(0, spread / 2), 26.0)
    temp, dew_point = _round(temp, 2), _round(dew_point, 2)
    humidity = np.clip(_round(100 * vapour_pressure(dew_point) / vapour_pressure(temp)), 1, 100)

    storm = noise(0.6)
    pressure = 1016 - 2.5 * warmth + 4.0 * storm - 5.0 * wet
    wind_speed = _round(climate(2.8, 4.5) * np.exp(0.3 * anomaly() - 0.2 * storm + 0.2 * noise(0.3)) + 0.8 * wet, 2)
    wind_gust = wind_speed * (1.2 + rng.gamma(2.0, 0.12, shape))
    wind_deg = _round(climate(0, 360) + 50 * noise(0.7)) % 360

    cold = temp < 0.5
    rain_3h, snow_3h = np.where(cold, 0, amount), np.where(cold, amount, 0)
    wettest_hour = rng.uniform(0.4, 0.9, shape)
    weather_id = _condition(rain_3h * wettest_hour, snow_3h, temp, humidity, wind_speed, clouds)
    haze = rng.uniform(0.5, 1.0, shape)
    visibility = 10_000 * np.exp(-0.15 * rain_3h * wettest_hour - 0.6 * snow_3h)
    visibility = np.where(weather_id == 761, 5_000 * haze, visibility)
    visibility = np.where(weather_id == 701, 4_000 * haze, np.where(weather_id == 741, 900 * haze, visibility))

    decimals2 = {
        "temp": temp,
        "dew_point": dew_point,
        # Steadman's apparent temperature (1994): vapour warms, wind cools.
        "feels_like": temp + 0.33 * vapour_pressure(dew_point) - 0.7 * wind_speed - 4,
        "temp_min": temp - 0.45 * swing,
        "temp_max": temp + 0.55 * swing,
        "wind_speed": wind_speed,
        "wind_gust": wind_gust,
        "rain_1h": rain_3h * wettest_hour,
        "rain_3h": rain_3h,
        "snow_1h": snow_3h * wettest_hour,
        "snow_3h": snow_3h,
    }
    whole = {
        "visibility": np.maximum(visibility, 50),
        "pressure": pressure,
        "humidity": humidity,
        "wind_deg": wind_deg,
        "clouds_all": clouds,
        "weather_id": weather_id,
    }
    rounded = {name: _round(value, 2) for name, value in decimals2.items()}
    rounded |= {name: _round(value) for name, value in whole.items()}
    # What the table holds is float32; the mean must see the same numbers.
    shown = {name: value.astype(np.float32).astype(np.float64) for name, value in rounded.items()}
    return {name: value.reshape(counties, years, days) for name, value in shown.items()}


def vapour_pressure(dew_point: Array) -> Array:
    """hPa over water at a dew point in °C (at the air temperature: of saturated air), by Magnus (Alduchov 1996)."""
    return np.asarray(6.1094 * np.exp(17.625 * dew_point / (243.04 + dew_point)))


def _condition(rain_1h: Array, snow_3h: Array, temp: Array, humidity: Array, wind_speed: Array, clouds: Array) -> Array:
    """The weather_id of each day: the first rule that holds."""
    rules = (
        (601, snow_3h > 5),
        (600, snow_3h > 0),
        (201, (rain_1h > 4) & (temp > 17)),
        (502, rain_1h > 7.6),
        (501, rain_1h > 2.5),
        (500, rain_1h > 0.4),
        (300, rain_1h > 0),
        (741, (humidity >= 92) & (wind_speed < 3)),
        (701, humidity >= 88),
        (761, (humidity < 35) & (temp > 22) & (wind_speed > 6)),
        (800, clouds < 11),
        (801, clouds < 25),
        (802, clouds < 50.5),
        (803, clouds < 84.5),
    )
    return np.asarray(np.select([holds for _, holds in rules], [code for code, _ in rules], 804), dtype=np.float64)


def _ar1(noise: Array, keep: float) -> Array:
    """Stationary AR(1) series of unit variance along the last axis from unit white noise, x = keep·x₋₁ + √(1−keep²)·e.

    By doubling: after the pass with shift 2ⁿ each value is the sum over its last 2ⁿ⁺¹ shocks, so a few whole-array
    passes take the place of a loop over the days.
    """
    series = noise * np.sqrt(1 - keep**2)
    series[:, 0] = noise[:, 0]
    shift = 1
    while shift < series.shape[1] and keep > 1e-12:
        series[:, shift:] += keep * series[:, :-shift]
        shift, keep = 2 * shift, keep**2
    return np.asarray(series)


def _two_state(draw: Array, from_dry: Array, from_wet: Array) -> NDArray[np.bool_]:
    """A two-state Markov chain from uniform draws; the probabilities are of a wet day, from_dry ≤ from_wet.

    A draw below from_dry makes the day wet and one above from_wet makes it dry whatever the day before was; between the
    two the day is as the day before. So each day has the state of the last day that was decided alone.
    """
    decided = (draw < from_dry) | (draw >= from_wet)
    decided[:, 0] = True
    last = np.maximum.accumulate(np.where(decided, np.arange(draw.shape[1]), 0), axis=1)
    return np.asarray(np.take_along_axis(draw < from_dry, last, axis=1))


def _dates(year: NDArray[np.int64], days: int) -> NDArray[np.datetime64]:
    """The calendar dates [Y, T] of the first days of each year, 29 February left out."""
    day = np.arange(days)[None, :]
    leap = ((year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0)))[:, None]
    start = (year - 1970).astype("datetime64[Y]").astype("datetime64[D]")[:, None]
    return np.asarray(start + (day + (leap & (day >= 59))))


def _sigmoid(value: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-value)))


def _round(value: Array, decimals: int = 0) -> Array:
    return np.asarray(np.round(value, decimals), dtype=np.float64)
