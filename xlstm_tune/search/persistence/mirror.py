"""The copy of a search's folder at a URI, made every half minute while it runs, and whole when it ends.

Whatever moment the machine goes at, the copy is one that a resume can go on from, as it does from the folder of a
driver that was killed. For that

* the two journals count up to sizes at which both stood at one moment (copy.json), written after them;
* the tables are taken before the journals, and the spool before the tables, but written behind them: what a journal
  does not know yet, no table says, and what a table lacks, the journal makes up for. The trials table likewise is taken
  before those of epochs and members and written behind them;
* new part files of a table are written before its pending rows, which may have moved to them;
* checkpoints of a trial that has ended are removed when the journal there says so;
* a driver that takes a search over from one that fell silent, and may wake while it writes a journal, gives its own
  journals other names.

What workers wrote may be ahead of all that; a resume is told of it by the workers that take the trials up.

copy.json is written once more when all is there, and each time as another generation. A folder here notes a generation
before it is written there, so that it is known to have all of what its own driver left, and none of what others did.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from xlstm_tune.errors import StorageError, UserError
from xlstm_tune.layout import CHECKPOINTS, SEARCH_JOURNAL, SPEC, SPOOL, trial_folder
from xlstm_tune.results import read
from xlstm_tune.search.persistence.journal_sizes import journal_sizes
from xlstm_tune.search.persistence.owner import Owner, TakenOver
from xlstm_tune.search.persistence.store import Remote, looks
from xlstm_tune.search.stopping import CUTS, TAKEN_OVER, Stopping
from xlstm_tune.search.variables import LONGEST_WAIT, number
from xlstm_tune.storage.copy import (
    CLOCK,
    CUT,
    JOURNALS,
    KEPT_AT,
    OWNER,
    STOPPED,
    Copy,
    Generation,
    cut_content,
    generations,
    has,
    is_checkpoint,
    kept_at,
    read_copy,
    remember,
    size_of,
    stored_as,
)
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

_GROWING = (*JOURNALS, SPOOL)


class Mirror:
    """Copies the folder of a driver. say: tells the user that the storage is away, or back."""

    def __init__(self, store: Remote, stopping: Stopping, say: Callable[[str], None]) -> None:
        self._store, self._folder, self._objects = store, store.folder, store.objects
        self._stopping, self._say = stopping, say
        self._shortest = self._period = period()
        self._owner = Owner(self._objects, self._period)
        store.token = self._owner.token  # its workers write for as long as the copy bears this name
        self._there: dict[str, tuple[int, ...]] = {}
        """What the copy has: by name, what the file looked like; empty of what an earlier driver wrote."""
        self._cut = dict.fromkeys(JOURNALS, 0)
        """How much of the journals has been copied."""
        self._journals = ""
        """Whose the names of the journals there are: a token; empty where they have their plain ones."""
        self._noted = generations(self._folder) | {self._owner.token: 0}
        """Generations of the copy that the folder has all of."""
        self._fresh = False
        """The search is a new one, of which nothing lay there when this driver began."""
        self._away = False
        self._looking, self._looked = threading.Lock(), 0.0
        """When it was last seen that the copy is this driver's, by the clock that goes on while a machine sleeps."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Make the first copy, and go on in a thread. Raises StorageError."""
        try:
            # A folder that is to be gone on with knows where its copy lies.
            new = kept_at(self._folder) is None
            # A storage that is not mounted yet, or answers in part, may list nothing.
            self._fresh = new and not self._objects.names() and not any(self._is_there(one) for one in (OWNER, CUT))
            copy = read_copy(self._objects)
            if copy and copy.generation and has(self._noted, copy.generation):
                self._cut = copy.cut  # what the folder had before it was copied here
            with suppress(OSError):  # known before anything lies there, so that it can be gone on with from then on
                remember(self._folder, self._store.where, self._noted)
            self._journals = copy.journals if copy else ""
            # Those that counted until now stay: the driver that fell silent may say once more that they do.
            kept = {stored_as(name, self._journals) for name in JOURNALS}
            if self._owner.claim():
                self._journals = self._owner.token
            self._there = {name: () for name in self._objects.names() if _copied(name) and name not in kept}
            self._copy()
        except StorageError:
            self._give_up()
            raise
        except (OSError, pa.ArrowException) as error:
            if self._fresh:
                self._clear()
            raise StorageError(
                f"the search cannot be copied to {self._objects.shown} ({self._objects.reason(error)}); mend that, or "
                "choose another --storage"
            ) from None
        remember(self._folder, self._store.where, self._noted)
        self._thread.start()

    def finish(self) -> str | None:
        """The last copy, of everything. Returns what to tell the user where it could not be made."""
        self._ended.set()
        self._thread.join()
        until = time.monotonic() + (_LAST_SECONDS_STOPPED if self._stopping.reason else _LAST_SECONDS)
        while True:
            try:
                self._copy()
                self._tidy()
                self._owner.give_up()
                return None
            except StorageError as error:
                self._give_up()
                return str(error)
            except (OSError, pa.ArrowException) as error:
                if time.monotonic() > until:
                    return (
                        f"the copy at {self._objects.shown} is not complete ({self._objects.reason(error)}), but "
                        f"{self._folder} is; --resume brings the copy up to date"
                    )
                time.sleep(1.0)

    def _tidy(self) -> None:
        """Away with what is of use only while trials run: marks, and checkpoints of workers that ended late."""
        self._look_again()
        self._objects.remove_folder(STOPPED)
        if not (self._folder / "results").is_dir():
            return
        over = {row["trial"] for row in read(self._folder, "trials").to_pylist() if row["reason"] not in CUTS}
        left = {name.rpartition(f"/{CHECKPOINTS}/")[0] for name in self._objects.names("trials") if is_checkpoint(name)}
        places = {trial_folder("", number).as_posix() for number in over}
        at_once(lambda place: self._objects.remove_folder(f"{place}/{CHECKPOINTS}"), left & places)

    def remove(self) -> None:
        """Of a search that was refused before its first trial nothing stays; the copy of any other one does."""
        self._ended.set()
        self._thread.join()
        begun = True
        with suppress(OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            begun = self._begun()
        if self._fresh and not begun:
            self._clear()
            with suppress(OSError):  # noted by a copy that was under way while the folder was removed
                (self._folder / KEPT_AT).unlink()
                self._folder.rmdir()
        else:
            self._give_up()

    def _begun(self) -> bool:
        """Whether the copy knows of a trial."""
        names = self._objects.names()
        lines = self._objects.get(SEARCH_JOURNAL).splitlines() if SEARCH_JOURNAL in names else []
        trials = any(name.startswith("trials/") for name in names)
        return trials or any(json.loads(line)["e"] == "began" for line in lines)

    def _clear(self) -> None:
        """Remove the copy, where no other driver has written any of it."""
        with suppress(OSError, pa.ArrowException, StorageError):
            copy = read_copy(self._objects)
            ours = copy is None or (copy.generation is not None and copy.generation.token == self._owner.token)
            if ours and self._owner.lost() is None:
                self._objects.remove_folder()

    def _is_there(self, name: str) -> bool:
        try:
            self._objects.get(name)
        except FileNotFoundError:
            return False
        return True

    def _give_up(self) -> None:
        with suppress(OSError, pa.ArrowException):
            self._owner.give_up()

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            try:
                began = time.monotonic()
                self._copy()
                self._period = max(self._shortest, _SHARE * (time.monotonic() - began))
            except FileNotFoundError:
                continue  # a file went while it was looked at: the next time
            except TakenOver as error:
                self._say(f"note: {error}")
                self._stopping.request(TAKEN_OVER)
                return
            except Exception as error:  # whatever it is, the search goes on
                if not self._away:
                    away = f"the storage {self._objects.shown} is away ({self._objects.reason(error)})"
                    told = str(error) if isinstance(error, StorageError) else f"{away}; it is tried again and again"
                    self._say(f"note: {told}")
                self._away = True
            else:
                if self._away:
                    self._say(f"note: the storage {self._objects.shown} is back")
                self._away = False

    def _copy(self) -> None:
        """Bring the copy up to date, in the order that the module's text says. Raises StorageError, where the copy is
        another driver's or the folder has lost what is there."""
        self._check_here(journal_sizes(self._folder))
        dropped, self._store.dropped = self._store.dropped, []
        try:
            spool = size_of(self._folder / SPOOL)
            trials = self._taken("results/trials")
            others = self._taken("")
            sizes = journal_sizes(self._folder)
            self._check_here(sizes)
            self._check_there()
            self._owner.refresh(self._period)
            for name, size in sizes.items():
                self._put_growing(name, size)
            self._put_cut(sizes)
            at_once(self._objects.remove_folder, dropped)
            dropped = []
            self._put_all([name for name in others if not name.startswith(_TRIALS)], others)
            self._put_all(list(trials), trials)
            self._put_growing(SPOOL, spool)
            self._put_cut(sizes)
        finally:
            self._store.dropped += dropped

    def _check_here(self, sizes: dict[str, int]) -> None:
        """Raise StorageError, where the folder or a journal is gone or shorter: the copy is then all that there is."""
        if any(sizes[name] < self._cut[name] for name in JOURNALS) or not (self._folder / SPEC).exists():
            raise StorageError(
                f"the folder {self._folder} has lost what was copied to {self._objects.shown}, which is left as it is; "
                "go on from there with --resume"
            )

    def _check_there(self) -> None:
        """Raise TakenOver, where another driver has written the copy since the folder here was made from it."""
        self._owner.check()
        copy = read_copy(self._objects)
        if copy and copy.generation and not has(self._noted, copy.generation):
            raise TakenOver(
                f"the search at {self._objects.shown} has gone on since {self._folder} was made from it; run the same "
                "command again"
            )

    def _look_again(self, within: float = 0.0) -> None:
        """As `_check_there`, before more is written: this machine may have slept. Keeps the name from growing old.

        within: not where this was done so many seconds ago.
        """
        with self._looking:
            if 0 <= time.time() - self._looked < within:
                return
            self._check_there()
            self._owner.keep()
            self._looked = time.time()

    def _put_cut(self, sizes: dict[str, int]) -> None:
        """Write how much of the journals counts, as a new generation."""
        self._look_again()
        token = self._owner.token
        self._noted = self._noted | {token: self._noted[token] + 1}
        with suppress(OSError):  # a disk that is full must not keep the copy from being made
            remember(self._folder, self._store.where, self._noted)
        self._objects.put(CUT, cut_content(Copy(sizes, Generation(token, self._noted[token]), self._journals)))
        self._owner.settle()
        self._noted = {token: self._noted[token]}
        self._cut = sizes

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
        if new:
            self._look_again()

        def put(name: str) -> None:
            self._look_again(within=self._shortest / 2)
            appearance, pending = taken[name]
            self._objects.put(name, self._folder / name if pending is None else pending)
            self._there[name] = appearance

        at_once(put, [name for name in new if taken[name][1] is None])
        at_once(put, [name for name in new if taken[name][1] is not None])
        gone = [n for n in self._there if n not in taken and n not in _GROWING and n.startswith(_TRIALS) == trials]
        gone = [name for name in gone if not (self._folder / name).exists()]
        if gone:
            self._check_here(journal_sizes(self._folder))
            self._look_again()
        self._objects.remove(gone)
        for name in gone:
            del self._there[name]

    def _put_growing(self, name: str, size: int) -> None:
        if size and self._there.get(name) != (size,):
            self._look_again()
            place = stored_as(name, self._journals) if name in JOURNALS else name
            self._objects.put(place, self._folder / name, size)
            self._there[name] = (size,)


@contextmanager
def mirrored(store: Remote | None, stopping: Stopping, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, the folder is copied to where the search is kept, if it is kept elsewhere."""
    if store is None:
        yield
        return
    mirror, refused = Mirror(store, stopping, say), False
    mirror.start()
    try:
        yield
    except UserError:
        refused = True
        raise
    finally:
        if refused and not (store.folder / SPEC).exists():
            mirror.remove()
        elif (note := mirror.finish()) is not None:
            say(f"note: {note}")
        store.leave()


def _copied(name: str) -> bool:
    parts = name.split("/")
    if parts[0] in _NOT_COPIED or name in _NOT_COPIED or parts[0].startswith(("ray-", CLOCK)):
        return False
    # How far the spool has been sent is this machine's own affair where the runs lie in a database on its disk.
    return (
        name != "mlflow/state.json" and not name.endswith(".lock") and not any(part.startswith(".") for part in parts)
    )


def period() -> float:
    """Seconds between two copies. Raises SpecError for a wrong value: with none, any other driver's name counts."""
    return number(PERIOD, 30, "seconds", zero=False, most=LONGEST_WAIT)
