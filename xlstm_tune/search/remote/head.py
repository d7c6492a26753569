"""What a cluster's head does for `--cluster`: takes a search in, runs its driver, shows its log, hands results out.

    python -m xlstm_tune.search.remote.head COMMAND ...

Each command answers with JSON, or with bytes where it says so. Nothing but the standard library is imported, so that
an answer takes a moment only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

SEARCHES = Path(os.path.expanduser("~/searches"))
INPUTS = ".inputs"
"""Below the searches: data files that were sent along, in a folder named by their checksum."""
NOTES = ".remote"
"""Below the searches: a folder for each search that was begun from elsewhere, for its owner alone."""
RESULTS = ("spec.yaml", "environment.json", "report.html", "results", "champion")
"""Of a search's folder: what is handed out."""
STORAGE = "XLSTM_TUNE_STORAGE"
"""Environment variable: where searches are kept unless --storage says so, such as a bucket of the cluster's."""
MARK = b"xlstm_tune answers\n"
"""Comes first on stdout: what a shell says at login comes before it."""
POLL = 0.3
"""Seconds between two looks at a log."""
KNOWN = 30.0
"""Seconds in which a driver that is begun makes its process known."""


def main(arguments: list[str]) -> int:
    """Run one command; what goes wrong is a sentence on stderr and exit code 1."""
    command, *rest = arguments
    sys.stdout.buffer.write(MARK)
    sys.stdout.flush()
    try:
        answer = COMMANDS[command](*rest)
    except (OSError, tarfile.TarError, ValueError, HeadError) as error:
        print(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else error, file=sys.stderr)
        return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0


class HeadError(Exception):
    """The head refuses; a sentence."""


def look(name: str, lines: str = "40") -> dict[str, Any]:
    """Where a search stands.

    `state`: none, running, ended (with the exit `code` of its driver, None where nobody wrote it down, as of one that
    was begun by hand here) or killed. `begun`: it has a folder. `spec`: the search file as it was sent, or as it lies
    in that folder. `later`: as it lies there, passwords left out, where that was written after `spec` was sent.
    `log`: bytes of the log, and `tail`: where its last `lines` lines begin. `digest`: of the code here. `searches`: the
    folder that they lie in.
    """
    log = _log(name)
    text = log.read_bytes() if log.exists() else b""
    places = (_sent(name), _kept(name))
    specs = [path for path in places if path.is_file() and path.stat().st_size]  # an earlier program left empty ones
    later = len(specs) == 2 and _written(specs[1]) > _written(specs[0])
    kept = text.splitlines(keepends=True)[-int(lines) :]
    return {
        "searches": str(SEARCHES),
        "digest": code_digest(),
        **state(name),
        "begun": _kept(name).is_file(),
        "spec": specs[0].read_text() if specs else None,
        "later": specs[1].read_text() if later else None,
        "log": len(text),
        "tail": len(text) - sum(map(len, kept)),
    }


def state(name: str) -> dict[str, Any]:
    """`state` and `code` of a search, as `look` has them."""
    code, lock = _code(name), _lock(name)
    if _held(_notes(name) / "running") or _held(lock):
        return {"state": "running", "code": None}
    # A driver writes the lock's file when it begins, and empties it at its end; a killed one cannot. What is older than
    # the search file that was sent last is of an earlier driver.
    sent = _written(_sent(name))
    if code.exists() and _written(code) >= max(sent, _written(lock)):
        return {"state": "ended", "code": int(code.read_text())}
    if lock.exists() and lock.stat().st_size == 0 and _written(lock) > sent:
        return {"state": "ended", "code": None}
    begun = _sent(name).is_file() or _kept(name).is_file()
    return {"state": "killed" if begun else "none", "code": None}


def missing(*digests: str) -> list[str]:
    """Those of these data that are not here yet."""
    return [digest for digest in digests if not (SEARCHES / INPUTS / digest).is_dir()]


def receive(digest: str) -> None:
    """Take data in from stdin, an archive whose files have this checksum: all of them, or none."""
    place = SEARCHES / INPUTS / digest
    unfinished = place.with_name(f"{digest}.{os.getpid()}.tmp")
    unfinished.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
            archive.extractall(unfinished, filter="data")
        files = {str(path.relative_to(unfinished)): path for path in unfinished.rglob("*") if path.is_file()}
        if tree_digest(files) != digest:
            raise HeadError("the data arrived damaged; send them again")
        with contextlib.suppress(OSError):  # somebody else was faster with the same
            unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def start(name: str) -> dict[str, Any]:
    """Begin a search, or go on with it: stdin holds its `spec`, the driver's `arguments`, and its `environment`.

    Answers with the size of the log before it. Raises HeadError when it runs already.
    """
    request = json.load(sys.stdin)
    notes = _notes(name)
    notes.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _log(name).open("ab") as log:  # who follows it from now on finds it
        before = log.tell()
    with _take(notes / "running") as running:
        if running is None or _held(_lock(name)):
            raise HeadError(f"the search '{name}' is being run already")
        (notes / "driver").unlink(missing_ok=True)  # of one whose end nobody saw: not to be stopped
        sent, environment = _sent(name), os.environ | request["environment"]
        _replace(sent, request["spec"], _former(name))
        _code(name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "xlstm_tune.search", str(sent), *request["arguments"]]
        if "--storage" not in command and STORAGE not in environment:
            command += ["--storage", str(SEARCHES)]
        # It keeps the lock, a descriptor that it inherits, until it ends.
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "supervise", name, str(running.fileno()), json.dumps(command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=[running.fileno()],
            start_new_session=True,
        )
    return {"log": before}


def supervise(name: str, lock: str, command: str) -> None:
    """Run a driver to its end and write its exit code down. lock: the descriptor that says that it runs.

    What a driver of a search that had begun before refuses does not stay: the next request builds on the former one.
    """
    os.set_inheritable(int(lock), False)
    kept = _kept(name)
    before = kept.read_bytes() if kept.is_file() else None
    with _log(name).open("ab") as log:
        driver = subprocess.Popen(
            json.loads(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=SEARCHES.parent,  # a search that is kept at a URI works in `searches` below it
            start_new_session=True,
        )
    _write(_notes(name) / "driver", str(driver.pid))
    code = driver.wait()
    (_notes(name) / "driver").unlink(missing_ok=True)  # its number may be another process's from here on
    _write(_code(name), f"{code if code >= 0 else 128 - code}\n")
    # Last, since what is older than the search file that was sent counts as an earlier driver's. A driver that agrees
    # writes what is new into the search's folder.
    sent, former = _sent(name), _former(name)
    if code == 2 and before is not None and kept.is_file() and kept.read_bytes() == before:
        if former.exists():
            former.rename(sent)
        else:  # it was begun by hand here
            sent.unlink(missing_ok=True)
    former.unlink(missing_ok=True)


def follow(name: str, offset: str) -> None:
    """The log from this byte on, as it grows, until the search has ended; a driver started by hand has none."""
    path = _log(name)
    with path.open("rb") if path.exists() else io.BytesIO() as log:
        log.seek(int(offset))
        while True:
            over = state(name)["state"] != "running"  # asked first, so that the last words are not missed
            while chunk := log.read(65_536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            if over:
                return
            time.sleep(POLL)


def stop(name: str) -> dict[str, Any]:
    """Ask the driver to stop, as Ctrl-C does: running trials save what they have.

    Raises HeadError where its process is not known here.
    """
    until = time.monotonic() + KNOWN
    while (found := state(name))["state"] == "running":
        if (driver := _driver(name)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver, signal.SIGINT)
            break
        if time.monotonic() > until:
            raise HeadError(f"nobody knows which process runs the search '{name}'; stop it where it was begun")
        time.sleep(POLL)  # it is about to be started
    return found


def _driver(name: str) -> int | None:
    """The process of a search that runs; None while it is not known. Raises HeadError for one of another machine."""
    with contextlib.suppress(FileNotFoundError):
        if _held(_notes(name) / "running"):
            return int((_notes(name) / "driver").read_text())
        # Begun by hand here, or the one who started it was killed.
        who = _lock(name).read_text(errors="replace").strip()
        if found := re.match(r"process (\d+) on (\S+)", who):
            if found[2] != platform.node():
                raise HeadError(f"the search '{name}' is being run by {who}; stop it there")
            return int(found[1])
    return None


def pack(name: str) -> None:
    """An archive of what a search has found, as bytes."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for path in (SEARCHES / name / one for one in RESULTS):
            if path.exists():
                archive.add(path, arcname=path.name)
        if _log(name).exists():
            archive.add(_log(name), arcname="search.log")


def code_digest() -> str:
    """Checksum of the package's code: the same where the same program runs."""
    package = Path(__file__).resolve().parents[2]
    return tree_digest({str(path.relative_to(package)): path for path in package.rglob("*.py")})


def tree_digest(files: dict[str, Path]) -> str:
    """Checksum of names and contents. files: a path in the archive → the file."""
    whole = hashlib.sha256()
    for name in sorted(files):
        with files[name].open("rb") as file:
            whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:32]


@contextlib.contextmanager
def _take(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[IO[str] | None]:
    """The file with its lock held, for as long as any process has it open; None when another one holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            yield None
        else:
            yield file


def _held(path: Path) -> bool:
    """Whether a process holds the file's lock."""
    if not path.exists():
        return False
    with _take(path, fcntl.LOCK_SH) as file:  # two who look at once do not see each other
        return file is None


def _written(path: Path) -> int:
    """When a file was last written, in ns; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _write(path: Path, text: str, mode: int = 0o666) -> None:
    """All of it, or nothing, after a power cut too."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.unlink(missing_ok=True)
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _replace(path: Path, text: str, former: Path) -> None:
    """Write a file for its owner alone; `former` is what it was until then, where it was. All of that, or nothing."""
    former.unlink(missing_ok=True)
    try:
        with contextlib.suppress(FileNotFoundError):
            former.hardlink_to(path)  # which takes no room, and is as old
        _write(path, text, mode=0o600)
    except BaseException:
        former.unlink(missing_ok=True)
        raise


def _sent(name: str) -> Path:
    return _notes(name) / "spec.yaml"


def _former(name: str) -> Path:
    return _notes(name) / "former.yaml"


def _kept(name: str) -> Path:
    return SEARCHES / name / "spec.yaml"


def _log(name: str) -> Path:
    return SEARCHES / f"{name}.log"


def _lock(name: str) -> Path:
    return SEARCHES / name / "driver.lock"


def _code(name: str) -> Path:
    return SEARCHES / f"{name}.exit"


def _notes(name: str) -> Path:
    return SEARCHES / NOTES / name


COMMANDS: dict[str, Callable[..., Any]] = {
    one.__name__: one for one in (look, missing, receive, start, supervise, follow, stop, pack)
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
