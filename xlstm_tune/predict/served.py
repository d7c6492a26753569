"""The champion as an MLflow model. MLflow keeps this file beside the champion's folder, and runs it to load the model.

The registered model holds code, JSON and safetensors, nothing pickled; whoever loads it needs the package xlstm-tune.
"""

from __future__ import annotations

import logging
from typing import Any

import mlflow.models
import mlflow.pyfunc


class ChampionModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A table in the user's columns to forecasts in the user's units, as `python -m xlstm_tune.predict` makes them."""

    def load_context(self, context: Any) -> None:
        """Read the champion's folder."""
        from xlstm_tune.predict.champion import load_champion

        self.champion = load_champion(context.artifacts["champion"])

    # Without type hints: MLflow would check every request against them, once more than by the signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """model_input: a pandas DataFrame, or columns by name, or a list of rows.

        params: `level` of the intervals, and `all` for every origin. Returns a DataFrame, None where there is nothing.
        """
        from xlstm_tune.errors import UserError
        from xlstm_tune.predict.forecasts import DEFAULT_LEVEL, forecasts, source_of

        asked = params or {}
        try:
            source = source_of(_table(model_input), "the request")
            made = forecasts(self.champion, source, asked.get("level", DEFAULT_LEVEL), bool(asked.get("all", False)))
        except UserError as error:
            # MLflow answers HTTP 400 with this sentence; anything else would be a server's fault.
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(error)) from None
        for note in made.notes:
            logging.getLogger("xlstm_tune.predict").warning(note)
        answer = made.table.to_pandas()
        # Such as an interval that there is none of. A server writes None as null, and NaN as NaN, which is no JSON.
        for name in answer.columns[answer.isna().any()]:
            answer[name] = answer[name].astype(object).where(answer[name].notna(), None)
        return answer


def _table(given: Any) -> Any:
    """As an Arrow table, where an index with a name is a column, as in a Parquet file of pandas.

    Of true, false and numbers, true is 1 and false 0, as where all are one kind. A column of text and numbers is text,
    which says better than Arrow what is wrong with it.
    """
    import numpy as np
    import pandas as pd  # type: ignore[import-untyped]
    import pyarrow as pa

    from xlstm_tune.errors import DataError, first_line

    try:
        frame = given if isinstance(given, pd.DataFrame) else pd.DataFrame(given)
        levels = [name for name in frame.index.names if name is not None and name not in frame.columns]
        frame = frame.reset_index(level=levels) if levels else frame
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise ValueError(f"it has more than one column named '{twice[0]}'")
        for name in frame:
            if pd.api.types.infer_dtype(frame[name]) in ("mixed", "mixed-integer"):
                kinds = (bool, int, float, np.bool_, np.number)
                numbers = all(isinstance(cell, kinds) for cell in frame[name].dropna())
                plain = (lambda cell: cell + 0) if numbers else str  # True + 0 is 1
                frame = frame.assign(**{name: frame[name].map(plain, na_action="ignore")})
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"the request is no table ({first_line(error)}); send rows of named columns") from None


mlflow.models.set_model(ChampionModel())
