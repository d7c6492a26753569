"""The process that sends a spool while its search runs, the search's handle on it, and `sync` for what is left."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import xlstm_tune
from xlstm_tune.errors import TrackingError, first_line, reaching
from xlstm_tune.layout import SEARCHES, TRACKING_URI
from xlstm_tune.strict import did_you_mean
from xlstm_tune.tracking.logs import also_in, ignore_warnings, log
from xlstm_tune.tracking.spool import address_path, read_address, search_lives, spool_path, try_lock
from xlstm_tune.tracking.state import read_state
from xlstm_tune.tracking.uri import (
    check_tracking_uri,
    default_uri,
    hide_credentials,
    python_command,
    sqlite_path,
    written_down,
)

_GATHER_SECONDS = 1.0  # events of short trials meet in one gather, and end in few calls
_LONGEST_WAIT = 30.0  # seconds between attempts while the server is away
_RELAUNCH_SECONDS = 2.0  # before a writer that died is replaced; doubled each time, up to _LONGEST_WAIT
_ORPHAN_SECONDS = 60.0  # how long to go on trying after the search died
_FINISH = b"."
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Retries are ours: inside the client, the repeat of a create_run whose answer was lost makes a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # What is sent must have arrived when the call is over: an error behind it would reach nobody.
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}
_OF_OTHERS = (
    "MLFLOW_ACTIVE_MODEL_ID",  # a model that our figures would be put down to
    "_MLFLOW_ACTIVE_MODEL_ID",
    "PYTHONWARNINGS",  # as errors, the warnings of MLflow's libraries end every attempt to send
)


_DAMAGED = ("database disk image is malformed", "file is not a database")
"""As SQLite says it."""


@dataclass(frozen=True)
class Unsent:
    """What did not arrive in MLflow."""

    events: int  # still in the spool; `command` sends them
    refused: int  # what the store will never take, or files that were gone
    reason: str
    command: str
    hidden: bool = False  # whether the command lacks the credentials of its tracking URI

    def __str__(self) -> str:
        """One line that ends in the command, to be copied from there."""
        why = f" ({self.reason})" if self.reason else ""
        refused = f"MLflow refused {'1 entry' if self.refused == 1 else f'{self.refused} entries'}"
        if not self.events:
            return refused + why
        events = "1 event has" if self.events == 1 else f"{self.events} events have"
        again = ", giving the same --tracking-uri again," if self.hidden else ""
        what = f"send what is left{again}"
        if any(words in self.reason for words in _DAMAGED):
            what = f"MLflow's database is damaged: move it away, and make all runs of this search anew{again}"
        told = f"{events} not reached MLflow yet{why}; {what} with: {self.command}"
        return f"{refused}; {told}" if self.refused else told


class Writer:
    """The search's handle on the process that sends its spool. One that dies (is killed) is replaced."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._uri = folder.absolute(), uri
        self._process = self._launch()
        self._finishing = threading.Event()
        self._launching = threading.Lock()
        threading.Thread(target=self._replace, name="tracking", daemon=True).start()

    @classmethod
    def start(cls, folder: Path, uri: str) -> Self:
        """Start sending the spool of the search folder, opened before. Returns at once, server or no server."""
        read_address(folder)
        return cls(folder, uri)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def finish(self, timeout: float = 60.0) -> Unsent | None:
        """Let everything drain, for at most `timeout` seconds. None when all has arrived."""
        with self._launching:
            self._finishing.set()
            if not self.alive:  # somebody killed it a moment ago; what it left behind is sent by a new one
                self._process = self._launch()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # it may be dying this moment
            pipe.write(_FINISH)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._end()
        return unsent(self._folder)

    def stop(self) -> Unsent | None:
        """Wait for nothing more. What has not arrived can be sent by `sync` then, which a living writer would keep out;
        None where all has."""
        self._finishing.set()
        self._end()
        return unsent(self._folder)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _replace(self) -> None:
        """Wait for the process to die before its time, and start another."""
        pause = _RELAUNCH_SECONDS
        while True:
            self._process.wait()
            self._finishing.wait(pause)
            with self._launching:
                if self._finishing.is_set():
                    return
                try:
                    self._process = self._launch()
                except OSError:  # no memory or processes left: tried again
                    log.warning("MLflow's writer cannot be started", exc_info=True)
            pause = min(_LONGEST_WAIT, 2 * pause)

    def _launch(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in _OF_OTHERS}
        environment |= _ENVIRONMENT | {TRACKING_URI: self._uri, "CUDA_VISIBLE_DEVICES": ""}
        environment.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        root = str(Path(xlstm_tune.__file__).parent.parent)
        if not root.endswith(("site-packages", "dist-packages")):  # a checkout that may not be installed
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "xlstm_tune.tracking", "follow", str(self._folder)]
        with (self._folder / "mlflow" / "writer.log").open("ab") as log_file:
            # A session of its own: Ctrl-C in the terminal is for the search, which then lets the writer drain.
            return subprocess.Popen(
                [*command, "--parent", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                env=environment,
                start_new_session=True,
            )


class _Search:
    """What the writer knows of its search: that it has finished, or died without a word."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self.finished = False  # nothing more will be written
        self._said_so = False

    @property
    def orphaned(self) -> bool:
        """We have another parent, so that nobody waits for us."""
        return self._pid is not None and os.getppid() != self._pid

    @property
    def dead(self) -> bool:
        """The pipe was closed without the word, or (a fork may hold the pipe) we have another parent."""
        return not self._said_so and (self.orphaned or self.finished)

    def wait(self, seconds: float) -> None:
        """Sleep, but wake when the search finishes."""
        if self.finished:
            time.sleep(min(seconds, 1.0))  # somebody is waiting for us
            return
        until = time.monotonic() + seconds
        while not self.finished and (left := until - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], min(left, 1.0))[0]:
                self._said_so = os.read(sys.stdin.fileno(), 1) == _FINISH
                self.finished = True
            elif self.dead:
                self.finished = True


def follow(folder: Path, parent: int | None = None) -> int:
    """Send the spool until the search is finished or dead. Returns the exit code: 0 if all has arrived."""
    os.nice(5)  # training comes first
    search = _Search(parent)
    with _writer_lock(folder) as lock_file:
        while not try_lock(lock_file.fileno()):  # the writer of a search that died may still be draining
            search.wait(0.5)
            if search.dead:
                return 1
        ignore_warnings()
        from xlstm_tune.tracking.sender import Sender  # takes seconds, so not before there is something to do

        sender = Sender(folder, os.environ[TRACKING_URI])
        failures, failing_since = 0, 0.0
        while True:
            more = False
            try:
                more = sender.send_next()
                if search.dead and not sender.waiting() and not search_lives(folder):  # nor was it resumed meanwhile
                    sender.interrupt_open_runs()
                failures = 0
            except Exception as error:  # whatever the store's many clients raise: said, kept and tried again
                if not failures:
                    failing_since = time.monotonic()
                    log.warning("MLflow does not take what we send, trying again and again", exc_info=True)
                failures += 1
                sender.failed(error)
            if search.finished and not failures and not sender.waiting():
                break
            if (search.dead or search.orphaned) and failures and time.monotonic() - failing_since > _ORPHAN_SECONDS:
                return 1
            if failures:
                search.wait(min(_LONGEST_WAIT, 0.5 * 2**failures))
            elif not more:
                search.wait(_GATHER_SECONDS)
    return 0


def sync(folder: Path, uri: str | None = None, attempts: int = 3) -> Unsent | None:
    """Send what a search left unsent. None when all has arrived.

    `uri`: None for where the search sent it. Sets MLflow's environment variables in this process, and switches off
    Python's warnings. What goes wrong is told in a line each; `mlflow/writer.log` has the tracebacks.
    Raises TrackingError if the store cannot be reached, the folder is not complete, not ours or closed to us, or a
    writer is at work on it.
    """
    read_address(folder)
    spool = spool_path(folder)
    with reaching(spool.parent, TrackingError, "mend that and try again"):
        if not spool.is_file():
            raise TrackingError(f"{spool} is missing, and with it what was to be sent; bring it back")
        unsent(folder)  # what cannot be read is told before anything is tried
    target = uri or remembered_uri(folder)
    check_tracking_uri(target)
    os.environ.update(_ENVIRONMENT)
    for name in _OF_OTHERS:
        os.environ.pop(name, None)
    with _writer_lock(folder) as lock_file:
        if not try_lock(lock_file.fileno()):
            raise TrackingError(f"a writer is sending the runs of {folder} already; wait until it is done")
        with also_in(folder / "mlflow" / "writer.log"):
            _send(folder, target, attempts)
    return unsent(folder, uri)


def _send(folder: Path, uri: str, attempts: int) -> None:
    """All that is left, in so many attempts."""
    ignore_warnings()
    from xlstm_tune.tracking.sender import Sender

    sender = Sender(folder, uri)
    for attempt in range(1, attempts + 1):
        try:
            sender.connect()
            while sender.waiting():
                sender.send_next()
            if not search_lives(folder):  # else it will end its runs itself
                sender.interrupt_open_runs()
            break
        except Exception as error:  # as in follow
            log.warning("attempt %d of %d failed: %s", attempt, attempts, first_line(error), exc_info=True)
            sender.failed(error)
            if attempt < attempts:
                time.sleep(2.0**attempt)


def unsent(folder: Path, uri: str | None = None) -> Unsent | None:
    """What of a search folder has not arrived, by the writer's own record.

    `uri`: another store than the one that the search used, which the command has to name.
    """
    state = read_state(folder)
    with spool_path(folder).open("rb") as file:
        file.seek(state.get("offset", 0))
        events = sum(line.endswith(b"\n") for line in file)
    refused = state.get("refused", 0)
    if not events and not refused:
        return None
    reason = state.get("error") if events else next(iter(state.get("reasons", ())), "")
    command = f"{python_command()} -m xlstm_tune.tracking sync {shlex.quote(folder.name)}"
    command += f" --storage {shlex.quote(str(folder.absolute().parent))}"
    if uri is None or _remembers(folder, uri):
        return Unsent(events, refused, reason or "", command)
    shown = hide_credentials(uri)
    return Unsent(events, refused, reason or "", f"{command} --tracking-uri {shlex.quote(shown)}", shown != uri)


def _remembers(folder: Path, uri: str) -> bool:
    try:
        return remembered_uri(folder) == uri
    except TrackingError:  # a password that is not in the environment
        return False


def find_search(search: str, storage: str | None = None) -> Path:
    """The folder of a tracked search, by its name in the storage folder or as a path.

    `storage`: None for `searches`, or else the path. Raises TrackingError when there is none.
    """
    root = Path(storage or SEARCHES).expanduser().absolute()
    places = [root / search] if storage else [root / search, Path(search).expanduser().absolute()]
    for folder in places:
        with reaching(folder, TrackingError):
            if address_path(folder).is_file():
                return folder
    if any(folder.is_dir() for folder in places):
        raise TrackingError(f"{search} holds no search with tracked runs (no mlflow/spool.json in it)")
    known = [path.parent.parent.name for path in root.glob("*/mlflow/spool.json")]
    hint = did_you_mean(search, known, dotted=False) if known else "no search with tracked runs lies there"
    raise TrackingError(f"{root} holds no search '{search}'; {hint}")


def _writer_lock(folder: Path) -> IO[bytes]:
    path = folder / "mlflow" / "writer.lock"
    try:
        return path.open("ab")
    except OSError as error:
        raise TrackingError(f"{path} cannot be written ({error.strerror}); give yourself the right to") from None


def remembered_uri(folder: Path) -> str:
    """Where a search was tracked; credentials are not kept, so they come from the environment.

    That of the storage folder is the one where the search lies now. Of searches of earlier programs, which did not
    tell, a database that is gone from where it was, with its folder or while there is one in the storage folder, has
    moved with the search.
    Raises TrackingError if the folder holds no spool, or the environment not that URI.
    """
    address = read_address(folder)
    if not address.has_credentials:
        before, beside = address.uri, default_uri(folder.parent)
        if address.own:
            return beside
        gone = before.startswith("sqlite") and _gone(sqlite_path(before))
        moved = gone and (sqlite_path(beside).exists() or _gone(sqlite_path(before).parent))
        return beside if moved else before
    for known in (os.environ.get("MLFLOW_TRACKING_URI", ""), default_uri(folder.parent)):
        if address.uri in written_down(known):
            return known
    # Earlier programs took a folder with an @ for a password.
    lack = "which is not kept whole" if address.uri.startswith("sqlite") else "whose password is not kept"
    raise TrackingError(
        f"the search was tracked at {address.uri}, {lack}; set MLFLOW_TRACKING_URI or give --tracking-uri"
    )


def _gone(path: Path) -> bool:
    """Whether nothing lies there; below a folder closed to us nobody can tell, and it is taken to be there."""
    try:
        return not path.exists()
    except OSError:
        return False
