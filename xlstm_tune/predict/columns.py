"""The columns of the forecasts."""

from __future__ import annotations

from collections.abc import Sequence

from xlstm_tune.data.config import DataConfig

STEP, ORIGIN, TARGET, PREDICTED, LOWER, UPPER = "step", "origin", "target", "predicted", "lower", "upper"


def output_columns(data: DataConfig, levels: Sequence[float] = ()) -> list[dict[str, str]]:
    """Name and type of each column, in order: the user's series and time columns, then ours.

    levels: quantiles that the model forecasts, each in a column such as `q0.05`.
    A column of ours that is named like one of the user's is called `forecast_NAME`.
    """
    forecast = data.task == "forecast"
    theirs = [*(data.series if forecast else data.sequence)]
    if forecast and data.time is not None:
        theirs.append(data.time.column)
    ours = {TARGET: "string", PREDICTED: "double", LOWER: "double", UPPER: "double"}
    ours |= {f"q{level}": "double" for level in levels}
    if forecast:
        ours = {ORIGIN: "string", STEP: "long", **ours}
    columns = [{"name": name, "type": "string"} for name in theirs]
    for name, kind in ours.items():
        taken = {column["name"] for column in columns}
        columns.append({"name": f"forecast_{name}" if name in taken else name, "type": kind})
    return columns
