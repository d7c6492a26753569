"""Tracking URIs: which MLflow store is meant, whether it can be used, and how to write it without its password."""

from __future__ import annotations

import base64
import http.client
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import socket
import ssl
import sys
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from xlstm_tune.addresses import sqlite_address
from xlstm_tune.errors import TrackingError, reaching
from xlstm_tune.layout import MLFLOW_FILES
from xlstm_tune.strict import did_you_mean

# Scheme -> default port and the driver that SQLAlchemy takes when the URI names none.
_DATABASES = {"postgresql": (5432, "psycopg2"), "mysql": (3306, "mysqldb"), "mssql": (1433, "pyodbc")}
# Names of drivers in a URI that differ from the module's name.
_DRIVER_MODULES = {"mysqldb": "MySQLdb", "mysqlconnector": "mysql.connector"}
_KNOWN = ["http", "https", "sqlite", *_DATABASES, "databricks"]
_SQLITE_HEADER = b"SQLite format 3\x00"
# The words by which MLflow's own host check is told from a refusal of the person.
_HOST_REFUSED = b"Invalid Host header"
# Rather too much is hidden than too little: a quote, and up to a word's last @ also an @ or / that somebody left
# unquoted, may belong to a password. A file of SQLite has none, nor has models:/NAME@ALIAS of MLflow's registry.
_SECRET_KEYS = re.compile(r"(?i)((?:user|username|uid|password|passwd|pwd|token|secret|sslpassword)(?:=|%3d))[^&\s;]*")
_BEFORE_USER = re.compile(r"(?i)(?<!sqlite)(?<!models):/*")
_WORD = re.compile(r"\S+")
# What earlier programs hid: up to a quote alone, and also before an @ in the path of a file of SQLite.
_SECRET_KEYS_ONCE = re.compile(r"(?i)((?:user|username|uid|password|passwd|pwd|token|secret|sslpassword)=)[^&\s;'\"]*")
_USERINFO_ONCE = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s'\"]*@")
_TIMEOUT = 5.0  # seconds
_PORTS = {"http": 80, "https": 443}


def default_uri(storage: Path) -> str:
    """The URI of the SQLite database in the storage folder; its artifacts lie beside it in `mlflow-artifacts`."""
    return sqlite_address(str(storage.absolute() / "mlflow.db"))


def artifact_location(uri: str, storage: Path) -> str | None:
    """Where a new experiment keeps its artifacts, as a file URI; None lets the tracking server decide.

    A database that is written without a server has no say in it: MLflow would then use the current folder.
    """
    if _scheme(uri) == "sqlite":
        return (sqlite_path(uri).parent / MLFLOW_FILES).as_uri()
    if _scheme(uri) in _DATABASES:
        return (storage.absolute() / MLFLOW_FILES).as_uri()
    return None


def sqlite_path(uri: str) -> Path:
    """The database file of an sqlite URI, absolute."""
    return Path(unquote(uri.partition(":///")[2].partition("?")[0])).absolute()


def hide_credentials(text: str) -> str:
    """The text with user, password and token of any URI in it replaced by `***`."""
    return _WORD.sub(_without_user, _SECRET_KEYS.sub(r"\1***", text))


def _without_user(word: re.Match[str]) -> str:
    # Not one expression for the text: at each colon it would look for an @ up to the end, and JSON is one long word.
    text = word[0]
    end = text.rfind("@")
    found = _BEFORE_USER.search(text, 0, end) if end > 0 else None
    return text if found is None else f"{text[: found.end()]}***{text[end:]}"


def written_down(uri: str) -> set[str]:
    """The address without credentials as this program writes it down, and as earlier ones did."""
    return {hide_credentials(uri), _SECRET_KEYS_ONCE.sub(r"\1***", _USERINFO_ONCE.sub(r"\1***@", uri))}


def ui_command(uri: str, storage: Path, host: str = "127.0.0.1", port: int = 5000) -> str:
    """The command that shows the runs of a local database, or the address of the server that already does."""
    if _scheme(uri) in {"http", "https", "databricks"}:
        return hide_credentials(uri)
    store = hide_credentials(uri or default_uri(storage))
    # MLflow's default of four workers each take seconds and hundreds of MB; one person needs one.
    return (
        f"{python_command()} -m mlflow ui --backend-store-uri {shlex.quote(store)} "
        f"--host {host} --port {port} --workers 1"
    )


def python_command() -> str:
    """This interpreter, as one would call it in this terminal."""
    python = "python" if _same_file(shutil.which("python"), sys.executable) else _short(sys.executable)
    return shlex.quote(python)


def check_tracking_uri(uri: str) -> None:
    """Return if the tracking store answers (or can be made), else raise TrackingError with one sentence.

    Does not import MLflow. HTTP servers are asked with the credentials that MLflow itself would use
    (MLFLOW_TRACKING_USERNAME and _PASSWORD, MLFLOW_TRACKING_TOKEN, or user:password in the URI).
    """
    scheme = _scheme(uri.strip())
    shown = hide_credentials(uri)
    # Not shown, since a password might end at the blank. Paths may have some, but none before their scheme.
    if scheme and (uri[0].isspace() or (scheme not in {"file", "sqlite"} and re.search(r"\s", uri))):
        inside = uri == uri.strip()
        raise TrackingError(
            f"the {scheme} tracking URI has a blank {'in it' if inside else 'at an end'}, which no address has; "
            f"{'write %20 for it' if inside else 'take it away'}"
        )
    if re.fullmatch(r"[\w.-]+:\d{2,5}/?", uri):
        raise TrackingError(f"the tracking URI '{shown}' says a host and no scheme; write http://{shown}")
    if scheme in {"http", "https"}:
        _check_server(uri, shown)
    elif scheme == "sqlite":
        _check_sqlite(uri, shown)
    elif scheme in _DATABASES:
        _check_database(uri, scheme, shown)
    elif scheme in {"", "file"}:
        folder = unquote(urlsplit(uri).path) if scheme else uri
        instead = sqlite_address(str(Path(folder or ".").absolute() / "mlflow.db"))
        raise TrackingError(
            f"the tracking URI '{shown}' names a folder, and MLflow keeps runs in files no longer; use {instead}"
        )
    elif scheme != "databricks" and scheme not in _plugin_schemes():
        raise TrackingError(
            f"the tracking URI '{shown}' has the unknown scheme '{scheme}'; {did_you_mean(scheme, _KNOWN)}"
        )


def _scheme(uri: str) -> str:
    """`postgresql` of postgresql+psycopg2://…, `databricks` of the bare word, empty for a path."""
    if uri == "databricks":
        return uri
    match = re.match(r"([A-Za-z][A-Za-z0-9.-]*)(\+[A-Za-z0-9_]+)?:", uri)
    if not match:
        return ""
    scheme = match[1].lower()
    return "postgresql" if scheme == "postgres" else scheme


def _plugin_schemes() -> set[str]:
    """Schemes that installed MLflow plug-ins (sagemaker, azureml, …) add."""
    return {point.name for point in importlib.metadata.entry_points(group="mlflow.tracking_store")}


def _check_server(uri: str, shown: str) -> None:
    bare = re.split("[?#]", shown)[0].rstrip("/")
    if bare != shown.rstrip("/"):  # MLflow's client would ask the page for everything
        raise TrackingError(f"the tracking URI '{shown}' is that of a page; write {bare}")
    if not _address(uri, shown)[0]:
        raise _unreadable(shown)
    try:
        status, _ = _get(uri, "/health")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, TrackingError):
            raise
        raise TrackingError(
            f"the tracking server {shown} cannot be reached ({_reason(error)}); "
            "start it or name another with --tracking-uri"
        ) from None
    if status == 404:
        raise TrackingError(f"{shown} answers, but is no MLflow tracking server (it has no /health); mend the address")
    if status < 400:
        # /health is open to everyone; only a real question shows whether host and person are welcome.
        try:
            status, body = _get(uri, "/api/2.0/mlflow/experiments/search?max_results=1")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TrackingError(
                f"the tracking server {shown} stopped answering ({_reason(error)}); try again"
            ) from None
    else:
        body = b""
    if status == 401:
        raise TrackingError(
            f"the tracking server {shown} wants to know who asks (HTTP 401); "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status == 403 and _HOST_REFUSED in body:
        raise TrackingError(
            f"the tracking server {shown} refuses this host name (HTTP 403); "
            f"start it with --allowed-hosts '{_host_header(uri)}'"
        )
    if status == 403:
        raise TrackingError(
            f"the tracking server {shown} refuses us (HTTP 403); give its user the right to write, "
            f"or start it with --allowed-hosts '{_host_header(uri)}' if it is the host name that it refuses"
        )
    if status >= 400:
        raise TrackingError(f"the tracking server {shown} answers with HTTP {status}; look at its log, then try again")


def _reason(error: Exception) -> str:
    return hide_credentials(str(getattr(error, "reason", error))) or type(error).__name__


def _address(uri: str, shown: str) -> tuple[str, int | None]:
    """Host, empty where the URI names none, and port.

    Raises TrackingError in words of its own: the libraries' show what stands where the port should, which is half of a
    password that has a / in it.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as connecting does, which wants 1 to 63 characters between two dots
    except ValueError:
        raise _unreadable(shown) from None
    return host, port


def _unreadable(shown: str) -> TrackingError:
    return TrackingError(
        f"the tracking URI '{shown}' cannot be read: it has no host that can be one, or its port is no number up to "
        "65535; write / # ? @ of a password as %2F %23 %3F %40"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """As MLflow's client follows them: who asks is not told to another server."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        if again is not None and not _same_server(req.full_url, again.full_url):
            again.remove_header("Authorization")
        return again


def _same_server(before: str, after: str) -> bool:
    """Whether two HTTP addresses are of one server. That the second may be its HTTPS is taken for the same."""
    (scheme, host, port), there = (
        (parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme))
        for parts in map(urlsplit, (before, after))
    )
    return there == (scheme, host, port) or ((scheme, port) == ("http", 80) and there == ("https", host, 443))


def _get(uri: str, path: str) -> tuple[int, bytes]:
    """HTTP status and the beginning of the body. Raises OSError when nobody answers."""
    parts = urlsplit(uri)
    bare = urlunsplit((parts.scheme, _host_header(uri), parts.path.rstrip("/"), "", ""))
    request = urllib.request.Request(bare + path, headers=_authorization(parts.username, parts.password))
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_tls()), _Redirects)
    try:
        with opener.open(request, timeout=_TIMEOUT) as response:
            return response.status, response.read(4096)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(4096)


def _host_header(uri: str) -> str:
    return urlsplit(uri).netloc.rpartition("@")[2]


def _authorization(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    else:
        user, password = unquote(user), unquote(password or "")
    if user and password is not None:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    if not (token.isascii() and token.isprintable()):  # the library's own refusal would show it
        raise TrackingError(
            "MLFLOW_TRACKING_TOKEN has a line break or another character that no request can carry; set it anew"
        )
    return {"Authorization": f"Bearer {token}"} if token else {}


def _tls() -> ssl.SSLContext:
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"true", "1"}:
        return ssl._create_unverified_context()  # the person asked for it by MLflow's own variable
    return ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))


def _check_sqlite(uri: str, shown: str) -> None:
    if ":///" not in uri or ":memory:" in uri or not uri.partition(":///")[2]:
        raise TrackingError(
            f"the tracking URI '{shown}' names no file; write sqlite:///mlflow.db or sqlite:////absolute/path/mlflow.db"
        )
    path = sqlite_path(uri)
    if "~" in path.parts:
        home = str(path).partition("~")[2]
        raise TrackingError(
            f"the tracking URI '{shown}' names a folder '~', which is nobody's home in an address; write "
            f"sqlite:///{Path.home()}{home}"
        )
    with reaching(f"the tracking database {path}", TrackingError, "name another with --tracking-uri"):
        there, is_folder = path.exists(), path.is_dir()
    if is_folder:
        raise TrackingError(f"the tracking database {path} is a folder; name a file in it, e.g. {path / 'mlflow.db'}")
    if there:
        try:
            with path.open("r+b") as file:
                start = file.read(len(_SQLITE_HEADER))
        except OSError as error:
            raise TrackingError(f"the tracking database {path} cannot be written ({error.strerror})") from None
        if start and start != _SQLITE_HEADER:
            raise TrackingError(f"{path} is not an SQLite database; name another file with --tracking-uri")
        _check_author(path, shown)
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise TrackingError(
            f"the tracking database {path} cannot be written, because {folder} is no writable folder; "
            "name another with --tracking-uri"
        )


def _check_author(path: Path, shown: str) -> None:
    from xlstm_tune.tracking.schema import foreign_author  # loads sqlite3

    author = foreign_author(path)
    if author == "another program":
        raise TrackingError(
            f"{path} is another program's database, where MLflow would make tables of its own; "
            "name another file with --tracking-uri"
        )
    if author == "a newer MLflow":
        raise TrackingError(
            f"the tracking database {path} was written by another MLflow version than the one installed here, which "
            "does not know its tables; install a newer MLflow or name another with --tracking-uri"
        )
    if author == "an older MLflow":
        raise TrackingError(
            f"the tracking database {path} was written by another, older MLflow version than the one installed here; "
            f"keep a copy and bring it up to date with: {python_command()} -m mlflow db upgrade {shlex.quote(shown)}"
        )


def _check_database(uri: str, scheme: str, shown: str) -> None:
    default_port, default_driver = _DATABASES[scheme]
    driver = uri.partition(":")[0].partition("+")[2].lower() or default_driver
    module = _DRIVER_MODULES.get(driver, driver)
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise TrackingError(f"the tracking URI '{shown}' needs the Python driver '{driver}'; install it")
    host, port = _address(uri, shown)
    if not host:  # a Unix socket or a named data source: the driver alone can tell
        return
    try:
        socket.create_connection((host, port or default_port), timeout=_TIMEOUT).close()
    except (OSError, ValueError) as error:
        # With an @ behind the host, it may be the user, and the port the beginning of a password with a / in it.
        where = "" if "@" in "".join(urlsplit(uri)[2:]) else f" at {host}:{port or default_port}"
        raise TrackingError(
            f"the tracking database {shown} cannot be reached{where} ({getattr(error, 'strerror', None) or error}); "
            "start it or name another with --tracking-uri"
        ) from None


def _same_file(one: str | None, other: str) -> bool:
    # Not resolved: a virtual environment's python is a link to one that knows none of its packages.
    return one is not None and os.path.abspath(one) == os.path.abspath(other)


def _short(path: str) -> str:
    """Relative to the current folder where that is shorter."""
    here = os.getcwd().rstrip("/") + "/"
    return path.removeprefix(here)
