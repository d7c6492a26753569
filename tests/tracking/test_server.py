"""Tracking to one real MLflow server that loses answers, goes away and comes back."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tracked import Server, check_search, say_search, say_trial, sent_bytes, stored, until

from xlstm_tune.errors import TrackingError
from xlstm_tune.tracking import Spool, Writer, check_tracking_uri, sync
from xlstm_tune.tracking.sender import Sender

pytestmark = pytest.mark.slow


class Proxy(http.server.ThreadingHTTPServer):
    """In front of the server: passes everything on, but can swallow the answers to some requests."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.swallow: dict[str, int] = {}  # part of the path -> how many answers
        self.host = f"127.0.0.1:{target}"  # under which name it asks the server
        super().__init__(("127.0.0.1", 0), _Forward)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Forward(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target)
        headers = {key: value for key, value in self.headers.items() if key not in {"Host", "Content-Length"}}
        connection.request(self.command, self.path, body, headers | {"Host": self.server.host})
        answer = connection.getresponse()
        content = answer.read()
        for part, left in self.server.swallow.items():
            if part in self.path and left:
                self.server.swallow[part] -= 1
                self.close_connection = True
                return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _forward

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_lost_answers_make_nothing_twice(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    proxy = Proxy(server.port)
    with Spool(folder, proxy.uri) as spool:
        say_search(spool, 2)
    proxy.swallow = {"runs/create": 2, "log-batch": 1, "mlflow-artifacts": 1, "runs/update": 1}
    sender, failures = Sender(folder, proxy.uri), 0
    while sender.waiting():
        try:
            sender.send_next()
        except Exception as error:
            failures += 1
            sender.failed(error)
            assert failures < 20, error
    proxy.shutdown()
    proxy.server_close()
    assert failures == 5 and not any(proxy.swallow.values())
    check_search(stored(server.uri, folder), 2)


def test_real_server_is_accepted_and_a_foreign_host_name_explained(server: Server) -> None:
    check_tracking_uri(server.uri)
    proxy = Proxy(server.port)
    check_tracking_uri(proxy.uri)
    proxy.host = "tracking.example.org"
    with pytest.raises(TrackingError, match=r"refuses this host name \(HTTP 403\); start it with --allowed-hosts"):
        check_tracking_uri(proxy.uri)
    proxy.shutdown()
    proxy.server_close()


def test_server_away_in_the_middle_and_back_delivers_everything_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    secret = server.uri.replace("http://", "http://annika:geheim@")
    with Spool(folder, secret) as spool:
        writer = Writer.start(folder, secret)
        spec = folder / "spec.yaml"
        spec.write_text("name: s\n")
        spool.search_started("s", {"search.trials": 12}, {}, [spec])
        for number in range(4):
            say_trial(spool, number, folder=folder)
        until(lambda: sent_bytes(folder) > 0)
        server.stop()
        started = time.monotonic()
        for number in range(4, 11):
            say_trial(spool, number, folder=folder)
        assert time.monotonic() - started < 10  # the search does not wait for a server
        until(lambda: bool(json.loads((folder / "mlflow" / "state.json").read_text())["error"]))
        server.start(wait=False)
        say_trial(spool, 11, folder=folder)
        spool.search_ended("completed", {"best_val_rmse": 1.0}, [spec])
        assert writer.finish(120) is None
    check_search(stored(server.uri, folder), 12)
    log = (folder / "mlflow" / "writer.log").read_text()
    assert "trying again and again" in log
    for path in (folder / "mlflow").iterdir():
        assert "geheim" not in path.read_text() and "annika:" not in path.read_text(), path
    # The password was not kept, so a later sync has to be given it.
    with pytest.raises(TrackingError, match=r"\*\*\*@.*whose password is not kept; set MLFLOW_TRACKING_URI"):
        sync(folder)
    assert sync(folder, secret) is None
