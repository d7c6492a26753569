"""Ray on this machine alone, wherever its files can lie."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xlstm_tune.errors import ResourceError, last_line

TOKEN = "~/.ray/auth_token"
"""Where Ray keeps the token that lets processes join, and makes it."""
_LONGEST_SOCKET = 107
"""Bytes of a socket's path; the kernel takes no more."""
_BELOW = 66
"""Those that Ray adds to its folder: /session_2026-11-30_14-37-40_123456_4194304/sockets/plasma_store."""


@contextmanager
def started(here: Mapping[str, float]) -> Iterator[None]:
    """Start Ray; inside, its folder can be reached. here: the machine's `CPU` and `GPU`.

    Raises ResourceError where there is no room for its sockets.
    """
    import ray

    _see_to_a_token()
    with _short_folder() as folder:
        ray.init(
            address="local",  # not a cluster that happens to run here: that is what --address is for
            num_cpus=int(here["CPU"]),
            num_gpus=int(here["GPU"]),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield


def _see_to_a_token() -> None:
    """Where Ray could neither read nor make its token, give this process and its children one of their own."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        token = Path(TOKEN).expanduser()
        token.parent.mkdir(parents=True, exist_ok=True)
        usable = os.access(token, os.R_OK) if token.exists() else os.access(token.parent, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows the home folder
        usable = False
    if not usable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _short_folder() -> Iterator[str | None]:
    """Inside, a short name of the folder for Ray's files, where its own name is too long for sockets; else None."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    if len(os.fsencode(folder)) + _BELOW <= _LONGEST_SOCKET:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        (names / "r").symlink_to(folder.absolute())
    except OSError as error:
        raise ResourceError(
            f"Ray keeps sockets below {folder}, whose name is too long for that, and /tmp cannot lead there "
            f"({last_line(error)}); set RAY_TMPDIR to a folder with a shorter name"
        ) from None
    try:
        yield str(names / "r")
    finally:
        shutil.rmtree(names, ignore_errors=True)  # the link; what it leads to stays, as Ray leaves it elsewhere
