"""Watching a search that runs on the head, and bringing home what it has found."""

from __future__ import annotations

import codecs
import contextlib
import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from xlstm_tune.errors import ResourceError, StorageError
from xlstm_tune.search.remote.reach import Head, Unreachable

FETCHED = "fetched.json"
"""In a search folder: that it is a copy, and of which cluster."""
PATIENCE = 600.0
"""Seconds that a lost connection is tried again; the search goes on meanwhile."""
LONGEST_PAUSE = 20.0


def watch(head: Head, name: str, offset: int, console: Console) -> dict[str, Any]:
    """Show the log from a byte on until the search has ended. Returns what `look` says then.

    Raises ResourceError when the head cannot be reached for ten minutes; KeyboardInterrupt leaves the search alone.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    lost: float | None = None
    while True:
        process = head.open("follow", name, str(offset))
        assert process.stdout is not None and process.stderr is not None
        try:
            while chunk := process.stdout.read1(65_536):  # type: ignore[attr-defined]
                offset += len(chunk)
                lost = None
                console.file.write(decoder.decode(chunk))
                console.file.flush()
            head.check(process.wait(), process.stderr.read(), "follow")
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
        finally:
            with contextlib.suppress(ProcessLookupError):
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

    Raises Unreachable or ResourceError, or StorageError as `check_copy` does, and leaves what was there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.fetched")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        process = head.open("pack", folder.name)
        assert process.stdout is not None and process.stderr is not None
        damage: Exception | None = None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(unfinished, filter="data")
        except (tarfile.TarError, EOFError) as error:  # it ended early: the exit code says why
            damage = error
            process.stdout.read()
        head.check(process.wait(), process.stderr.read(), "pack")
        if damage is not None:
            raise ResourceError(f"the results of '{folder.name}' arrived damaged ({damage}); fetch them again")
        (unfinished / FETCHED).write_text(json.dumps({"cluster": cluster, "file": file}))
        check_copy(folder, cluster)  # a search of this machine may have begun there while the other was watched
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
