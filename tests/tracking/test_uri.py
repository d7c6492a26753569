"""Tracking URIs: accepted, refused in one sentence, and shown without credentials."""

from __future__ import annotations

import http.server
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import create_engine, text
from tracked import free_port

from xlstm_tune.errors import TrackingError
from xlstm_tune.tracking import check_tracking_uri, default_uri, hide_credentials, ui_command
from xlstm_tune.tracking.uri import _same_server, artifact_location, sqlite_path

BASIC = "Basic YW5uaWthOmdlaGVpbQ=="
"""Of annika and geheim."""


def refusal(uri: str) -> str:
    with pytest.raises(TrackingError) as caught:
        check_tracking_uri(uri)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_check_accepts_databases_that_are_or_can_be_made(tmp_path: Path, empty_database: Path) -> None:
    check_tracking_uri(default_uri(tmp_path / "not" / "yet"))
    check_tracking_uri(f"sqlite:///{empty_database}")
    check_tracking_uri("databricks")
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("name", ["searches", "a b", "#1", "100%", "my%20files", "why?", "a@b:c"])
def test_the_database_of_a_storage_folder_lies_in_it_whatever_its_name(name: str, tmp_path: Path) -> None:
    storage = tmp_path / name
    storage.mkdir()
    uri = default_uri(storage)
    with create_engine(uri).connect() as connection:
        connection.execute(text("create table made (here int)"))
        connection.commit()
    assert sqlite_path(uri) == storage / "mlflow.db" and [one.name for one in storage.iterdir()] == ["mlflow.db"]
    assert artifact_location(uri, tmp_path) == (storage / "mlflow-artifacts").as_uri()


def test_check_refuses_bad_sqlite_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database at all")
    assert "is not an SQLite database" in refusal(f"sqlite:///{tmp_path / 'notes.txt'}")
    assert "is a folder; name a file in it" in refusal(f"sqlite:///{tmp_path}")
    assert "no writable folder" in refusal(f"sqlite:///{tmp_path / 'notes.txt' / 'mlflow.db'}")
    assert "names no file" in refusal("sqlite://")
    assert "names no file" in refusal("sqlite:///:memory:")


@pytest.mark.parametrize("uri", ["127.0.0.1:5000", "localhost:5000", "mlflow.example.org:5000/"])
def test_check_says_what_an_address_lacks(uri: str) -> None:
    assert f"the tracking URI '{uri}' says a host and no scheme; write http://{uri}" in refusal(uri)


def test_check_refuses_addresses_that_mlflow_would_take_for_others() -> None:
    said = refusal("http://127.0.0.1:5000/#/experiments/0")
    assert said.endswith("#/experiments/0' is that of a page; write http://127.0.0.1:5000")
    assert f"sqlite:///{Path.home()}/x/mlflow.db" in refusal("sqlite:///~/x/mlflow.db")


@pytest.mark.parametrize("uri", ["./mlruns", "/tmp/mlruns", "file:/tmp/mlruns", "file:///tmp/mlruns", ""])
def test_check_refuses_folders_and_says_sqlite(uri: str) -> None:
    folder = "/tmp/mlruns" if "tmp" in uri else str(Path(uri or ".").absolute())
    assert refusal(uri).endswith(f"keeps runs in files no longer; use sqlite:///{folder}/mlflow.db")


def test_the_database_in_place_of_a_folder_is_one_in_it_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a%20b?c"
    for uri in (str(folder), folder.as_uri()):
        assert sqlite_path(refusal(uri).rpartition("use ")[2]) == folder / "mlflow.db"


def test_check_names_the_nearest_scheme() -> None:
    assert "unknown scheme 'sqllite'; did you mean 'sqlite'?" in refusal("sqllite:///x.db")
    assert "did you mean 'https'?" in refusal("htps://server")
    assert "known here: databricks, http" in refusal("zzz://server")


def test_check_of_servers_that_are_not_there() -> None:
    message = refusal(f"http://annika:geheim@127.0.0.1:{free_port()}")
    assert "cannot be reached (" in message and "refused" in message
    assert "geheim" not in message and "annika" not in message and "***@127.0.0.1" in message
    # Any module that is installed does for a driver here; nobody listens, so none is used.
    message = refusal(f"postgresql+sqlite3://annika:geheim@127.0.0.1:{free_port()}/mlflow")
    assert "cannot be reached at 127.0.0.1:" in message and "geheim" not in message
    assert "needs the Python driver 'nosuch'" in refusal("mysql+nosuch://h/db")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secr/et@host:5000", "http://***@host:5000"),
        ("http://user:secr#et@host", "http://***@host"),
        ("http://user:secr?et@host", "http://***@host"),
        ("postgresql+json://user:secr/et@host/db", "postgresql+json://***@host/db"),
        ("postgresql+json://u:p@a..b/db", "postgresql+json://***@a..b/db"),
        (f"postgresql+json://u:p@{'a' * 70}/db", f"postgresql+json://***@{'a' * 70}/db"),
        ("mysql+json://u:p@[half/db", "mysql+json://***@[half/db"),
        ("http://u:p@a..b", "http://***@a..b"),
        ("http://h:99999", "http://h:99999"),
        ("http://[half", "http://[half"),
        ("http://", "http://"),
        ("http:/u:p@h", "http:/***@h"),
    ],
)
def test_check_shows_no_part_of_a_password_that_is_not_quoted(uri: str, shown: str) -> None:
    said = refusal(uri)
    assert said.startswith(f"the tracking URI '{shown}' cannot be read: it has no host that can be one, or its port is")
    assert said.endswith("write / # ? @ of a password as %2F %23 %3F %40") and "secr" not in said


def test_check_shows_no_password_in_the_place_of_host_and_port() -> None:
    said = refusal(f"postgresql+json://127.0.0.1:{(port := free_port())}/et@host/db")  # of the password 'PORT/et'
    assert str(port) not in said and "the tracking database postgresql+json://***@host/db cannot be reached (" in said
    said = refusal("http://user:sec ret@localhost:1")
    assert said == "the http tracking URI has a blank in it, which no address has; write %20 for it"


@pytest.mark.parametrize("token", ["t0ken\n", "t0k\rX: y", "tökén"])
def test_check_shows_no_token_that_cannot_be_sent(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    said = refusal(f"http://127.0.0.1:{free_port()}")
    assert said.startswith("MLFLOW_TRACKING_TOKEN has a line break or another character") and "t0k" not in said


class _Guard(http.server.BaseHTTPRequestHandler):
    """What stands in front of many a tracking server: it wants a name and a password, and some hosts no one."""

    seen: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        status = {"/none/health": 404, "/busy/health": 503, "/no/health": 403}.get(self.path)
        if status is None:
            status = 200 if self.headers.get("Authorization") or self.path == "/health" else 401
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_check_explains_refusals_and_sends_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guard) as guard:
        threading.Thread(target=guard.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{guard.server_address[1]}"
        assert "wants to know who asks (HTTP 401); set MLFLOW_TRACKING_USERNAME" in refusal(f"http://{host}")
        assert "is no MLflow tracking server" in refusal(f"http://{host}/none")
        assert "HTTP 503" in refusal(f"http://{host}/busy/")
        assert f"--allowed-hosts '{host}'" in refusal(f"http://{host}/no")
        check_tracking_uri(f"http://annika:ge%40heim@{host}")
        assert _Guard.seen[-1] == "Basic YW5uaWthOmdlQGhlaW0="
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
        check_tracking_uri(f"http://{host}")
        assert _Guard.seen[-1] == "Bearer t0ken"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
        check_tracking_uri(f"http://{host}")
        assert _Guard.seen[-1] == "Basic Ym9iOnB3"
        guard.shutdown()


class _Moved(http.server.BaseHTTPRequestHandler):
    """A server that has moved: below /here to another path, below /away to the address of `away`, `/bad` to none."""

    seen: list[tuple[str, str | None]] = []  # noqa: RUF012
    away = ""

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        target = {"here": "/there", "away": self.away, "bad": "http://[half"}.get(self.path.split("/")[1])
        self.send_response(200 if target is None else 302)
        if target is not None:
            self.send_header("Location", target + "/health")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_check_tells_the_password_to_no_server_that_another_sends_it_to() -> None:
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Moved) as one,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Moved) as other,
    ):
        for server in (one, other):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        _Moved.away = f"http://127.0.0.1:{other.server_address[1]}/away-from-home"
        host = f"127.0.0.1:{one.server_address[1]}"
        check_tracking_uri(f"http://annika:geheim@{host}/here")
        assert _Moved.seen[:2] == [("/here/health", BASIC), ("/there/health", BASIC)]
        _Moved.seen.clear()
        check_tracking_uri(f"http://annika:geheim@{host}/away")
        assert _Moved.seen[:2] == [("/away/health", BASIC), ("/away-from-home/health", None)]
        assert "cannot be reached (" in refusal(f"http://{host}/bad")
        for server in (one, other):
            server.shutdown()


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("http://h/x", "http://h:80/y", True),
        ("http://h/x", "https://h/x", True),
        ("http://h:5000/x", "https://h/x", False),
        ("https://h/x", "http://h/x", False),
        ("http://h/x", "http://h:81/x", False),
        ("https://h/x", "https://h.evil/x", False),
    ],
)
def test_another_server_is_told_from_the_same(before: str, after: str, same: bool) -> None:
    assert _same_server(before, after) is same
    assert requests.Session().should_strip_auth(before, after) is not same, "as MLflow's client has it"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://h:5000/x", "http://h:5000/x"),
        ("http://u:p@h:5000/x", "http://***@h:5000/x"),
        ("postgresql+psycopg2://u:p@h/db", "postgresql+psycopg2://***@h/db"),
        ("http://u:p@ss/w@h", "http://***@h"),
        ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=***&password=***&x=1"),
        ("request to http://u:p@h failed, see http://h/log", "request to http://***@h failed, see http://h/log"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("sqlite:////home/u@uni/b.db", "sqlite:////home/u@uni/b.db"),
        ("models:/quick@champion is gone", "models:/quick@champion is gone"),
        ("http://u:pa'ss@h:5000", "http://***@h:5000"),
        ('http://u:pa"ss@h:5000', "http://***@h:5000"),
        ("mysql://u:pa'ss@h/db: gone", "mysql://***@h/db: gone"),
        ("postgresql://h/db?password=pa'ss&x=1", "postgresql://h/db?password=***&x=1"),
        ("postgresql://h/db?password=pa@ss&x=1", "postgresql://h/db?password=***&x=1"),
        ("mssql:///?odbc_connect=UID%3Du%3BPWD%3Dp&x=1", "mssql:///?odbc_connect=UID%3D***&x=1"),
        ("http:/u:p@h", "http:/***@h"),
        ("u:p@h:5000", "u:***@h:5000"),
    ],
)
def test_hide_credentials(text: str, hidden: str) -> None:
    assert hide_credentials(text) == hidden


@pytest.mark.parametrize("piece", ['{"a":"b/c","d":1},', "u:p@h/", "sqlite:x", "://", "password:", "@"])
def test_one_long_word_is_read_in_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    began = time.process_time()
    shown = hide_credentials(text + " http://u:p@h")
    assert time.process_time() - began < 1 and shown.endswith(" http://***@h")


@pytest.mark.parametrize(
    "uri", [" http://h:5000", "http://h:5000\n", "\tpostgresql://u:p@h/db", " sqlite:///x.db", " http://u:p q@h"]
)
def test_check_says_that_a_blank_at_an_end_is_too_much(uri: str) -> None:
    said = refusal(uri)
    assert said.endswith("tracking URI has a blank at an end, which no address has; take it away")
    assert "u:p" not in said


def test_ui_command_quotes_and_hides() -> None:
    storage = Path("/data/my searches")
    assert default_uri(storage) == "sqlite:////data/my searches/mlflow.db"
    command = ui_command(default_uri(storage), storage)
    assert (
        "-m mlflow ui --backend-store-uri 'sqlite:////data/my searches/mlflow.db' --host 127.0.0.1 --port 5000"
        in command
    )
    assert ui_command("http://u:p@h:5000", storage) == "http://***@h:5000"
    assert ui_command("http://u:pa'ss@h:5000", storage) == "http://***@h:5000"
    assert "pa'ss" not in ui_command("postgresql://u:pa'ss@h/db", storage)
