"""`--cluster` where a command is left early, asks for what is refused, or asks anew of a search that has begun."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from fault_search import NAME, by_hand, write_search
from rich.console import Console
from tracked import ROOT, free_port

from xlstm_tune.errors import ResourceError
from xlstm_tune.search.remote import head as on_head
from xlstm_tune.search.remote.go import Asked, Visit
from xlstm_tune.search.remote.inputs import find_inputs, moved
from xlstm_tune.search.remote.reach import LocalHead
from xlstm_tune.search_file import load_spec

SPACE = {"model.family": {"choice": ["lstm", "slstm"]}}


class WatchedHead(LocalHead):
    """Which notes what it is asked; `breaks` happens when it is asked `at`."""

    def __init__(self, home: Path, at: str = "", breaks: Callable[[], None] | None = None) -> None:
        super().__init__(home)
        self.asked: list[str] = []
        self._at, self._breaks = at, breaks

    def start(self, *words: str, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        self.asked.append(words[0])
        if words[0] == self._at and self._breaks:
            self._breaks()
        return super().start(*words, stdin=stdin)


def ctrl_c() -> None:
    raise KeyboardInterrupt


class LostHead(LocalHead):
    """Which no connection reaches."""

    def command(self, words: list[str]) -> tuple[list[str], dict[str, str] | None]:
        return ["bash", "-c", "exit 255"], None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a head on this machine, where no Ray runs: a driver there is refused."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    (tmp_path / "home" / "searches").mkdir(parents=True)
    return tmp_path / "home"


def has_had(home: Path, code: int, trials: int = 3) -> Path:
    """Let the head have had a search that ended with this exit code; its folder."""
    searches = home / "searches"
    spec = load_spec(str(write_search(home.parent, space=SPACE, search={"trials": trials})))
    text = moved(spec, find_inputs(spec), str(searches))
    for folder in (searches / ".remote" / NAME, searches / NAME):
        folder.mkdir(parents=True, mode=0o700)
        (folder / "spec.yaml").write_text(text)
    (searches / f"{NAME}.log").write_text("the log\n")
    (searches / f"{NAME}.exit").write_text(f"{code}\n")
    return searches / NAME


def visit(head: LocalHead, asked: Asked) -> tuple[int, str]:
    """One command; its exit code and what it said."""
    console = Console(file=io.StringIO(), width=120)
    spec = load_spec(asked.file, asked.overrides, name=asked.name, search__trials=asked.trials) if asked.file else None
    code = Visit(head, "here", asked, console).run(spec)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def ask(home: Path, **given: Any) -> Asked:
    return Asked("c.yaml", NAME, **{"storage": str(home.parent / "here"), **given})


def driver_ended(home: Path) -> dict[str, Any]:
    """What `look` says when the driver that was started last has ended."""
    deadline = time.monotonic() + 240
    while (found := LocalHead(home).ask("look", NAME))["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return dict(found)


def test_search_that_used_up_its_time_budget_goes_on_and_a_finished_one_is_only_shown(home: Path) -> None:
    folder = has_had(home, 0)
    head = WatchedHead(home)
    code, said = visit(head, ask(home, resume=True))
    assert code == 0 and "has ended" in said and "start" not in head.asked

    text = (folder / "spec.yaml").read_text().replace("\nsearch:\n", "\nsearch:\n  time_budget: 30m\n")
    (home / "searches" / ".remote" / NAME / "spec.yaml").write_text(text)
    (home / "searches" / f"{NAME}.exit").write_text("0\n")
    head = WatchedHead(home, "start", ctrl_c)
    assert visit(head, ask(home, resume=True))[0] == 130 and head.asked[-1] == "start"


@pytest.mark.parametrize(
    ("at", "stop", "says", "says_not"),
    [
        ("look", False, "Nothing was begun yet", "goes on on the head"),
        ("missing", False, "Nothing was begun yet", "goes on on the head"),
        ("start", False, "the search may have begun on the head", "goes on on the head"),
        ("look", True, "Nothing was stopped yet", "--resume"),
    ],
)
def test_ctrl_c_before_a_search_has_begun_does_not_say_that_it_runs(
    at: str, stop: bool, says: str, says_not: str, home: Path, tmp_path: Path
) -> None:
    file = None if stop else str(write_search(tmp_path, space=SPACE))
    code, said = visit(WatchedHead(home, at, ctrl_c), ask(home, file=file, stop=stop))
    assert code == 130 and says in said and says_not not in said
    assert LocalHead(home).ask("look", NAME)["state"] == "none"


@pytest.mark.parametrize(
    ("stop", "says"),
    [(False, "the search goes on on the head"), (True, "the search ends on the head when its running trials")],
)
def test_ctrl_c_tells_a_search_that_goes_on_from_one_that_was_asked_to_stop(stop: bool, says: str, home: Path) -> None:
    folder = has_had(home, 0)
    with by_hand(folder) as driver:
        code, said = visit(WatchedHead(home, "follow", ctrl_c), ask(home, stop=stop))
        assert code == 130 and says in said and said.count("on the head") == 1 + (not stop)
        assert driver.wait(60) == 0 if stop else driver.poll() is None


@pytest.mark.parametrize("resume", [False, True])
def test_ctrl_c_while_the_results_are_fetched_says_how_the_search_ended(resume: bool, home: Path) -> None:
    has_had(home, 0)
    code, said = visit(WatchedHead(home, "pack", ctrl_c), ask(home, resume=resume))
    assert code == 130 and f"Search {NAME} has ended." in said and "the same command fetches them" in said
    assert "goes on" not in said


@pytest.mark.slow
def test_request_that_was_refused_does_not_stand_in_the_way_of_the_next(home: Path) -> None:
    has_had(home, 130)
    sent = home / "searches" / ".remote" / NAME / "spec.yaml"
    before = sent.read_text()
    code, said = visit(WatchedHead(home), ask(home, resume=True, trials=2))
    assert code == 2 and "was refused" in said
    assert sent.read_text() == before and sorted(one.name for one in sent.parent.iterdir()) == ["running", "spec.yaml"]
    found = driver_ended(home)
    assert (found["state"], found["code"], found["spec"]) == ("ended", 2, before)


@pytest.mark.parametrize("sent_before", [True, False])
@pytest.mark.parametrize(
    ("does", "stays"),
    [("sys.exit(2)", False), ("open(sys.argv[1], 'w').write('new'); sys.exit(2)", True), ("sys.exit(1)", True)],
)
def test_request_stays_where_the_driver_has_agreed(
    does: str, stays: bool, sent_before: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_head, "SEARCHES", home / "searches")
    kept = has_had(home, 130) / "spec.yaml"
    sent = home / "searches" / ".remote" / NAME / "spec.yaml"
    before = sent.read_text()
    if not sent_before:  # it was begun by hand on the head
        sent.unlink()
    on_head._replace(sent, "new", sent.with_name("former.yaml"))
    lock = os.open(sent.with_name("running"), os.O_WRONLY | os.O_CREAT)
    try:
        on_head.supervise(NAME, str(lock), json.dumps([sys.executable, "-c", f"import sys; {does}", str(kept)]))
    finally:
        os.close(lock)
    assert not sent.with_name("former.yaml").exists()
    assert (sent.read_text() if sent.exists() else None) == ("new" if stays else before if sent_before else None)
    assert on_head.state(NAME)["state"] == "ended"


def test_more_trials_given_by_hand_on_the_head_are_what_the_next_request_builds_on(home: Path) -> None:
    folder = has_had(home, 0)
    sent = home / "searches" / ".remote" / NAME / "spec.yaml"
    text = sent.read_text()
    sent.write_text(text.replace("\nsearch:\n", "\nsearch:\n  storage: postgresql://me:pw@x/y\n"))
    visitor = Visit(WatchedHead(home), "here", ask(home, resume=True, trials=7), Console(file=io.StringIO()))

    def builds(later: str, when: float) -> Any:
        (folder / "spec.yaml").write_text(later)
        os.utime(folder / "spec.yaml", (when, when))
        found = LocalHead(home).ask("look", NAME)
        file = home / "built.yaml"
        file.write_text(visitor._again(found))
        on = load_spec(str(file))
        assert on.search.storage == "postgresql://me:pw@x/y" and on.search.trials == 7
        return on

    raw = yaml.safe_load(text)
    raw["search"]["time_budget"], raw["resources"]["cpus_per_trial"] = 7200.0, 2
    later = yaml.safe_dump(raw)
    old, new = (builds(later, time.time() + seconds) for seconds in (-3600, 3600))
    assert (old.search.time_budget, old.resources.cpus_per_trial) == (None, 1)
    assert (new.search.time_budget, new.resources.cpus_per_trial) == (7200.0, 2)
    _, said = visit(LocalHead(home), ask(home, file=str(home.parent / "wave.yaml")))
    assert "what is new of the settings counts with" in said, "the file has no time budget, and the head's search has"


def test_what_is_given_to_a_search_that_has_ended_is_answered_with_the_command_that_does_it(home: Path) -> None:
    has_had(home, 0)
    file = str(home.parent / "wave.yaml")
    uri = "https://me:pw@host/mlflow"
    for given, told, options in (
        ({}, "", ""),
        ({"refit": True}, "--refit", " --refit"),
        ({"tracking_uri": "sqlite:////x/y.db"}, "--tracking-uri", " --tracking-uri sqlite:////x/y.db"),
        ({"tracking_uri": uri}, "--tracking-uri", ' --tracking-uri "$XLSTM_TUNE_TRACKING_URI"'),
        (
            {"trials": 5, "overrides": ["search.storage=postgresql://me:pw@x/y"], "refit": True},
            "the settings and --refit",
            " --set 'search.storage=postgresql://***@x/y' --trials 5 --refit",
        ),
    ):
        asked = ask(home, file=file, **given)
        code, said = visit(LocalHead(home), asked)
        notes = [line for line in said.splitlines() if line.startswith("note: ")]
        command = f"-m xlstm_tune.search {file} --resume {NAME} --cluster c.yaml --storage {asked.storage}{options}"
        assert code == 0 and "pw" not in said
        assert not notes if not given else notes[0].startswith(f"note: what is new of {told} counts with: "), said
        assert not given or notes[0].endswith(command), notes


def test_tracking_uri_with_resume_reaches_a_search_that_is_finished(home: Path) -> None:
    has_had(home, 0)
    head = WatchedHead(home, "start", ctrl_c)
    assert visit(head, ask(home, resume=True, tracking_uri="sqlite:////x/y.db"))[0] == 130
    assert head.asked[-1] == "start"


def test_address_of_a_storage_reaches_a_head_of_any_code_or_is_refused(home: Path) -> None:
    def request(storage: str, found: dict[str, Any]) -> dict[str, Any]:
        visit = Visit(LocalHead(home), "here", ask(home, storage=storage), Console())
        return dict(json.loads(visit._request("", False, found)))

    assert request("s3://bucket/x", {})["arguments"][-2:] == ["--storage", "s3://bucket/x"]
    with pytest.raises(ResourceError, match="has earlier code, which would not see a --storage that holds a password"):
        request("s3://KEY:pw@bucket/x", {})
    made = request("s3://KEY:pw@bucket/x", {"later": None})
    assert "--storage" not in made["arguments"] and made["environment"][on_head.STORAGE] == "s3://KEY:pw@bucket/x"


@pytest.mark.slow
def test_password_of_a_storage_stands_in_no_command_line_and_in_no_file(home: Path, tmp_path: Path) -> None:
    secret = "SecretOfTheBucket"
    uri = f"s3://KEY:{secret}@bucket/x?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=here"
    file = str(write_search(tmp_path, space=SPACE))
    asked = ask(home, file=file, storage=uri)
    assert secret not in asked.command("--resume") + asked.command("--stop") and "bucket/x" in asked.command("--stop")
    code, said = visit(WatchedHead(home, "follow", ctrl_c), asked)
    assert code == 130 and "goes on on the head" in said and secret not in said
    known = home / "searches" / ".remote" / NAME / "driver"
    deadline = time.monotonic() + 60
    while not known.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver = int(known.read_text())
    supervisor = int(Path(f"/proc/{driver}/stat").read_text().split()[3])
    for process in (driver, supervisor):
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode()
        assert "--address" in command and secret not in command and "--storage" not in command
        assert f"XLSTM_TUNE_STORAGE={uri}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    assert driver_ended(home)["code"] == 2
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files and all(secret.encode() not in path.read_bytes() for path in files)


def test_head_that_cannot_be_reached_is_answered_with_a_command_that_harms_nothing(home: Path) -> None:
    with pytest.raises(ResourceError, match=r"ray get-head-ip c\.yaml; a search that runs there goes on") as raised:
        visit(LostHead(home), ask(home, resume=True))
    assert "ray up" not in str(raised.value)


def test_exit_code_1_claims_no_more_than_is_known(home: Path) -> None:
    has_had(home, 1)
    code, said = visit(LocalHead(home), ask(home))
    assert code == 1 and said.index("the log") < said.index(f"Search {NAME} did not end in order; its last words above")
    assert f"Go on with: {ask(home).command('--resume')}" in said
