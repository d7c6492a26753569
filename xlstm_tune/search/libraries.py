"""How Ray, Optuna and torch behave in a search."""

from __future__ import annotations

import logging
import os
import warnings

from xlstm_tune import WORKER


def set_environment() -> None:
    """Set what the libraries read from the environment, as they are loaded: to be called before."""
    defaults = {
        WORKER: "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # per-trial CSV, JSON and TensorBoard files: 77 ms a trial
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "TUNE_WARN_THRESHOLD_S": "10",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # stopping.py has one; Ray would take the first Ctrl-C from it
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # snapshots of Ray's own state, which nothing here reads
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        # torch's idle OpenMP threads would spin on the processors that a trial's kernels have threads of their own for.
        "OMP_WAIT_POLICY": "PASSIVE",
        # A worker that had no network for 20 s closes its side of a connection, which this side would notice after 7
        # minutes, and wait for an epoch's answer until then.
        "RAY_grpc_client_keepalive_time_ms": "20000",
        "RAY_grpc_client_keepalive_timeout_ms": "20000",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def quiet() -> None:
    """Silence what the libraries say to developers: to be called when Ray is loaded, which then sets its loggers up."""
    warnings.filterwarnings("ignore", module=r"(ray|optuna)\b.*")
    # matplotlib tells where it keeps its cache when the home folder takes none.
    for name in ("ray", "ray.train", "optuna", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray prints a traceback for every lost worker; the search tells the reason itself.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
