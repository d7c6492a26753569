"""The copy of a search's folder at a URI, made every half minute while it runs, and whole when it ends.

Whatever moment the machine goes at, the copy is one that a resume can go on from, as it does from the folder of a
driver that was killed. For that

* the two journals count up to sizes at which both stood at one moment (copy.json), written after them;
* the tables are taken before the journals, and the spool before the tables, but written behind them: what a journal
  does not know yet, no table says, and what a table lacks, the journal makes up for. The trials table likewise is taken
  before those of epochs and members and written behind them;
* new part files of a table are written before its pending rows, which may have moved to them;
* checkpoints of a trial that has ended are removed when the journal there says so.

What workers wrote may be ahead of all that; a resume is told of it by the workers that take the trials up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import CHECKPOINTS, SPEC, trial_folder
from xlstm_tune.results import read
from xlstm_tune.search.owner import Owner
from xlstm_tune.search.stopping import CUTS, TAKEN_OVER, Stopping
from xlstm_tune.search.store import Remote, looks
from xlstm_tune.search.variables import LONGEST_WAIT, number
from xlstm_tune.storage.copy import CUT, JOURNALS, KEPT_AT, OWNER, STOPPED, VERSION, as_json, is_checkpoint, remember
from xlstm_tune.storage.objects import at_once

PERIOD = "XLSTM_TUNE_MIRROR_SECONDS"
"""Environment variable: seconds between two copies; 30 where it is not set."""
_SHARE = 10
"""A copy is made at most once in so many times the seconds that one takes."""
_LAST_SECONDS, _LAST_SECONDS_STOPPED = 120.0, 15.0
"""How long the last copy is tried, of a search that has ended and of one that was stopped."""
_TRIALS = "results/trials/"
_NOT_COPIED = (OWNER, CUT, STOPPED, "trials", "mlflow/writer.log", KEPT_AT)
"""Of the folder: of this machine alone, or written there by others."""

_SPOOL = "mlflow/spool.jsonl"
_GROWING = (*JOURNALS, _SPOOL)


class Mirror:
    """Copies the folder of a driver. say: tells the user that the storage is away, or back."""

    def __init__(self, store: Remote, stopping: Stopping, say: Callable[[str], None]) -> None:
        self._store, self._folder, self._objects = store, store.folder, store.objects
        self._stopping, self._say = stopping, say
        self._shortest = self._period = period()
        self._owner = Owner(self._objects, self._period)
        self._there: dict[str, tuple[int, ...]] = {}
        """What the copy has: by name, what the file looked like; empty of what an earlier driver wrote."""
        self._away = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Make the first copy, and go on in a thread. Raises StorageError."""
        before: set[str] = set()
        try:
            before = set(self._objects.names())
            self._owner.claim()
            self._there = {name: () for name in self._objects.names() if _copied(name)}
            self._copy()
        except (OSError, pa.ArrowException) as error:
            if not before:
                self._clear()
            raise StorageError(
                f"the search cannot be copied to {self._objects.shown} ({self._objects.reason(error)}); mend that, or "
                "choose another --storage"
            ) from None
        remember(self._folder, self._store.where)
        self._thread.start()

    def finish(self) -> str | None:
        """The last copy, of everything. Returns what to tell the user where it could not be made."""
        self._ended.set()
        self._thread.join()
        until = time.monotonic() + (_LAST_SECONDS_STOPPED if self._stopping.reason else _LAST_SECONDS)
        while True:
            try:
                if self._owner.lost() is not None:
                    return f"another driver has taken over the search at {self._objects.shown}; go on with it there"
                self._copy()
                self._tidy()
                self._owner.give_up()
                return None
            except (OSError, pa.ArrowException) as error:
                if time.monotonic() > until:
                    return (
                        f"the copy at {self._objects.shown} is not complete ({self._objects.reason(error)}), but "
                        f"{self._folder} is; --resume brings the copy up to date"
                    )
                time.sleep(1.0)

    def _tidy(self) -> None:
        """Away with what is of use only while trials run: marks, and checkpoints of workers that ended late."""
        self._objects.remove_folder(STOPPED)
        if not (self._folder / "results").is_dir():
            return
        over = {row["trial"] for row in read(self._folder, "trials").to_pylist() if row["reason"] not in CUTS}
        left = {name.rpartition(f"/{CHECKPOINTS}/")[0] for name in self._objects.names("trials") if is_checkpoint(name)}
        places = {trial_folder("", number).as_posix() for number in over}
        at_once(lambda place: self._objects.remove_folder(f"{place}/{CHECKPOINTS}"), left & places)

    def remove(self) -> None:
        """Of a search that never began nothing stays."""
        self._ended.set()
        self._thread.join()
        self._clear()

    def _clear(self) -> None:
        with suppress(OSError, pa.ArrowException):
            self._objects.remove_folder()

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            try:
                who = self._owner.lost()
                if who is not None:
                    self._say(f"The search at {self._objects.shown} has been taken over by {who}.")
                    self._stopping.request(TAKEN_OVER)
                    return
                began = time.monotonic()
                self._copy()
                self._period = max(self._shortest, _SHARE * (time.monotonic() - began))
            except FileNotFoundError:
                continue  # a file went while it was looked at: the next time
            except Exception as error:  # whatever it is, the search goes on
                if not self._away:
                    why = self._objects.reason(error)
                    self._say(f"note: the storage {self._objects.shown} is away ({why}); it is tried again and again")
                self._away = True
            else:
                if self._away:
                    self._say(f"note: the storage {self._objects.shown} is back")
                self._away = False

    def _copy(self) -> None:
        """Bring the copy up to date, in the order that the module's text says."""
        self._owner.refresh(self._period)
        dropped, self._store.dropped = self._store.dropped, []
        try:
            spool = _size(self._folder / _SPOOL)
            trials = self._taken("results/trials")
            others = self._taken("")
            sizes = self._journals()
            for name, size in sizes.items():
                self._put_growing(name, size)
            self._objects.put(CUT, as_json({"version": VERSION, "cut": sizes}))
            at_once(self._objects.remove_folder, dropped)
            dropped = []
            self._put_all([name for name in others if not name.startswith(_TRIALS)], others)
            self._put_all(list(trials), trials)
            self._put_growing(_SPOOL, spool)
        finally:
            self._store.dropped += dropped

    def _taken(self, below: str) -> dict[str, tuple[tuple[int, ...], bytes | None]]:
        """The files of a folder as they are now: what tells them apart, and what holds rows that may move away."""
        found: dict[str, tuple[tuple[int, ...], bytes | None]] = {}
        places = [self._folder / below] if below else [one for one in self._folder.iterdir() if one.name != "trials"]
        for place in places:
            # Pending rows are read before the parts are looked for that they may move to.
            for pending in (True, False):
                for path in [place] if place.is_file() else sorted(place.rglob("*")):
                    name = path.relative_to(self._folder).as_posix()
                    if name in _GROWING or not _copied(name) or (path.suffix == ".jsonl") != pending:
                        continue
                    with suppress(FileNotFoundError):  # parts that have become one
                        if path.is_file() and not path.is_symlink():
                            found[name] = looks(path), path.read_bytes() if pending else None
        return found

    def _put_all(self, names: list[str], taken: dict[str, tuple[tuple[int, ...], bytes | None]]) -> None:
        """What is new of these, and away with what is gone."""
        new = [name for name in names if self._there.get(name) != taken[name][0]]
        trials = bool(names) and names[0].startswith(_TRIALS)

        def put(name: str) -> None:
            appearance, pending = taken[name]
            self._objects.put(name, self._folder / name if pending is None else pending)
            self._there[name] = appearance

        at_once(put, [name for name in new if taken[name][1] is None])
        at_once(put, [name for name in new if taken[name][1] is not None])
        gone = [n for n in self._there if n not in taken and n not in _GROWING and n.startswith(_TRIALS) == trials]
        gone = [name for name in gone if not (self._folder / name).exists()]
        self._objects.remove(gone)
        for name in gone:
            del self._there[name]

    def _put_growing(self, name: str, size: int) -> None:
        if size and self._there.get(name) != (size,):
            self._objects.put(name, self._folder / name, size)
            self._there[name] = (size,)

    def _journals(self) -> dict[str, int]:
        """Sizes of both at one moment: nothing was written to the one while the other was looked at."""
        first, second = JOURNALS
        while True:
            before = _size(self._folder / second)
            sizes = {first: _size(self._folder / first), second: _size(self._folder / second)}
            if sizes[second] == before:
                return sizes


@contextmanager
def mirrored(store: Remote | None, stopping: Stopping, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, the folder is copied to where the search is kept, if it is kept elsewhere."""
    if store is None:
        yield
        return
    mirror = Mirror(store, stopping, say)
    mirror.start()
    try:
        yield
    finally:
        if (store.folder / SPEC).exists():
            note = mirror.finish()
            if note:
                say(f"note: {note}")
        else:
            mirror.remove()
        store.leave()


def _copied(name: str) -> bool:
    parts = name.split("/")
    if parts[0] in _NOT_COPIED or name in _NOT_COPIED or parts[0].startswith("ray-"):
        return False
    # How far the spool has been sent is this machine's own affair where the runs lie in a database on its disk.
    return (
        name != "mlflow/state.json" and not name.endswith(".lock") and not any(part.startswith(".") for part in parts)
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def period() -> float:
    """Seconds between two copies. Raises SpecError for a wrong value: with none, any other driver's name counts."""
    return number(PERIOD, 30, "seconds", zero=False, most=LONGEST_WAIT)
