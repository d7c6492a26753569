"""`--cluster`: a search on a head that is reached over SSH, and what the head itself does."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from fault_search import NAME, by_hand, write_search
from ray.cluster_utils import Cluster
from rich.console import Console
from ssh_head import SSHServer, without_sshd
from tracked import ROOT, free_port, give_database

from xlstm_tune.errors import DataError, ResourceError, StorageError
from xlstm_tune.results import read
from xlstm_tune.search.persistence.journal import read_journal
from xlstm_tune.search.remote import head as on_head
from xlstm_tune.search.remote.go import Asked, Visit
from xlstm_tune.search.remote.head import code_digest, tree_digest
from xlstm_tune.search.remote.inputs import Input, find_inputs, send_inputs
from xlstm_tune.search.remote.reach import LocalHead, find_head
from xlstm_tune.search.remote.watch import FETCHED, check_copy, fetch
from xlstm_tune.search_file import load_spec

SPACE = {"model.family": {"choice": ["lstm", "slstm"]}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a head on this machine, where no Ray runs: a driver there is refused."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def visit(head: LocalHead, asked: Asked) -> tuple[int, str]:
    """One command; its exit code and what it said."""
    console = Console(file=io.StringIO(), width=120)
    spec = load_spec(asked.file, name=asked.name, search__trials=asked.trials) if asked.file else None
    code = Visit(head, "here", asked, console).run(spec)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_search_that_the_head_refuses_says_so_and_can_be_begun_again(home: Path, tmp_path: Path) -> None:
    head, file = LocalHead(home), write_search(tmp_path, space=SPACE)
    asked = Asked(
        "cluster.yaml", NAME, file=str(file), storage=str(tmp_path / "here"), tracking_uri="sqlite:////x/y.db"
    )
    code, said = visit(head, asked)
    assert code == 2 and "no Ray cluster answers at 127.0.0.1" in said and "was refused" in said
    assert not asked.folder.exists() and (home / "searches" / f"{NAME}.exit").read_text() == "2\n"
    sent = home / "searches" / ".remote" / NAME / "spec.yaml"
    assert sent.stat().st_mode & 0o777 == 0o600
    (source,) = load_spec(str(sent)).data.source
    assert (
        source.startswith(f"{home}/searches/.inputs/")
        and Path(source).read_text() == (tmp_path / "wave.csv").read_text()
    )
    assert visit(head, asked)[0] == 2, "there is no search yet that could stand in the way"
    other = Asked("cluster.yaml", "other", resume=True)
    with pytest.raises(StorageError, match="no search 'other' to resume"):
        visit(head, other)


def test_head_tells_a_driver_that_runs_from_one_that_was_killed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver waits for its data: a pipe that nobody fills."""
    head = LocalHead(home)
    assert head.ask("look", NAME) | {"digest": ""} == {
        **{"searches": f"{home}/searches", "digest": "", "state": "none", "code": None},
        **{"begun": False, "spec": None, "later": None, "log": 0, "tail": 0},
    }
    os.mkfifo(tmp_path / "never.csv")
    spec = write_search(tmp_path, data={"source": str(tmp_path / "never.csv")}).read_text()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        request = {"spec": spec, "arguments": ["--address", "auto"], "environment": {}}
        head.ask("start", NAME, send=json.dumps(request).encode())
        known = home / "searches" / ".remote" / NAME / "driver"
        until(known.exists)
        driver = int(known.read_text())
        assert head.ask("look", NAME)["state"] == "running"
        with pytest.raises(ResourceError, match="is being run already"):
            head.ask("start", NAME, send=json.dumps(request).encode())
        supervisor = int(Path(f"/proc/{driver}/stat").read_text().split()[3])
        for process in (supervisor, driver):
            os.kill(process, signal.SIGKILL)
        found = until(lambda: (now := head.ask("look", NAME))["state"] != "running" and now)
    assert (found["state"], found["code"], found["begun"], found["spec"]) == ("killed", None, False, spec)


def test_stop_reaches_a_driver_that_was_begun_by_hand_and_no_other_process(home: Path) -> None:
    head, notes = LocalHead(home), home / "searches" / ".remote" / NAME
    notes.mkdir(parents=True)
    with by_hand(home / "searches" / "another") as other, by_hand(home / "searches" / NAME) as driver:
        (notes / "driver").write_text(str(other.pid))  # of a driver whose end nobody saw; the number has been used anew
        (home / "searches" / f"{NAME}.exit").write_text("0\n")
        assert head.ask("stop", NAME)["state"] == "running"
        assert driver.wait(60) == 0 and other.poll() is None
    found = head.ask("look", NAME)
    assert (found["state"], found["code"]) == ("ended", None), "the code is of the driver before"
    shutil.copy(write_search(home.parent, space=SPACE), home / "searches" / NAME / "spec.yaml")
    console = Console(file=io.StringIO(), width=300)
    asked = Asked("cluster.yaml", NAME, storage=str(home.parent / "here"))
    assert Visit(head, "here", asked, console).run(None) == 1
    assert f"Search {NAME} ended on the head and left no exit code" in console.file.getvalue()  # type: ignore[attr-defined]


def test_exit_code_of_an_earlier_driver_is_none_of_one_that_was_killed(home: Path) -> None:
    head, folder = LocalHead(home), home / "searches" / NAME
    folder.mkdir(parents=True)
    (home / "searches" / f"{NAME}.exit").write_text("0\n")
    with by_hand(folder) as driver:
        driver.kill()
        driver.wait()
        found = head.ask("look", NAME)
    assert (found["state"], found["code"]) == ("killed", None)


def test_search_that_was_killed_before_its_driver_took_the_lock_was_killed(home: Path, tmp_path: Path) -> None:
    """The lock's file that its earlier driver has emptied, at an end in order, says nothing of this one."""
    head, folder = LocalHead(home), home / "searches" / NAME
    with by_hand(folder) as driver:
        driver.send_signal(signal.SIGINT)
        assert driver.wait(60) == 0
    (home / "searches" / f"{NAME}.exit").write_text("0\n")
    assert head.ask("look", NAME)["code"] == 0
    spec = write_search(tmp_path, space=SPACE).read_text()
    request = {"spec": spec, "arguments": ["--address", "auto", "--resume", NAME], "environment": {}}
    head.ask("start", NAME, send=json.dumps(request).encode())
    known = home / "searches" / ".remote" / NAME / "driver"
    until(known.exists)
    started = int(known.read_text())
    supervisor = int(Path(f"/proc/{started}/stat").read_text().split()[3])
    for process in (supervisor, started):
        os.kill(process, signal.SIGKILL)
    found = until(lambda: (now := head.ask("look", NAME))["state"] != "running" and now)
    assert (folder / "driver.lock").stat().st_size == 0, "it was killed before it had the lock"
    assert (found["state"], found["code"]) == ("killed", None)


def test_start_that_broke_off_leaves_no_exit_code_of_an_earlier_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed between the search file, which may be another, and the code's removal."""
    monkeypatch.setattr(on_head, "SEARCHES", home / "searches")
    folder, notes = home / "searches" / NAME, home / "searches" / ".remote" / NAME
    notes.mkdir(parents=True)
    (home / "searches" / f"{NAME}.exit").write_text("0\n")
    time.sleep(0.05)  # a file system's clock ticks slowly
    with by_hand(folder) as driver:
        (notes / "spec.yaml").touch()
        time.sleep(0.05)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(60) == 0
    assert on_head.state(NAME) == {"state": "ended", "code": None}, "one begun by hand after it"
    (home / "searches" / f"{NAME}.exit").write_text("0\n")
    assert on_head.state(NAME) == {"state": "ended", "code": 0}
    time.sleep(0.05)
    (notes / "spec.yaml").touch()
    assert on_head.state(NAME) == {"state": "killed", "code": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "nobody knows which process runs"), ("process 1 on another-machine since", "another-machine since; stop it")],
)
def test_stop_of_a_driver_that_is_not_known_is_one_sentence(
    text: str, words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_head, "SEARCHES", home / "searches")
    monkeypatch.setattr(on_head, "KNOWN", 0.1)
    with by_hand(home / "searches" / NAME) as driver:
        (home / "searches" / NAME / "driver.lock").write_text(text)
        with pytest.raises(on_head.HeadError, match=words):
            on_head.stop(NAME)
        assert driver.poll() is None


def test_supervisor_leaves_no_number_of_a_driver_that_has_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_head, "SEARCHES", home / "searches")
    notes = home / "searches" / ".remote" / NAME
    notes.mkdir(parents=True)
    lock = os.open(notes / "running", os.O_WRONLY | os.O_CREAT)
    try:
        on_head.supervise(NAME, str(lock), json.dumps([sys.executable, "-c", "raise SystemExit(3)"]))
    finally:
        os.close(lock)
    assert not (notes / "driver").exists() and on_head.state(NAME) == {"state": "ended", "code": 3}


def test_data_arrive_whole_or_not_at_all(home: Path, tmp_path: Path) -> None:
    head = LocalHead(home)
    (tmp_path / "county=a").mkdir()
    (tmp_path / "county=a" / "x.csv").write_text("y\n1\n")
    (tmp_path / "b.csv").write_text("y\n2\n")
    (tmp_path / "note.md").write_text("no data")
    spec = load_spec(
        str(write_search(tmp_path / "file", data={"source": [str(tmp_path), f"{tmp_path}/*.csv", "s3://bucket/x.csv"]}))
    )
    folder, glob, there = find_inputs(spec)
    assert isinstance(folder, Input) and isinstance(glob, Input) and there == "s3://bucket/x.csv"
    assert sorted(folder.files) == ["b.csv", "county=a/x.csv", "file/wave.csv"] and list(glob.files) == ["b.csv"]
    assert len(send_inputs(head, [folder, glob, there])) == 2 and not send_inputs(head, [folder, glob, there])
    place = home / "searches" / ".inputs" / folder.digest
    assert (place / "county=a" / "x.csv").read_text() == "y\n1\n" and not (place / "note.md").exists()
    assert glob.sources("/s") == [f"/s/.inputs/{glob.digest}/b.csv"]
    with pytest.raises(ResourceError, match="arrived damaged"):
        send_inputs(head, [Input(glob.files, False, "0" * 32)])
    assert {path.name for path in place.parent.iterdir()} == {folder.digest, glob.digest}
    (tmp_path / "b.csv").write_text("y\n3\n")
    assert tree_digest(glob.files) != glob.digest
    with pytest.raises(DataError, match="does not exist"):
        find_inputs(load_spec(str(write_search(tmp_path / "gone", data={"source": str(tmp_path / "gone.csv")}))))


def test_copy_never_replaces_a_search_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(StorageError, match="holds a search of this machine"):
        check_copy(tmp_path / "mine", "there")
    (tmp_path / "mine" / FETCHED).write_text(json.dumps({"cluster": "there", "file": "c.yaml"}))
    check_copy(tmp_path / "mine", "there")
    with pytest.raises(StorageError, match="the copy of a search on the cluster 'there'"):
        check_copy(tmp_path / "mine", "elsewhere")


def test_search_of_this_machine_that_began_while_another_was_watched_stays(home: Path, tmp_path: Path) -> None:
    there, here = home / "searches" / NAME, tmp_path / "here" / NAME
    there.mkdir(parents=True)
    (there / "spec.yaml").write_text("of the cluster")
    for _ in range(2):
        fetch(LocalHead(home), here, "there", "c.yaml")
    assert (here / "spec.yaml").read_text() == "of the cluster"
    shutil.rmtree(here)
    here.mkdir()
    (here / "search.journal").write_text("{}\n")
    with pytest.raises(StorageError, match="holds a search of this machine"):
        fetch(LocalHead(home), here, "there", "c.yaml")
    assert [path.name for path in here.parent.rglob("*")] == [NAME, "search.journal"]


def test_cluster_that_is_not_up_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    with pytest.raises(ResourceError, match="cannot be read as one \\(No such file"):
        find_head(str(file))
    file.write_text("cluster_name: x\n")
    with pytest.raises(ResourceError, match="cannot be read as one \\(KeyError"):
        find_head(str(file))
    file.write_text(
        f"{{cluster_name: never-up-{os.getpid()}, provider: {{type: local, head_ip: 127.0.0.1, worker_ips: []}}, "
        "auth: {ssh_user: me}}"
    )
    with pytest.raises(ResourceError, match=r"is not up; start it with: ray up .*c\.yaml"):
        find_head(str(file))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")
    for tries in reversed(range(3)):  # Ray gives a node thirty seconds, which a busy machine does not always have
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            break
        except Exception as error:
            cluster.shutdown()
            if not tries or "timed out during startup" not in str(error):
                raise
    yield cluster
    cluster.shutdown()


@pytest.fixture
def server(tmp_path: Path, cluster: Cluster) -> Iterator[SSHServer]:
    server = SSHServer(
        tmp_path / "head",
        RAY_ADDRESS=cluster.address,
        MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/head/mlflow.db",
    )
    server.up()
    yield server
    server.down()


def until(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)
    return answer


needs_sshd = pytest.mark.skipif(bool(without_sshd()), reason=without_sshd() or "sshd is there")


@pytest.mark.slow
@needs_sshd
def test_watching_over_ssh_ends_without_the_search_and_the_search_ends_in_order(tmp_path: Path) -> None:
    """Its Ray never answers, so that the driver waits for it for as long as the test takes."""
    file, here = write_search(tmp_path, space=SPACE), tmp_path / "here"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"sqlite:///{tmp_path}/head/mlflow.db"
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        server = SSHServer(tmp_path / "head", RAY_ADDRESS=address, MLFLOW_TRACKING_URI=uri)
        give_database(tmp_path / "head")
        log = server.home / "searches" / f"{NAME}.log"

        def start(*arguments: str) -> Command:
            always = ["--cluster", str(server.file), "--storage", str(here)]
            return Command([*arguments, *always], tmp_path, {"PYTHONPATH": str(ROOT)})

        def ended(command: Command, code: int) -> str:
            output, errors = command.communicate(600)
            assert command.poll() == code and not errors, output + errors
            return output

        def shows(command: Command, words: str) -> None:
            until(lambda: words in command.said() or command.poll() is not None, 600)
            assert command.poll() is None, command.communicate()

        server.up()
        try:
            first = start(str(file))
            shows(first, f"Search {NAME}: 2 trials")
            first.send_signal(signal.SIGINT)
            output = ended(first, 130)
            assert "Sent to the head: wave.csv" in output and "the search goes on on the head" in output
            assert f"--resume {NAME} --cluster {server.file}" in output
            assert f"--stop {NAME} --cluster {server.file}" in output

            again = start(str(file))
            shows(again, "runs on the head; the end of its log")
            shows(again, f"Search {NAME}: 2 trials")
            server.shut()
            shows(again, "trying again, the search goes on")
            server.open()
            assert "Stopped; go on with" in ended(start("--stop", NAME), 0)
            output = ended(again, 130)
            assert f"Search {NAME} was stopped" in output and output.count(f"Search {NAME}: 2 trials") == 1
            assert log.read_text().splitlines()[-1] in output

            assert "was stopped" in ended(start(str(file)), 130)
            assert {"spec.yaml", "environment.json", "search.log", FETCHED} <= {
                one.name for one in (here / NAME).iterdir()
            }
            local = Command(["--resume", NAME, "--storage", str(here)], tmp_path, {})
            output, errors = local.communicate(600)
            assert local.poll() == 2 and "is a copy of the results" in errors
        finally:
            server.down()


@pytest.mark.slow
@pytest.mark.alone
@needs_sshd
@pytest.mark.skipif(
    "XLSTM_TUNE_CLUSTER_TESTS" not in os.environ,
    reason="takes two to six minutes, and the test above shows most of it; XLSTM_TUNE_CLUSTER_TESTS=1",
)
def test_search_over_ssh_outlives_the_terminal_the_connection_and_its_driver(server: SSHServer, tmp_path: Path) -> None:
    file = write_search(tmp_path, space=SPACE, training={"epochs": 60})
    give_database(tmp_path / "head")
    there, here = server.home / "searches" / NAME, tmp_path / "here"
    always = ["--cluster", str(server.file), "--storage", str(here)]

    def epochs() -> int:
        past = read_journal(there).trials if there.exists() else {}
        return sum(len(one.rows) for one in past.values())

    def start(*arguments: str) -> Command:
        # Without the cluster's address: it is the head's to know.
        return Command([*arguments, *always], tmp_path, {"PYTHONPATH": str(ROOT), "XLSTM_TUNE_REPORT": "on"})

    first = start(str(file))
    until(lambda: epochs() > 3 or first.poll() is not None)
    first.send_signal(signal.SIGINT)
    output, errors = first.communicate()
    assert first.poll() == 130 and not errors, output + errors
    assert "Sent to the head: wave.csv" in output and "the search goes on on the head" in output
    assert f"--stop {NAME} --cluster {server.file}" in output

    notes = server.home / "searches" / ".remote" / NAME
    seen = epochs()
    until(lambda: epochs() > seen)  # with nobody watching
    driver = int((notes / "driver").read_text())
    supervisor = int(Path(f"/proc/{driver}/stat").read_text().split()[3])
    for process in (supervisor, driver):
        os.kill(process, signal.SIGKILL)
    again = start(str(file))
    output, errors = again.communicate()
    assert again.poll() == 1 and not errors, output + errors
    assert "was killed on the head; go on with: " in output and f"--resume {NAME} --cluster {server.file}" in output

    seen = epochs()
    on = start("--resume", NAME)
    until(lambda: epochs() > seen or on.poll() is not None)
    server.shut()
    time.sleep(1)
    server.open()
    stop = start("--stop", NAME)
    output, errors = stop.communicate()
    assert stop.poll() == 0 and not errors and "Stopped; go on with" in output, output + errors
    output, errors = on.communicate()
    assert on.poll() == 130 and not errors, output + errors
    assert "goes on on the head" in output and "trying again, the search goes on" in output
    log = (server.home / "searches" / f"{NAME}.log").read_text()
    shown = "".join(line for line in output.splitlines(keepends=True) if "trying again" not in line)
    assert log[log.index("Resuming") :] in shown, "each byte once"

    last = start("--resume", NAME)
    output, errors = last.communicate()
    assert last.poll() == 0 and not errors and output.count(" won: rmse ") == 1, output + errors
    assert len(read(here / NAME, "trials")) == 2 and len(read(here / NAME, "epochs")) == 120
    assert (here / NAME / "report.html").stat().st_size > 10_000 and (here / NAME / "champion").is_dir()
    assert not (here / NAME / "trials").exists()
    ended = start(str(file))
    output, errors = ended.communicate()
    assert ended.poll() == 0 and "has ended" in output and " won: rmse " in output, output + errors
    local = Command(["--resume", NAME, "--storage", str(here)], tmp_path, {})
    output, errors = local.communicate()
    assert local.poll() == 2 and "is a copy of the results" in errors
    changed = start(str(write_search(tmp_path, space=SPACE, training={"epochs": 61})))
    output, errors = changed.communicate()
    assert changed.poll() == 2 and "training.epochs is 60 there and 61 here" in errors


def test_code_digest_is_of_every_module(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "xlstm_tune", tmp_path / "xlstm_tune", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where `python -m` looks first
    head = LocalHead(home)
    assert head.ask("look", NAME)["digest"] == code_digest()
    with (tmp_path / "xlstm_tune" / "kernels" / "lstm_reference.py").open("a") as file:
        file.write("\n")
    assert head.ask("look", NAME)["digest"] != code_digest()
