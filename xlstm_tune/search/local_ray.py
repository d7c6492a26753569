"""Ray on this machine alone, wherever its files can lie."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from xlstm_tune.errors import ResourceError, last_line
from xlstm_tune.search.placement.limits import groups
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
_THREADS, _TRIAL_THREADS = 190, 25
"""That Ray, MLflow's writer and the driver have with two processors, and that each trial at a time has; measured: with
fewer to be had Ray's start waits for ever, or libraries end its processes. More processors take some more."""


def check_room(concurrent: int) -> None:
    """Raise ResourceError where Ray could not start: its folder takes no files, or threads or address space are short.

    concurrent: trials at a time.
    """
    _object_store()
    folder = _folder()
    there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        why = "where nothing can be written" if os.path.isdir(there) else "which is no folder"
        below = "" if there == folder else f"below {there}, "
        raise ResourceError(
            f"Ray keeps its files in {folder}, {below}{why}; set RAY_TMPDIR to a folder that takes them"
        )
    need = _THREADS + _TRIAL_THREADS * concurrent
    for limit, used, where in _thread_limits():
        if limit - used < need:
            raise ResourceError(
                f"{where} allows {limit:,} processes and threads, of which {used:,} are taken, and a search needs "
                f"{need:,} more for {concurrent:,} trial{'' if concurrent == 1 else 's'} at a time, and on many "
                "processors some hundred besides; raise the limit, or lower resources.max_concurrent"
            )


def _thread_limits() -> Iterator[tuple[int, int, str]]:
    """Most processes and threads, those that there are, and who says so."""
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if most != resource.RLIM_INFINITY and os.geteuid() != 0:  # root may have any number
        yield most, sum(_threads_of(os.getuid())), "this user's limit (ulimit -u)"
    for group in groups("pids"):
        with suppress(OSError, ValueError):  # not there, or "max"
            most, used = (int(_read(f"{group}/pids.{what}")) for what in ("max", "current"))
            yield most, used, f"the limit of this process's control group ({group}/pids.max)"


def _threads_of(user: int) -> Iterator[int]:
    """Threads of each process of a user, as far as they can be seen."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # it has ended
            if process.stat().st_uid == user:
                yield sum(1 for _ in (process / "task").iterdir())


def _read(path: str) -> str:
    return Path(path).read_text().strip()


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


def _folder() -> Path:
    """Where Ray keeps its files; it makes what is not there."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp").absolute() / "ray"


@contextmanager
def _short_folder() -> Iterator[str]:
    """Inside, the folder for Ray's files, by a short name where its own is too long for sockets.

    Ray is told it in any case: of a variable that is set to nothing it would make the current folder.
    """
    folder = _folder()
    if len(os.fsencode(folder)) + _BELOW <= _LONGEST_SOCKET:
        yield str(folder)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        (names / "r").symlink_to(folder)
    except OSError as error:
        raise ResourceError(
            f"Ray keeps sockets below {folder}, whose name is too long for that, and /tmp cannot lead there "
            f"({last_line(error)}); set RAY_TMPDIR to a folder with a shorter name"
        ) from None
    try:
        yield str(names / "r")
    finally:
        shutil.rmtree(names, ignore_errors=True)  # the link; what it leads to stays, as Ray leaves it elsewhere
