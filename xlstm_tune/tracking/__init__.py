"""MLflow tracking that a search never waits for.

The search appends events to a spool file (`Spool`); a process of its own (`Writer`) reads them and sends them
to MLflow in batches, retrying for as long as the server is away. What is left when a search ends or dies is
sent by `python -m xlstm_tune.tracking sync NAME`, as often as one likes: nothing arrives twice.

MLflow is imported by what sends, the writer process and `sync`; importing this package costs nothing.
"""

from xlstm_tune.tracking.events import VALIDATION_END
from xlstm_tune.tracking.spool import Spool, ended_in_order
from xlstm_tune.tracking.uri import check_tracking_uri, default_uri, hide_credentials, python_command, ui_command
from xlstm_tune.tracking.writer import Unsent, Writer, remembered_uri, sync, unsent

__all__ = [
    "VALIDATION_END",
    "Spool",
    "Unsent",
    "Writer",
    "check_tracking_uri",
    "default_uri",
    "ended_in_order",
    "hide_credentials",
    "python_command",
    "remembered_uri",
    "sync",
    "ui_command",
    "unsent",
]
