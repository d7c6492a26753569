"""Tracking URIs: accepted, refused in one sentence, and shown without credentials."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest
from tracked import free_port

from xlstm_tune.errors import TrackingError
from xlstm_tune.tracking import check_tracking_uri, default_uri, hide_credentials, ui_command


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
    assert "cannot be reached" in refusal("http://[half")
    assert f"sqlite:///{Path.home()}/x/mlflow.db" in refusal("sqlite:///~/x/mlflow.db")


@pytest.mark.parametrize("uri", ["./mlruns", "/tmp/mlruns", "file:/tmp/mlruns", "file:///tmp/mlruns", ""])
def test_check_refuses_folders_and_says_sqlite(uri: str) -> None:
    assert "keeps runs in files no longer; use sqlite:////" in refusal(uri)


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
    assert "cannot be reached" in refusal("http://")


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
    ],
)
def test_hide_credentials(text: str, hidden: str) -> None:
    assert hide_credentials(text) == hidden


def test_ui_command_quotes_and_hides() -> None:
    storage = Path("/data/my searches")
    assert default_uri(storage) == "sqlite:////data/my searches/mlflow.db"
    command = ui_command(default_uri(storage), storage)
    assert (
        "-m mlflow ui --backend-store-uri 'sqlite:////data/my searches/mlflow.db' --host 127.0.0.1 --port 5000"
        in command
    )
    assert ui_command("http://u:p@h:5000", storage) == "http://***@h:5000"
