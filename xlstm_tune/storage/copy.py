"""The copy of a search at a URI, and how its folder is made again from it.

Below URI/NAME lies what lies in the search's folder, and besides:

* copy.json: how much of the two journals counts. They are written at one size each that belong together, since each is
  copied by itself; what is behind is cut off when a folder is made from the copy. Its generation, the driver's token
  and a number, is another each time something may have changed. Earlier programs wrote none. Where it says whose the
  journals are that count, their names end with that.
* owner.json: whose driver writes the copy, or wrote it last.
* stopped/00012: the scheduler has stopped this trial, while others that it is trained with go on.
* trials/00012/checkpoints: of the worker, which the driver's folder never sees.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import CHECKPOINTS, ENVIRONMENT, OPTUNA_JOURNAL, SEARCH_JOURNAL, SEARCHES, SPEC
from xlstm_tune.lines import sync
from xlstm_tune.storage.objects import Objects, at_once, is_uri, without_secrets
from xlstm_tune.strict import did_you_mean

CUT = "copy.json"
OWNER = "owner.json"
CLOCK = "clock-"
"""How the names of objects begin that tell a driver what time it is at the storage."""
STOPPED = "stopped"
KEPT_AT = "storage.json"
"""In the folder: where the copy of the search lies, and which generations of it the folder has all of."""
JOURNALS = (OPTUNA_JOURNAL, SEARCH_JOURNAL)
RESULTS = "results"
"""In the folder: the tables."""
VERSION = 2
"""Of copies whose journals have other names; of all others, which earlier programs can read, it is 1."""


class Generation(NamedTuple):
    """A state of a copy. token: of the driver that wrote it. number: grows with each state that this driver writes."""

    token: str
    number: int


class Copy(NamedTuple):
    """What copy.json says.

    cut: how much of the journals counts. generation: None of an earlier program's copy. journals: the token that their
    names there end with; empty where they have their plain ones.
    """

    cut: dict[str, int]
    generation: Generation | None
    journals: str = ""


def local_root() -> Path:
    """Where the folder of a search lies while it runs that is kept at a URI."""
    return Path(SEARCHES).absolute()


def local_storage(storage: str, *names: str) -> str:
    """The folder that holds these searches: fetched from there, as far as needed, where `storage` is a URI.

    Raises StorageError.
    """
    if not is_uri(storage):
        return storage
    for name in names:
        if re.fullmatch(r"[\w.-]+", name):  # a path is a folder by itself
            bring(Objects(storage), name, local_root())
    return str(local_root())


def bring(where: Objects, name: str, root: Path) -> Path:
    """The folder of a search that is kept at a URI, made from the copy there unless it is here and has all of it.

    where: the URI that holds searches. root: the folder that holds them here. Raises StorageError, when there is no
    such search too, when folder and copy have gone different ways, or when the copy cannot give back what the folder
    has lost.
    """
    folder, objects = root / name, where / name
    try:
        copy = read_copy(objects)
        here = (folder / SPEC).is_file()
        if copy is None and here and kept_at(folder) == where.shown:
            if max(generations(folder).values(), default=0) > 1:  # the first one was there when the second was noted
                raise StorageError(
                    f"{objects.shown} no longer holds the copy of {folder}; mount it or bring it back, or remove "
                    f"{folder / KEPT_AT} to go on without it, with --storage {root}"
                )
            return folder  # nothing had been copied yet
        if copy is None:
            if there := objects.names():
                nothing = all(one == OWNER or one.startswith(CLOCK) for one in there)
                remedy = f"remove {objects.shown}/{OWNER} to start it anew" if nothing else f"bring {CUT} back"
                raise StorageError(
                    f"{objects.shown} holds no whole copy of the search; go on with it where it was begun, or {remedy}"
                )
            known = [one for one in where.folders() if not one.startswith(".") and one != name]
            hint = did_you_mean(name, known, dotted=False) if known else "no search has been started there"
            raise StorageError(f"{where.shown} holds no search '{name}'; {hint}")
        if here:
            # Read after copy.json: a driver that runs here notes a generation before it writes it there.
            noted = generations(folder)
            same = copy.generation is None or has(noted, copy.generation)
            cut = copy.cut[SEARCH_JOURNAL]
            ours = _whole_lines((folder / SEARCH_JOURNAL).read_bytes() if (folder / SEARCH_JOURNAL).exists() else b"")
            theirs = _whole_lines(objects.get(stored_as(SEARCH_JOURNAL, copy.journals))[:cut] if cut else b"")
            known_there = kept_at(folder) == where.shown
            # Behind the journal's last line come scores, champion and report, which only generations tell apart.
            has_all = ours.startswith(theirs) and (same or ours != theirs)
            if not theirs:  # every folder begins like that
                has_all = same and known_there
            lost = _lost(objects, folder, copy) if has_all else []
            if has_all and not (lost and known_there and ours == theirs):  # else all of it is fetched
                if lost:
                    _bring_back(objects, folder, copy, lost)
                if not known_there or not same:
                    remember(folder, where, noted | _as_noted(copy.generation))
                _complete(objects, folder)
                return folder
            if not theirs.startswith(ours) or not known_there:
                raise StorageError(
                    f"the folder {folder} and the search at {objects.shown} have gone different ways; rename the "
                    "folder to go on with the copy, or start a new search with another --name"
                )
        elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise StorageError(
                f"{folder} lies where the search at {objects.shown} is to be fetched to, and is not replaced, since it "
                f"holds no {SPEC}; rename it and try again"
            )
        _fetch(objects, where, folder, copy)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"the search '{name}' cannot be fetched from {where.shown} ({where.reason(error)}); mend that and try again"
        ) from None
    return folder


def read_copy(objects: Objects) -> Copy | None:
    """What a copy says of itself; None where there is none. Raises StorageError for a newer or a damaged one."""
    try:
        content = json.loads(objects.get(CUT))
        if content["version"] > VERSION:
            raise StorageError(f"{objects.shown} was copied by a newer xlstm_tune; go on with the program that did it")
        cut, generation = {name: int(content["cut"][name]) for name in JOURNALS}, content.get("generation")
        found = generation and Generation(str(generation["token"]), int(generation["number"]))
        return Copy(cut, found, str(content.get("journals", "")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{objects.shown}/{CUT} is damaged ({error}); bring an older version of it back, or go on without the "
            f"copy by removing {KEPT_AT} from the folder that the search worked in, with --storage and the folder "
            "above, or start a new search with another --name"
        ) from None


def cut_content(copy: Copy) -> bytes:
    """What copy.json holds that says this."""
    content: dict[str, Any] = {"version": 1, "cut": copy.cut}
    if copy.generation:
        content["generation"] = copy.generation._asdict()
    if copy.journals:
        content |= {"version": VERSION, "journals": copy.journals}
    return as_json(content)


def other_owner(objects: Objects, token: str) -> str | None:
    """Who has the copy besides the driver of this token; None where nobody does, or a damaged name does not tell.

    Raises FileNotFoundError where the copy bears no name.
    """
    try:
        there = json.loads(objects.get(OWNER))
        return None if there["token"] == token else str(there.get("who", "another driver"))
    except (ValueError, KeyError, TypeError):
        return None


def check_there(objects: Objects) -> None:
    """Raise OSError where the storage has lost the search, as a folder has that is no longer mounted."""
    try:
        objects.get(SPEC)
    except FileNotFoundError:
        raise OSError("it holds the search no longer") from None


def taken_over(objects: Objects, who: str) -> str:
    """What is said where another driver has the copy."""
    return f"the search at {objects.shown} has been taken over by {who}; go on with it there"


def stored_as(journal: str, journals: str) -> str:
    """What a journal is called at the storage. journals: as a copy says it."""
    return f"{journal}.{journals}" if journals else journal


def kept_at(folder: Path) -> str | None:
    """Where the copy of the search in a folder lies, without credentials; None for a search of this folder alone."""
    try:
        return without_secrets(str(json.loads((folder / KEPT_AT).read_bytes())["storage"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def generations(folder: Path) -> dict[str, int]:
    """Which generations of its copy a folder has all of: by token, up to which number."""
    try:
        noted = json.loads((folder / KEPT_AT).read_bytes())["generations"]
        return {str(token): int(number) for token, number in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def has(noted: Mapping[str, int], generation: Generation) -> bool:
    """Whether a folder with these generations has all of this one."""
    return noted.get(generation.token, -1) >= generation.number


def remember(folder: Path, where: Objects, noted: Mapping[str, int]) -> None:
    """Note in a folder where its copy lies, and which generations of it the folder has all of. Whole or not at all, and
    on the disk when this returns: a copy must know of no generation that a power cut takes from the folder."""
    temporary = folder / f".{KEPT_AT}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(as_json({"storage": where.shown, "generations": dict(noted)}))
        sync(temporary)
        temporary.replace(folder / KEPT_AT)
        sync(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_checkpoint(name: str) -> bool:
    """Whether an object belongs to a trial's checkpoints, which only workers need."""
    return name.startswith("trials/") and f"/{CHECKPOINTS}/" in name


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _lost(objects: Objects, folder: Path, copy: Copy) -> list[str]:
    """What a folder lacks of the journals and tables that were copied."""
    lost, results = [name for name, size in copy.cut.items() if size_of(folder / name) < size], folder / RESULTS
    # Looked for again behind the listing: a driver that runs here may have made them meanwhile.
    if not results.exists() and objects.names(RESULTS) and not results.exists():
        lost.append(RESULTS)
    return lost


def _bring_back(objects: Objects, folder: Path, copy: Copy, lost: list[str]) -> None:
    """Fetch what a folder has lost whose search journal goes on behind the copy's, and stays: the driver makes from it
    what the copy's tables and study lack."""
    unfinished = folder / f".fetched.{os.getpid()}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        if OPTUNA_JOURNAL in lost:
            _fetch_journal(objects, OPTUNA_JOURNAL, copy, unfinished)
            _sync_all(unfinished)
            (unfinished / OPTUNA_JOURNAL).replace(folder / OPTUNA_JOURNAL)
        if RESULTS in lost:
            at_once(lambda name: objects.fetch(name, _inside(unfinished, name)), objects.names(RESULTS))
            _sync_all(unfinished)
            (unfinished / RESULTS).rename(folder / RESULTS)
        sync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _complete(objects: Objects, folder: Path) -> None:
    """Fetch what workers left of trials and the folder lacks, since the driver ended before it had come."""
    names = [name for name in objects.names("trials") if not is_checkpoint(name)]
    lacking = [name for name in names if not _inside(folder, name).exists()]
    at_once(lambda name: objects.fetch(name, folder / name, lasting=True), lacking)


def _as_noted(generation: Generation | None) -> dict[str, int]:
    return {generation.token: generation.number} if generation else {}


def _fetch(objects: Objects, where: Objects, folder: Path, copy: Copy) -> None:
    """Make the folder, whole or not at all; an older one is replaced."""
    names = [name for name in objects.names() if not is_checkpoint(name) and name.partition("/")[0] != STOPPED]
    wanted = [name for name in names if name not in (CUT, OWNER) and not name.startswith((CLOCK, *JOURNALS))]
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        at_once(lambda name: objects.fetch(name, _inside(unfinished, name)), wanted)
        for name in copy.cut:
            _fetch_journal(objects, name, copy, unfinished)
        for name in (SPEC, ENVIRONMENT):
            if not (unfinished / name).exists():
                raise StorageError(f"{objects.shown} lacks {name}; bring it back")
        remember(unfinished, where, _as_noted(copy.generation))
        _sync_all(unfinished)
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _fetch_journal(objects: Objects, name: str, copy: Copy, folder: Path) -> None:
    """As much of a journal as counts; nothing where none was written."""
    path, stored, size = folder / name, stored_as(name, copy.journals), copy.cut[name]
    with suppress(FileNotFoundError):
        objects.fetch(stored, path)
    if size_of(path) < size:
        raise StorageError(f"{objects.shown}/{stored} is shorter than what was written; bring it back")
    if path.exists():
        os.truncate(path, size)


def _sync_all(folder: Path) -> None:
    """Force what was fetched to the disk before it takes its place: a file that a power cut has emptied would be taken
    for what was there, and copied over it."""
    at_once(sync, [*folder.rglob("*"), folder])


def _inside(folder: Path, name: str) -> Path:
    """Where an object goes: never out of the folder, whatever it is called."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise StorageError(f"an object at the storage is called {name!r}, which is no name of a file of a search")
    return folder.joinpath(*parts)


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def as_json(content: dict[str, Any]) -> bytes:
    """For a small object."""
    return json.dumps(content).encode()
