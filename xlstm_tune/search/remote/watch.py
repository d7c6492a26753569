"""Watching a search that runs on the head, and bringing home what it has found."""

from __future__ import annotations

import codecs
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from xlstm_tune.errors import ResourceError, StorageError, first_line
from xlstm_tune.search.remote.reach import Head, Unreachable

FETCHED = "fetched.json"
"""In a search folder: that it is a copy, and of which cluster."""
PATIENCE = 600.0
"""Seconds that a lost connection is tried again; the search goes on meanwhile."""
LONGEST_PAUSE = 20.0
_ABANDONED = 86_400.0
"""Seconds after which what another fetch has begun is taken for that of one that was killed."""


def watch(head: Head, name: str, offset: int, console: Console) -> dict[str, Any]:
    """Show the log from a byte on until the search has ended. Returns what `look` says then.

    Raises ResourceError when the head cannot be reached for ten minutes; KeyboardInterrupt leaves the search alone.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    lost: float | None = None
    while True:
        try:
            with _opened(head, "follow", name, str(offset)) as (process, output, errors):
                while chunk := output.read1(65_536):  # type: ignore[attr-defined]
                    offset += len(chunk)
                    lost = None
                    console.file.write(decoder.decode(chunk))
                    console.file.flush()
                head.check(process.wait(), errors.read(), "follow")
            found: dict[str, Any] = head.ask("look", name)
            if found["state"] != "running":
                return found
        except Unreachable as problem:
            if lost is None:
                lost = time.monotonic()
                console.print(
                    f"{problem}; trying again, the search goes on", highlight=False, markup=False, soft_wrap=True
                )
            waited = time.monotonic() - lost
            if waited > PATIENCE:
                raise ResourceError(
                    f"{problem}, for {PATIENCE / 60:.0f} minutes; the search goes on there as long as the head lives, "
                    "and the same command shows it again"
                ) from None
            time.sleep(min(LONGEST_PAUSE, 1 + waited / 4))


@contextmanager
def _opened(head: Head, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """As `Head.open`, with its output and its errors; the connection ends with the block."""
    process = head.open(*words)
    assert process.stdout is not None and process.stderr is not None
    try:
        yield process, process.stdout, process.stderr
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def check_copy(folder: Path, cluster: str) -> None:
    """Raise StorageError when the place of the copy is taken by another search than this cluster's."""
    if not folder.exists():
        return
    if (of := copied_from(folder)) is None:
        raise StorageError(
            f"{folder} holds a search of this machine, so that the results of the cluster '{cluster}' cannot lie "
            "there; choose another --name, or another --storage for the copy"
        )
    if of["cluster"] != cluster:
        raise StorageError(
            f"{folder} is the copy of a search on the cluster '{of['cluster']}', not on '{cluster}'; choose another "
            "--name, or another --storage for the copy"
        )


def check_not_a_copy(folder: Path) -> None:
    """Raise StorageError when a search to be resumed here lies on a cluster."""
    if (of := copied_from(folder)) is not None:
        raise StorageError(
            f"{folder} is a copy of the results; the search itself lies on the cluster '{of['cluster']}', and goes on "
            f"there with --resume {folder.name} --cluster {of['file']}"
        )


def copied_from(folder: Path) -> dict[str, str] | None:
    """The `cluster` that a folder was fetched from and its `file`; None when it was not."""
    try:
        found = json.loads((folder / FETCHED).read_bytes())
        return {"cluster": str(found["cluster"]), "file": str(found["file"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def fetch(head: Head, folder: Path, cluster: str, file: str) -> None:
    """Copy report, results and champion of a search into a folder, which is replaced whole.

    Raises Unreachable or ResourceError, or StorageError as `check_copy` does and where they cannot be written, and
    leaves what was there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        with tempfile.TemporaryDirectory(prefix=_prefix(folder), dir=folder.parent, ignore_cleanup_errors=True) as own:
            whole, before = Path(own) / folder.name, Path(own) / ".before"
            whole.mkdir()  # with the rights of any folder, which its parent lacks
            _unpack(head, whole)
            (whole / FETCHED).write_text(json.dumps({"cluster": cluster, "file": file}))
            check_copy(folder, cluster)  # a search of this machine may have begun there while the other was watched
            if copied_from(folder) is not None:
                with suppress(FileNotFoundError):  # another terminal fetches the same, and has put it aside
                    folder.rename(before)
            try:
                whole.rename(folder)
            except OSError:
                if not folder.exists():
                    with suppress(FileNotFoundError):
                        before.rename(folder)
                    raise
                check_copy(folder, cluster)  # the other was faster, unless this raises
    except OSError as error:
        raise StorageError(
            f"the results of '{folder.name}' cannot be written into {folder.parent} "
            f"({error.strerror or first_line(error)}); make room or give yourself the right to, then the same command "
            "fetches them again"
        ) from None


def _unpack(head: Head, place: Path) -> None:
    """Take in what the head hands out of the search that the folder is named after."""
    with _opened(head, "pack", place.name) as (process, output, errors):
        damage: Exception | None = None
        try:
            with tarfile.open(fileobj=output, mode="r|") as archive:
                archive.extractall(place, filter="data")
        except (tarfile.TarError, EOFError) as error:  # it ended early: the exit code says why
            damage = error
            output.read()
        head.check(process.wait(), errors.read(), "pack")
    if damage is not None:
        raise ResourceError(f"the results of '{place.name}' arrived damaged ({damage}); fetch them again")


def _prefix(folder: Path) -> str:
    """How the names of folders begin that results are fetched into before they take this one's place."""
    return f".{folder.name}.fetched"


def _clear(folder: Path) -> None:
    """Away with what fetches that were killed have left."""
    for one in folder.parent.iterdir():
        if one.name.startswith(_prefix(folder)):
            with suppress(OSError):  # its fetch has ended this moment
                if time.time() - one.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(one, ignore_errors=True)
