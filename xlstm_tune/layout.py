"""Where things lie in a search folder. Imports nothing of this package."""

from __future__ import annotations

from pathlib import Path

STORAGE = "XLSTM_TUNE_STORAGE"
"""Environment variable: the folder or URI that holds searches, where --storage is not given."""
SEARCHES = "searches"
"""The folder that holds them where neither is given."""
TRACKING_URI = "XLSTM_TUNE_TRACKING_URI"
"""Environment variable: the MLflow server or database, where --tracking-uri is not given; it may hold a password."""
SPEC = "spec.yaml"
ENVIRONMENT = "environment.json"
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
PAGE = "report.html"
SUMS = "sha256.txt"
"""In a checkpoint: the checksums of its files, and what makes it a whole one."""
CHECKPOINTS = "checkpoints"
"""In a trial's folder."""
SEARCH_JOURNAL = "search.journal"
OPTUNA_JOURNAL = "optuna.journal"
LOCK = "driver.lock"
"""In the search folder: who runs it, as text. The lock itself is the operating system's and ends with its owner."""
REFIT_WISH = "refit.txt"
"""In the search folder: `wanted` from when --refit is given until the winner has been trained again."""
SPOOL = "mlflow/spool.jsonl"
"""In the search folder: what MLflow is to be told, in order."""
MLFLOW_FILES = "mlflow-artifacts"
"""Beside MLflow's database: the files of its runs."""
CHAMPION = "champion"
"""The folder of the winner, ready to be served."""
ABOUT = "champion.json"
"""In that folder: what makes it one."""


def trial_folder(search_folder: str | Path, number: int) -> Path:
    """Where a trial keeps its config and best weights."""
    return Path(search_folder) / "trials" / f"{number:05d}"


def member_folder(folder: str | Path, member: int) -> Path:
    """Where a member of a population keeps its own, below its trial's folder or checkpoint."""
    return Path(folder) / "members" / f"{member:04d}"
