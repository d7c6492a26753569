"""`--cluster FILE`: begin a search on a cluster's head, or come back to one, and see it to its end."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from xlstm_tune.errors import ResourceError, StorageError
from xlstm_tune.layout import PAGE, SEARCHES, SPEC, STORAGE, TRACKING_URI
from xlstm_tune.search.persistence.resume import check_same_search
from xlstm_tune.search.remote.head import code_digest
from xlstm_tune.search.remote.inputs import Input, check_storage, find_inputs, moved, send_inputs
from xlstm_tune.search.remote.reach import Head, Unreachable, find_head
from xlstm_tune.search.remote.watch import check_copy, fetch, watch
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search_file import load_spec
from xlstm_tune.spec import SearchSpec
from xlstm_tune.storage.objects import is_uri, without_secrets
from xlstm_tune.tracking import hide_credentials, python_command

_ENDED = {
    0: "has ended",
    1: "did not end in order; its last words above say why",
    2: "was refused",
    129: "was stopped",
    130: "was stopped",
    137: "was killed",
    143: "was stopped",
}


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. name: of the search."""

    cluster: str
    name: str
    resume: bool = False
    stop: bool = False
    file: str | None = None
    """None: the search file that the head has."""
    overrides: Sequence[str] = ()
    trials: int | None = None
    storage: str = SEARCHES
    tracking_uri: str | None = None
    refit: bool = False

    @property
    def folder(self) -> Path:
        """Where the copy of the results lies. An address means where the search itself keeps its files."""
        here = SEARCHES if is_uri(self.storage) else self.storage
        return Path(os.path.expanduser(here)).absolute() / self.name

    def command(self, option: str, given: bool = False) -> str:
        """The command that comes back to this search with `--resume` or `--stop`, without passwords.

        given: with all that this command line gives.
        """
        words = [option, self.name, "--cluster", self.cluster, "--storage", without_secrets(self.storage)]
        uri = ""
        if given:
            words = [*([self.file] if self.file else []), *words]
            words += [word for one in self.overrides for word in ("--set", _without_password(one))]
            words += [] if self.trials is None else ["--trials", str(self.trials)]
            words += ["--refit"] if self.refit else []
            if self.tracking_uri:
                secret = _without_password(self.tracking_uri) != self.tracking_uri
                uri = " --tracking-uri " + (f'"${TRACKING_URI}"' if secret else shlex.quote(self.tracking_uri))
        return f"{python_command()} -m xlstm_tune.search {shlex.join(words)}{uri}"

    def given(self, changed: bool) -> str:
        """What may be new to a search that has begun, for people; empty where nothing can be. changed: its settings."""
        new = {"the settings": changed, "--refit": self.refit, "--tracking-uri": bool(self.tracking_uri)}
        return " and ".join(name for name, is_there in new.items() if is_there)


def search_on_cluster(asked: Asked, console: Console) -> int:
    """Do it; the exit code of the driver on the head, or 130 when Ctrl-C has ended the watching.

    Raises UserError with one sentence.
    """
    if not asked.stop:
        from xlstm_tune.search.environment import check_environment  # loads torch; --stop does without

        check_environment()  # the head's driver gets these variables
    checked = _checked(asked, asked.file) if asked.file else None
    with console.status("reaching the head"):
        head = find_head(asked.cluster)
    cluster = str(yaml.safe_load(Path(asked.cluster).expanduser().read_text())["cluster_name"])
    return Visit(head, cluster, asked, console).run(checked)


def _checked(asked: Asked, file: str) -> SearchSpec:
    """The search file with what was given beside it, checked as far as this machine can."""
    spec = load_spec(file, asked.overrides, name=asked.name, search__trials=asked.trials)
    check_storage(spec)
    space = Space.from_spec(spec)
    from xlstm_tune.search.plan import check_data  # loads torch; --stop and most of --resume do without

    if all(source.startswith("sample:") or "://" not in source for source in spec.data.source):
        check_data(spec, space)  # what lies elsewhere may be seen from the head alone
    return spec


class Visit:
    """One command's dealings with a head. cluster: its name."""

    def __init__(self, head: Head, cluster: str, asked: Asked, console: Console) -> None:
        self._head, self._cluster, self._asked, self._console = head, cluster, asked, console
        self._reached: Literal["nothing", "beginning", "running", "stopping", "ended"] = "nothing"
        """What this command knows of the search, which Ctrl-C tells."""
        self._found: dict[str, Any] = {}
        """As `look` has it, of a search that has ended."""

    def run(self, checked: SearchSpec | None) -> int:
        """See `search_on_cluster`. checked: what the command line gives; None = nothing that is new."""
        asked = self._asked
        if not asked.stop:
            check_copy(asked.folder, self._cluster)
        try:
            found = self._head.ask("look", asked.name)
            if asked.stop:
                return self._stop(found)
            return self._see(found, self._begin(found, checked))
        except Unreachable as problem:
            raise ResourceError(
                f"{problem}; see whether the cluster is up with: ray get-head-ip {shlex.quote(asked.cluster)}; a "
                f"search that runs there goes on, and the same command {'stops' if asked.stop else 'shows'} it"
            ) from None
        except KeyboardInterrupt:
            self._say(f"\n{self._left()}")
            return 130

    def _left(self) -> str:
        """What becomes of the search when the command is left now."""
        asked = self._asked
        if self._reached == "nothing":
            if asked.stop:
                return "Nothing was stopped yet; the same command stops the search."
            return "Nothing was begun yet, and what runs on the head goes on; the same command begins it or shows it."
        if self._reached == "stopping":
            return (
                "No longer watching; the search ends on the head when its running trials have saved what they have.\n"
                f"End it at once: {asked.command('--stop')}\nGo on with: {asked.command('--resume')}"
            )
        if self._reached == "ended":
            again = "goes on with it and then fetches" if asked.resume and self._found["code"] != 0 else "fetches"
            home = f"\nNot all of its results are here; the same command {again} them." if self._found["begun"] else ""
            return self._end() + home
        goes_on = "may have begun" if self._reached == "beginning" else "goes on"
        return (
            f"No longer watching; the search {goes_on} on the head.\nSee it again: {asked.command('--resume')}\n"
            f"Stop it: {asked.command('--stop')}"
        )

    def _begin(self, found: dict[str, Any], checked: SearchSpec | None) -> int | None:
        """Start what has to be started. The byte from which the log is news; None when there is nothing to watch."""
        asked, state = self._asked, found["state"]
        if state == "none" and asked.resume and checked is None:
            raise StorageError(
                f"{self._head.title} has no search '{asked.name}' to resume; leave --resume out to begin it, or give "
                "its FILE too where it is kept at a URI"
            )
        sources: list[Input | str] = []
        if checked is not None:
            sources = find_inputs(checked)
            text = moved(checked, sources, found["searches"])
        else:
            text = self._again(found)
        new = state == "none" or (not found["begun"] and state != "running")
        changed = not new and self._changed(found, text)
        given = asked.given(changed)
        if state == "running":
            self._reached = "running"
            if given:
                self._say(f"note: it runs already; what is new of {given} counts once it has ended and is resumed")
            self._say(f"Search {asked.name} runs on the head; the end of its log:")
            return int(found["tail"])
        if not new and not asked.resume:
            if given:
                command = asked.command("--resume", given=True)
                self._say(f"note: what is new of {given} counts with: {command}")
            return None
        if asked.resume and not new and not given and self._finished(found):
            return None
        self._note_code(found)
        if sources:
            with self._console.status("sending the data"):
                sent = send_inputs(self._head, sources)
            for one in sent:
                self._say(f"Sent to the head: {', '.join(list(one.files)[:3])} ({one.mib:,.1f} MiB)")
        self._reached = "beginning"
        begun = self._head.ask(
            "start",
            asked.name,
            send=self._request(text, asked.resume and self._goes_on(found), found).encode(),
        )
        self._reached = "running"
        self._say(f"Search {asked.name} {'begins' if new else 'goes on'} on the head; Ctrl-C only ends the watching.")
        return int(begun["log"])

    def _goes_on(self, found: dict[str, Any]) -> bool:
        """Whether there is something to resume: on the head, or at a URI, of which a new head does not know."""
        return bool(found["begun"] or found["state"] == "none" or is_uri(self._asked.storage))

    def _finished(self, found: dict[str, Any]) -> bool:
        """Whether going on could bring nothing new. One that has used up its time budget leaves exit code 0, too."""
        if found["code"] != 0 or found["spec"] is None:
            return False
        return _load(self._asked.name, self._on_head(found)).search.time_budget is None

    def _see(self, found: dict[str, Any], offset: int | None) -> int:
        """Watch from a byte of the log on, or tell how it stands; then bring the results home."""
        asked = self._asked
        if offset is not None:
            found = watch(self._head, asked.name, offset, self._console)
        self._reached, self._found = "ended", found
        if offset is None and found["log"]:
            watch(self._head, asked.name, found["tail"], self._console)  # its last words
        if found["begun"]:
            try:
                with self._console.status("fetching the results"):
                    fetch(self._head, asked.folder, self._cluster, asked.cluster)
            except (StorageError, ResourceError, Unreachable):
                self._say(self._end())
                raise
            page = f"; the report: {asked.folder / PAGE}" if (asked.folder / PAGE).exists() else ""
            self._say(f"\nFetched into {asked.folder}{page}")
        self._say(self._end())
        return 1 if found["state"] == "killed" or found["code"] is None else int(found["code"])

    def _end(self) -> str:
        """How the search ended."""
        name, code, go_on = self._asked.name, self._found["code"], self._asked.command("--resume")
        if self._found["state"] == "killed":
            return f"Search {name} was killed on the head; go on with: {go_on}"
        if code is None:
            return (
                f"Search {name} ended on the head and left no exit code, as one that was begun by hand there; go on "
                f"with: {go_on}"
            )
        words = f"Search {name} {_ENDED.get(code, f'ended with exit code {code}')}."
        return words if code in (0, 2) else f"{words}\nGo on with: {go_on}"

    def _stop(self, found: dict[str, Any]) -> int:
        """End a search in order."""
        if found["state"] != "running":
            self._say(f"Search {self._asked.name} does not run on the head.")
            return 0
        self._reached = "stopping"
        self._head.ask("stop", self._asked.name)
        watch(self._head, self._asked.name, found["tail"], self._console)
        self._say(f"Stopped; go on with: {self._asked.command('--resume')}")
        return 0

    def _again(self, found: dict[str, Any]) -> str:
        """The search file that the head has, with what was given anew."""
        asked = self._asked
        if found["spec"] is None:
            raise ResourceError(f"{self._head.title} has lost the search file of '{asked.name}'; give it as FILE")
        with _as_file(asked.name, self._on_head(found)) as path:
            spec = load_spec(str(path), asked.overrides, name=asked.name, search__trials=asked.trials)
        Space.from_spec(spec)
        return moved(spec, list(spec.data.source), found["searches"])

    def _on_head(self, found: dict[str, Any]) -> str:
        """The search file as it was sent, passwords included, with how much is searched and on what as a later driver
        was told, which somebody began by hand there."""
        sent: str = found["spec"]
        if found.get("later") is None:  # nor does a head with earlier code say so
            return sent
        spec, later = _load(self._asked.name, sent), _load(self._asked.name, found["later"])
        much = {"trials": later.search.trials, "time_budget": later.search.time_budget}
        spec = spec.model_copy(update={"search": spec.search.model_copy(update=much), "resources": later.resources})
        return moved(spec, list(spec.data.source), found["searches"])

    def _changed(self, found: dict[str, Any], text: str) -> bool:
        """Whether something is new that may be. Raises StorageError for what makes it another search."""
        if found["spec"] is None:
            return False
        with _as_file(self._asked.name, self._on_head(found)) as before:
            spec = _load(self._asked.name, text)
            check_same_search(before.parent, spec)
            return spec != load_spec(str(before))

    def _request(self, text: str, resume: bool, found: dict[str, Any]) -> str:
        """What `head.py` is to start."""
        asked = self._asked
        arguments = ["--address", "auto"]
        arguments += ["--resume", asked.name] if resume else []
        arguments += ["--refit"] if asked.refit else []
        environment = {
            name: value for name, value in os.environ.items() if name.startswith("XLSTM_TUNE_") and name != STORAGE
        }
        if is_uri(asked.storage):
            if without_secrets(asked.storage) == asked.storage:
                arguments += ["--storage", asked.storage]
            elif "later" in found:  # not on a command line, which everybody on the head can read
                environment[STORAGE] = asked.storage
            else:
                raise ResourceError(
                    f"{self._head.title} has earlier code, which would not see a --storage that holds a password; send "
                    f"it this code with: ray up --no-restart {asked.cluster}"
                )
        if asked.tracking_uri:
            environment[TRACKING_URI] = asked.tracking_uri
        return json.dumps({"spec": text, "arguments": arguments, "environment": environment})

    def _note_code(self, found: dict[str, Any]) -> None:
        if found["digest"] != code_digest():
            self._say(
                f"note: the head has other code than this machine; 'ray up {self._asked.cluster}' would ship this one, "
                "and restart Ray"
            )

    def _say(self, words: str) -> None:
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)


def _without_password(word: str) -> str:
    """What the command line gives, as it may be shown."""
    hidden = hide_credentials(without_secrets(word).replace(" ", "%20"))  # a blank, too, may stand in a password
    return hidden if "***" in hidden else word


def _load(name: str, text: str) -> SearchSpec:
    with _as_file(name, text) as path:
        return load_spec(str(path))


@contextmanager
def _as_file(name: str, text: str) -> Iterator[Path]:
    """A search file for as long as it is read, in a folder named after its search, for nobody else."""
    with tempfile.TemporaryDirectory(prefix="xlstm_tune-") as folder:
        path = Path(folder) / name / SPEC
        path.parent.mkdir()
        path.write_text(text)
        yield path
