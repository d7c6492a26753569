"""Where the other packages' interpreter is."""

from __future__ import annotations

from pathlib import Path

PYTHON = Path(__file__).resolve().parents[1] / ".venv-peers" / "bin" / "python"
MISSING = "The other packages are not here, so only our side is measured; 'make peers' installs them in .venv-peers."


def peers_python() -> Path | None:
    """The interpreter that `make peers` leaves behind when it is done; None where it is not there."""
    return PYTHON if (PYTHON.parent.parent / "ready").exists() else None
