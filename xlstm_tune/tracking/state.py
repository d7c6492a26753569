"""How far a spool has been sent: `<search folder>/mlflow/state.json`. Read by the search, written by the sender."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from xlstm_tune.tracking.spool import spool_path

_FIELDS = {"uri": str, "offset": int, "runs": dict, "refused": int, "reasons": list, "error": str}


def state_path(folder: Path) -> Path:
    return folder / "mlflow" / "state.json"


def read_state(folder: Path) -> dict[str, Any]:
    """Empty if nothing has been sent yet, or the file is damaged: then all is sent again, which is harmless."""
    try:
        state = json.loads(state_path(folder).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in _FIELDS.items()):
        return {}
    return state if _begins_line(spool_path(folder), state["offset"]) else {}


def _begins_line(spool: Path, offset: int) -> bool:
    """False where a machine that went down has lost the end of a spool that had been sent already."""
    if offset <= 0:
        return offset == 0
    with spool.open("rb") as file:
        if offset > file.seek(0, os.SEEK_END):
            return False
        file.seek(offset - 1)
        return file.read(1) == b"\n"
