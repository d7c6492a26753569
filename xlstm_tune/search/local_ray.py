"""Ray on this machine alone, wherever its files can lie."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xlstm_tune.errors import ResourceError, last_line
from xlstm_tune.search.placement.resources import memory_mib

TOKEN = "~/.ray/auth_token"
"""Where Ray keeps the token that lets processes join, and makes it."""
_LONGEST_SOCKET = 107
"""Bytes of a socket's path; the kernel takes no more."""
_BELOW = 66
"""Those that Ray adds to its folder: /session_2026-11-30_14-37-40_123456_4194304/sockets/plasma_store."""
_SHARE = 0.3
"""Of the memory that Ray maps for its object store unless told otherwise."""
_BESIDE_MIB = 4096
"""Address space that the largest process takes beside that, and some to spare: a worker with torch, or the raylet."""
_LEAST_MIB = 256
"""Of the object store, which the raylet maps twice."""


@contextmanager
def started(here: Mapping[str, float]) -> Iterator[None]:
    """Start Ray; inside, its folder can be reached. here: the machine's `CPU` and `GPU`.

    Raises ResourceError where there is no room for its sockets or its address space.
    """
    import ray

    store = _object_store()
    _see_to_a_token()
    with _short_folder() as folder:
        ray.init(
            address="local",  # not a cluster that happens to run here: that is what --address is for
            num_cpus=int(here["CPU"]),
            num_gpus=int(here["GPU"]),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=store,
            _temp_dir=folder,
        )
        yield


def _object_store() -> int | None:
    """Bytes of Ray's object store where `ulimit -v` has no room for what Ray would map: it hangs then; else None."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    room = (limit / 2**20 - _BESIDE_MIB) / 2
    if limit == resource.RLIM_INFINITY or room >= _SHARE * memory_mib():
        return None
    if room < _LEAST_MIB:
        raise ResourceError(
            f"the address space of each process is limited to {limit / 2**20:,.0f} MiB (ulimit -v), and Ray needs "
            f"{_BESIDE_MIB + 2 * _LEAST_MIB:,} MiB; raise the limit"
        )
    return int(room) * 2**20


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
