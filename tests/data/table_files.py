"""A small daily table, and files that are loaded or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.errors import DataError

DAILY = "date,temp,wind,cases\n2012-01-01,1,5,10\n2012-01-02,2,6,11\n2012-01-03,3,7,12\n2012-01-04,4,8,14\n"


def load(source: Path | str | list[str], **keys: Any) -> Table:
    keys = {"lookback": 2, "target": "cases", "time": {"column": "date"}} | keys
    source = str(source) if isinstance(source, Path) else source
    return load_table(DataConfig.parse({"source": source, **keys}, "data"))


def load_text(folder: Path, text: str, **keys: Any) -> Table:
    path = folder / "x.csv"
    path.write_text(text)
    return load(path, **keys)


def refusal(folder: Path, text: str, **keys: Any) -> str:
    with pytest.raises(DataError) as error:
        load_text(folder, text, **keys)
    return one_sentence(error)


def one_sentence(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert message and "\n" not in message and not message.endswith(".")
    return message
