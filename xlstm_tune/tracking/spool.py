"""The spool: what a search wants tracked, as JSON lines in `<search folder>/mlflow/spool.jsonl`.

Writing an event is one append to a local file (about 10 µs), whatever the tracking server does. Lines are
never changed; how far they have been sent is the writer's business (`mlflow/state.json`).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xlstm_tune.errors import StorageError, TrackingError
from xlstm_tune.layout import SPOOL
from xlstm_tune.lines import cut_torn_line
from xlstm_tune.tracking.events import STATUSES, KnownRun, known_runs
from xlstm_tune.tracking.uri import default_uri, hide_credentials

Scalar = str | int | float | bool | None
VERSION = 2
_LOCK_SECONDS = 0.5  # another process may look for a moment whether the spool is in use


@dataclass(frozen=True)
class Address:
    """Whose events these are and where they go: `<search folder>/mlflow/spool.json`."""

    search: str  # unique over all searches of a server; the tag by which a search finds its own runs again
    experiment: str
    uri: str  # without credentials
    has_credentials: bool  # whether the real URI had some, so that `uri` alone cannot be used
    own: bool = False  # it is the database of the storage folder that the search lies in, wherever that is by now
    version: int = VERSION


class Spool:
    """The search's side. One process writes; opening an existing spool continues it.

    Raises StorageError if another process has the spool open, i.e. the search is already running, and
    TrackingError if a newer program has written it.
    """

    def __init__(self, folder: Path, uri: str, experiment: str = "xlstm_tune") -> None:
        self.folder = folder.absolute()
        self.path = spool_path(folder)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: each event is one write(), which survives this process being killed.
        self._file = self.path.open("ab", buffering=0)
        self._torn = False  # whether the file ends in half a line that could not be taken back
        try:
            if not try_lock(self._file.fileno(), _LOCK_SECONDS):
                raise StorageError(f"the search in {folder} is running in another process; wait for it or stop it")
            old = read_address(folder) if address_path(folder).exists() else None
            cut_torn_line(self.path)
            shown = hide_credentials(uri)
            search = old.search if old else self._told() or f"{folder.name}-{uuid.uuid4().hex[:12]}"
            own = uri == default_uri(self.folder.parent)
            self.address = Address(search, experiment, shown, shown != uri, own)
            write_json(address_path(folder), asdict(self.address))
        except BaseException:
            self._file.close()
            raise

    def search_started(
        self, name: str, params: Mapping[str, Scalar], tags: Mapping[str, str], artifacts: Iterable[Path] = ()
    ) -> None:
        """The parent run, named `name`. Said again by a resume, it reopens the run; its params stay as they were."""
        told = {"params": dict(params), "tags": dict(tags), "artifacts": self._paths(artifacts)}
        self._add("search_started", name=name, search=self.address.search, **told)

    def trial_started(self, number: int, name: str, params: Mapping[str, Scalar], tags: Mapping[str, str]) -> None:
        """A child run for trial `number`; said again after an interruption, it continues the same run."""
        self._add("trial_started", number=number, name=name, params=dict(params), tags=dict(tags))

    def epoch(self, number: int, step: int, metrics: Mapping[str, float], timestamp: float | None = None) -> None:
        """One point on each metric's curve. `timestamp`: seconds since 1970, None for now.

        One event per step: a trial that repeats steps after an interruption does not draw its curves twice.
        """
        when = _now() if timestamp is None else round(timestamp * 1000)
        self._add("epoch", number=number, step=step, metrics=_floats(metrics), t=when)

    def trial_ended(
        self,
        number: int,
        status: str,
        reason: str = "",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Iterable[Path] = (),
    ) -> None:
        """Close the child run. `status`: completed, pruned, failed, duplicate or interrupted.

        `metrics` need names of their own (not those of the curves, which they would lengthen by a point).
        Files and folders in `artifacts` must stay until they are sent.
        """
        _known_status(status)
        self._add(
            "trial_ended",
            number=number,
            status=status,
            reason=reason,
            metrics=_floats(metrics or {}),
            tags=dict(tags or {}),
            artifacts=self._paths(artifacts),
        )

    def metrics(
        self, metrics: Mapping[str, float], trial: int | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Single figures for a trial that may have ended already (its test scores), or for the search (None)."""
        self._add("metrics", number=trial, metrics=_floats(metrics), tags=dict(tags or {}))

    def artifact(self, path: Path, where: str = "", trial: int | None = None) -> None:
        """A file or folder of the search (or of `trial`), put into the artifact folder `where`."""
        self._add("artifact", number=trial, artifacts=self._paths([path]), where=where)

    def table(self, name: str, columns: Mapping[str, Sequence[Scalar]], trial: int | None = None) -> None:
        """A table that the MLflow UI shows, kept as artifact `<name>.json`; said again, it replaces the old one."""
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"table '{name}' needs columns of one length, got lengths {sorted(lengths)}")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self._add("table", number=trial, name=name, columns=list(columns), rows=rows)

    def model(self, path: Path, name: str) -> None:
        """A champion's folder, to be registered as a new version of the model `name`, which becomes its champion.

        Said again of the same champion, it changes nothing. The folder must stay until it is sent.
        """
        self._add("model", name=name, where=self._paths([path])[0])

    def search_ended(
        self, status: str, metrics: Mapping[str, float] | None = None, artifacts: Iterable[Path] = ()
    ) -> None:
        """Close the parent run. `status`: completed, failed or interrupted."""
        _known_status(status)
        self._add("search_ended", status=status, metrics=_floats(metrics or {}), artifacts=self._paths(artifacts))

    def known(self) -> dict[int | None, KnownRun]:
        """What the spool says of each trial, and of the search itself (None), in this part of the search or before."""
        return known_runs(self.path)

    def _told(self) -> str | None:
        """Whose events these are, as the spool itself says: its address file may be lost."""
        search = self.known().get(None)
        return search.search if search else None

    def close(self) -> None:
        """Give the spool up; nothing is lost by not calling it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, event: str, **fields: Any) -> None:
        line = json.dumps({"e": event, "t": _now(), **fields}, default=_plain) + "\n"
        self._append((b"\n" if self._torn else b"") + line.encode())

    def _append(self, content: bytes) -> None:
        """All of it or nothing: a disk that is nearly full may take a part only, without an error."""
        before, torn = os.fstat(self._file.fileno()).st_size, self._torn
        written = 0
        try:
            while written < len(content):
                written += self._file.write(content[written:])
        except BaseException:
            if written:
                self._torn = True
                os.ftruncate(self._file.fileno(), before)  # no reader has seen it: only whole lines are read
                self._torn = torn
            raise
        self._torn = False

    def _paths(self, paths: Iterable[Path]) -> list[str]:
        """Relative to the search folder where they lie in it, so that a folder that was moved can still be synced."""
        absolute = [Path(path).absolute() for path in paths]
        return [str(p.relative_to(self.folder)) if p.is_relative_to(self.folder) else str(p) for p in absolute]


def spool_path(folder: Path) -> Path:
    return folder / SPOOL


def address_path(folder: Path) -> Path:
    return folder / "mlflow" / "spool.json"


def read_address(folder: Path) -> Address:
    """Raises TrackingError if the folder holds no spool, one of a newer program, or is closed to us."""
    path = address_path(folder)
    try:
        raw = json.loads(path.read_text())
        version = raw.pop("version")
        if version <= VERSION:
            return Address(**raw)
    except (FileNotFoundError, NotADirectoryError):
        raise TrackingError(f"{folder} holds no search with tracked runs (no mlflow/spool.json in it)") from None
    except OSError as error:
        raise TrackingError(f"{path} cannot be read ({error.strerror}); mend that and try again") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise TrackingError(
            f"{path} is damaged ({error}); remove it and resume the search, which makes it anew"
        ) from None
    raise TrackingError(
        f"{path} was written by a newer xlstm_tune (version {version}, known here up to {VERSION}); update xlstm_tune"
    )


def ended_in_order(folder: Path) -> bool:
    """Whether the last word of the search in this folder was that it has completed."""
    try:
        search = known_runs(spool_path(folder)).get(None)
    except FileNotFoundError:
        return False
    return search is not None and search.ended == "completed"


def try_lock(descriptor: int, patience: float = 0.0) -> bool:
    """Take the file for this process until it is closed or the process dies; False if another has it.

    `patience`: how many seconds to wait for the other.
    """
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        else:
            return True


def search_lives(folder: Path) -> bool:
    """Whether a process has the spool open for writing."""
    with spool_path(folder).open("r+b") as file:  # to be locked on a network folder too
        return not try_lock(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Atomically: readers see the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items()}


def _plain(value: Any) -> Any:
    """numpy scalars as Python's; anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _known_status(status: str) -> None:
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
