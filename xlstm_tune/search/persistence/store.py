"""How the machines of a search hand each other its files: through a folder that all see, or through a URI.

The driver and every worker have one of these, the workers' a copy of the driver's. All places are below `folder`, the
search's folder as the process at hand sees it.

With `Shared` it is one folder for all, so that there is nothing to hand over. With `Remote` a worker has a folder of
its own, on its machine's disk, from which it pushes what a trial leaves to URI/NAME/trials/00012 before the driver
hears of it. The driver's folder gets a trial's files when the trial has ended.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyarrow as pa

from xlstm_tune.layout import CHECKPOINTS, SUMS
from xlstm_tune.search.persistence.folder import HUNG, STOPPED, disk_full
from xlstm_tune.search.trials.scratch import scratch_folder
from xlstm_tune.search.variables import number
from xlstm_tune.storage.copy import STOPPED as STOPPED_AT
from xlstm_tune.storage.copy import check_there, is_checkpoint, other_owner, taken_over
from xlstm_tune.storage.objects import Objects, at_once, is_uri

PATIENCE = "XLSTM_TUNE_STORAGE_SECONDS"
"""Environment variable: how long a worker waits for a storage that does not answer; 900 where it is not set."""
_LONGEST_PAUSE = 15.0
_FETCHING = 4
"""Trials whose files the driver fetches side by side."""


class StorageAway(OSError):
    """The storage has not answered for too long, or holds what another driver goes on with."""


class Shared:
    """A folder that every machine sees. What is written there is handed over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The search's folder, as this process sees it."""
        return self._folder

    def begin(self, places: Sequence[Path]) -> None:
        """A worker takes up the trials of these folders, and no others: they are made, as they were left."""
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            (place / STOPPED).unlink(missing_ok=True)

    def push(self, place: Path, checkpoints: bool = False) -> None:
        """Hand over what is new in a folder, and that something is gone from it. Returns when others can have it.

        checkpoints: those of a trial too. Raises StorageAway.
        """

    def pull(self, place: Path) -> None:
        """Have what others pushed of a folder, without checkpoints."""

    def mark(self, places: Iterable[Path]) -> None:
        """Tell the worker of these trials, which are trained with others, that they are stopped."""
        for place in places:
            (place / STOPPED).touch()

    def marked(self, places: Iterable[Path]) -> set[Path]:
        """Those that are."""
        return {place for place in places if (place / STOPPED).exists()}

    def ended(self, place: Path, then: Callable[[], None]) -> None:
        """A trial has ended; `then` is called in this thread when its files are in the driver's folder."""
        then()

    def settle(self, seconds: float = 0.0) -> bool:
        """Call what `ended` has put off, as far as files have come. seconds: how long to wait for the others.

        Returns whether all have come.
        """
        return True

    def drop_checkpoints(self, place: Path) -> None:
        """The trial of this folder needs them no longer."""
        shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)

    def leave(self) -> None:
        """This process needs its copies no longer."""


HERE = Shared(Path())
"""For trials by themselves."""


class Remote(Shared):
    """A URI.

    where: what holds searches; name: of this one. folder: the driver's; workers have one of their own, which is made
    when it is first asked for. patience: no worker waits longer than this for the storage, in seconds. token: of the
    driver, which its workers write for as long as the copy bears its name; None while it has none.
    """

    def __init__(
        self,
        where: Objects,
        name: str,
        folder: Path | None = None,
        patience: float = math.inf,
        token: str | None = None,
    ) -> None:
        self.where, self.name, self._patience, self.token = where, name, patience, token
        self.objects = where / name
        self._own, self._drives = folder, folder is not None
        self._known: dict[str, tuple[int, ...]] = {}
        """What the storage has, by name: what the file looked like when it was copied."""
        self._waiting: deque[tuple[Path, Future[None], Callable[[], None]]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._gone = threading.Event()
        self.dropped: list[str] = []
        """Folders of checkpoints that are to be removed once the copy of the journal says why."""

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "name": self.name, "patience": self._patience, "token": self.token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def folder(self) -> Path:
        """The driver's, or this worker's own."""
        if self._own is None:
            self._own = scratch_folder(self.objects.shown, self._hand_in)
        return self._own

    def begin(self, places: Sequence[Path]) -> None:
        """What the storage has of these trials, made anew; nothing of any other."""
        self._steadily(self._check_ours)
        shutil.rmtree(self.folder / "trials", ignore_errors=True)
        self._known.clear()
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        names = self._listed([self._name(place) for place in places])
        at_once(self._fetch, names)
        marks = set(self._steadily(lambda: self.objects.names(STOPPED_AT)))
        self._steadily(lambda: self.objects.remove({self._mark(place) for place in places} & marks))

    def push(self, place: Path, checkpoints: bool = False) -> None:
        """Copy what is new. A checkpoint's sums go last: without them it is a damaged one, which readers pass over.

        Nothing where another driver has taken the search over while this machine slept: its workers are further.
        """
        files = dict(self._files(place, checkpoints))
        new = [name for name, looks in files.items() if self._known.get(name) != looks]
        below = self._name(place) + "/"
        gone = [name for name in self._known if name.startswith(below) and name not in files]
        gone = [name for name in gone if checkpoints or not is_checkpoint(name)]
        if new or gone:
            self._steadily(self._check_ours)
        for last in (False, True):
            at_once(self._put, [name for name in new if name.endswith(SUMS) == last])
        self._known |= {name: files[name] for name in new}
        if gone:
            self._steadily(lambda: self.objects.remove(gone), self._check_ours)
            for name in gone:
                del self._known[name]

    def pull(self, place: Path) -> None:
        """Fetch all of it."""
        names = [name for name in self._listed([self._name(place)]) if not is_checkpoint(name)]
        at_once(self._fetch, names)

    def mark(self, places: Iterable[Path]) -> None:
        """Write the marks, before the trial asks; where the storage is away, as soon as it is back.

        None where another driver has taken the search over, whose trials they would stop. That is no error: the driver
        hears of it by its copy, and a worker when it pushes.
        """
        names = [self._mark(place) for place in places]
        if not names:
            return

        def write() -> None:
            self._check_ours()
            at_once(lambda name: self.objects.put(name, b""), names)

        try:
            write()
        except StorageAway:
            return
        except (OSError, pa.ArrowException):
            self._threads().submit(self._steadily, write)

    def marked(self, places: Iterable[Path]) -> set[Path]:
        """One request for all."""
        marks = self._steadily(lambda: self.objects.names(STOPPED_AT))
        return {place for place in places if self._mark(place) in marks}

    def ended(self, place: Path, then: Callable[[], None]) -> None:
        """Fetched by another thread; `settle` calls."""
        self._waiting.append((place, self._threads().submit(self.pull, place), then))

    def settle(self, seconds: float = 0.0) -> bool:
        """In the order in which trials have ended. What has not come is asked for again."""
        until = time.monotonic() + seconds
        while self._waiting:
            place, fetching, then = self._waiting[0]
            if not wait([fetching], max(0.0, until - time.monotonic())).done:
                return False
            if fetching.exception() is not None:
                self._waiting[0] = (place, self._threads().submit(self.pull, place), then)
                return False
            self._waiting.popleft()
            then()
        return True

    def drop_checkpoints(self, place: Path) -> None:
        """Not before the copy of the journal says that the trial has ended: a resume from there would need them."""
        super().drop_checkpoints(place)
        self.dropped.append(f"{self._name(place)}/{CHECKPOINTS}")

    def leave(self) -> None:
        """Give up what is being tried, and remove a worker's folder."""
        self._gone.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._own is not None and not self._drives:
            shutil.rmtree(self._own / "trials", ignore_errors=True)

    def _name(self, place: Path) -> str:
        return place.relative_to(self.folder).as_posix()

    def _mark(self, place: Path) -> str:
        return f"{STOPPED_AT}/{place.name}"

    def _files(self, place: Path, checkpoints: bool) -> Iterable[tuple[str, tuple[int, ...]]]:
        """What there is to be handed over of a folder: names, and what tells a new file from the one before."""
        for path in sorted(place.rglob("*")):
            name = self._name(path)
            hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
            if hidden or path.name == HUNG or not path.is_file() or (is_checkpoint(name) and not checkpoints):
                continue
            yield name, looks(path)

    def _listed(self, places: Sequence[str]) -> list[str]:
        names: list[str] = []
        at_once(lambda place: names.extend(self._steadily(lambda: self._names(place))), places)
        return names

    def _names(self, place: str) -> list[str]:
        found = list(self.objects.names(place))
        if not found:
            check_there(self.objects)
        return found

    def _fetch(self, name: str) -> None:
        path = self.folder / name
        try:  # what the driver has of a trial is not fetched again
            self._steadily(lambda: self.objects.fetch(name, path, lasting=self._drives))
        except FileNotFoundError:  # removed since it was listed
            return
        self._known[name] = looks(path)

    def _put(self, name: str) -> None:
        self._steadily(lambda: self.objects.put(name, self.folder / name), self._check_ours)

    def _check_ours(self) -> None:
        """Raise StorageAway where the copy bears another driver's name, OSError where the whole search is gone. A name
        that is damaged, or gone by itself, stops nobody."""
        if self.token is None:
            return
        try:
            who = other_owner(self.objects, self.token)
        except FileNotFoundError:
            check_there(self.objects)
            return
        if who is not None:
            raise StorageAway(taken_over(self.objects, who))

    def _hand_in(self, left: Path) -> None:
        """Of a worker that was killed: where it hung, which it could not tell itself."""
        for path in left.glob(f"trials/*/{HUNG}"):
            if path.stat().st_size:
                self.objects.put(path.relative_to(left).as_posix(), path)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FETCHING, thread_name_prefix="storage")
        return self._pool

    def _steadily(self, call: Callable[[], Any], before_again: Callable[[], None] | None = None) -> Any:
        """Try until the storage answers. Raises StorageAway after `PATIENCE` seconds, FileNotFoundError at once.

        before_again: called before each try but the first: much may have happened while the storage was away.
        """
        longest, began, pause = min(self._patience, patience()), time.monotonic(), 0.5
        first = True
        while True:
            try:
                if not first and before_again is not None:
                    before_again()
                return call()
            except (FileNotFoundError, StorageAway):
                raise
            except (OSError, pa.ArrowException) as error:
                if disk_full(error):
                    raise
                reason = self.objects.reason(error)
                if time.monotonic() - began > longest or self._gone.wait(pause):
                    raise StorageAway(f"the storage {self.objects.shown} does not answer ({reason})") from error
            pause, first = min(_LONGEST_PAUSE, 2 * pause), False


def make_store(storage: str, folder: Path, timeout: float | str | None) -> Remote | None:
    """What `--storage` means; None = a folder that all machines see. timeout: `resources.trial_timeout`.

    A worker gives the storage up before it is taken for one that hangs.
    """
    if not is_uri(storage):
        return None
    return Remote(Objects(storage), folder.name, folder, timeout / 2 if isinstance(timeout, float) else math.inf)


def patience() -> float:
    """Seconds that a worker waits for a storage that does not answer. Raises SpecError for a wrong value."""
    return number(PATIENCE, 900, "seconds")


def looks(path: Path) -> tuple[int, ...]:
    """What tells a file from the one that was there before."""
    about = path.stat()
    return about.st_mtime_ns, about.st_size, about.st_ino
