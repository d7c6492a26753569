"""How far a spool has been sent: `<search folder>/mlflow/state.json`. Read by the search, written by the sender."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def state_path(folder: Path) -> Path:
    return folder / "mlflow" / "state.json"


def read_state(folder: Path) -> dict[str, Any]:
    """Empty if nothing has been sent yet, or the file is damaged: then all is sent again, which is harmless."""
    try:
        state = json.loads(state_path(folder).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
