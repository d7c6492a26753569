"""Files below a URI, on any file system that pyarrow knows: s3://, gs://, abfs://, hdfs://, file://."""

from __future__ import annotations

import io
import os
import posixpath
import re
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from xlstm_tune.addresses import SECRET_OPTIONS
from xlstm_tune.errors import StorageError
from xlstm_tune.lines import sync

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
_AT_ONCE = 8
"""Transfers side by side: objects are small, and each waits for its answer."""
_BLOCK = 1 << 20
_TRIES = 30
"""Of reading an object that somebody writes anew."""
_USERINFO = re.compile(r"(?s)(?<=://).*@")
_SECRET_OPTION = re.compile(rf"(?i)(?<=[?&])({'|'.join(SECRET_OPTIONS)})=([^&]*)")
_OBJECT_STORES = ("s3", "gcs", "abfs")
_ONE_REQUEST = 4 << 20
"""Bytes of an object that is sent when its stream is closed, and not before: S3 cuts from 10 MB on."""


def is_uri(storage: str) -> bool:
    """Whether `--storage` names no folder but a place on some file system."""
    return "://" in storage


def without_secrets(uri: str) -> str:
    """A URI as it may be shown: without the key and secret before its @, and without the values of secret options.

    The container of an abfs address stays. What has been through this comes out as it was.
    """
    if _userinfo(uri) is not None:
        uri = _USERINFO.sub("***@", uri, count=1)
    return _SECRET_OPTION.sub(r"\1=***", uri)


def _userinfo(uri: str) -> str | None:
    """What is secret before the @ of a URI, up to the last one: an @ in a password hides too much, not too little."""
    found = _USERINFO.search(uri)
    if found is None or (uri.startswith("abfs") and ":" not in found[0]):
        return None
    return found[0].removesuffix("@")


def _secrets(uri: str) -> list[str]:
    """What `without_secrets` hides, each as it stands there and as it is meant, the longest first."""
    found = [option[2] for option in _SECRET_OPTION.finditer(uri)]
    found += (_userinfo(uri) or "").split(":")
    return sorted({one for text in found for one in (text, unquote(text)) if one}, key=len, reverse=True)


class Objects:
    """What lies below a URI, by names relative to it, with `/` between their parts.

    Every method raises OSError where the store does not answer, refuses, or has no such name (FileNotFoundError), some
    seconds after the last of pyarrow's own tries. Safe to use from several threads; a pickled one opens anew.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.shown = uri.rstrip("/"), without_secrets(uri).rstrip("/")
        self._opening = threading.Lock()
        self._opened: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["uri"])  # type: ignore[misc]

    def __truediv__(self, name: str) -> Objects:
        """Those below a name."""
        address, found, query = self.uri.partition("?")
        return Objects(f"{address.rstrip('/')}/{name}{found}{query}")

    def reason(self, error: BaseException) -> str:
        """An error's first line, without what is secret in the URI."""
        line = str(error).strip().partition("\n")[0]
        for secret in _secrets(self.uri):
            line = line.replace(secret, "***")
        return line or type(error).__name__

    def put(self, name: str, content: bytes | Path, size: int | None = None) -> None:
        """Write an object, whole or not at all. content: bytes, or a file, of which the first `size` bytes count.

        Whatever closes a stream of pyarrow, be it an error or the garbage collector, publishes what it has got so far.
        So nothing may fail between a stream's beginning and its end under the object's own name.
        """
        system, root = self._open()
        path = posixpath.join(root, name)
        stores_objects = system.type_name in _OBJECT_STORES
        # Azure's accounts without folders cannot move an object.
        if stores_objects and (system.type_name == "abfs" or _length(content, size) <= _ONE_REQUEST):
            whole = content if isinstance(content, bytes) else _beginning(content, size)
            with system.open_output_stream(path) as out:
                out.write(whole)
            return
        folder, last = posixpath.split(path)
        hidden = f"{folder}/.{last}.{os.urandom(8).hex()}"
        if not stores_objects:
            system.create_dir(folder, recursive=True)
        try:
            with system.open_output_stream(hidden) as out:
                if isinstance(content, bytes):
                    out.write(content)
                else:
                    with content.open("rb") as file:
                        _copy(file, out, size)
            local = system.type_name == "local"
            if local:  # so that a power cut leaves no empty file where a whole one was
                sync(Path(hidden))
            system.move(hidden, path)
            if local:
                sync(Path(folder))
        except BaseException:
            with suppress(OSError):
                system.delete_file(hidden)
            raise

    def get(self, name: str) -> bytes:
        """What an object holds, of one moment where it is written anew meanwhile."""
        out = io.BytesIO()
        self._read(name, out)
        return out.getvalue()

    def fetch(self, name: str, place: Path, lasting: bool = False) -> None:
        """Write an object to a local file, whole or not at all, and as `get` reads it.

        lasting: after a power cut too.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as out:
                self._read(name, out)
            if lasting:
                sync(temporary)
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _read(self, name: str, out: IO[bytes]) -> None:
        """Write what the object holds to an empty file."""
        system, root = self._open()
        path = posixpath.join(root, name)
        for _ in range(_TRIES):
            out.seek(0)
            out.truncate()
            with system.open_input_stream(path) as file:
                _copy(file, out, None)
            # pyarrow asks for the size before it asks for so many bytes: a longer object that took the place is cut.
            if system.type_name not in _OBJECT_STORES or system.get_file_info(path).size == out.tell():
                return
        raise OSError(f"{name} is written anew faster than it can be read")

    def names(self, below: str = "") -> dict[str, datetime]:
        """Every object below a name, and when it was written, by the store's own clock."""
        from pyarrow.fs import FileSelector, FileType

        system, root = self._open()
        found = system.get_file_info(
            FileSelector(posixpath.join(root, below).rstrip("/"), recursive=True, allow_not_found=True)
        )
        start = root.rstrip("/") + "/"
        return {
            one.path.removeprefix(start): one.mtime
            for one in found
            if one.type == FileType.File and not one.base_name.startswith(".")
        }

    def folders(self) -> list[str]:
        """The names of the folders here."""
        from pyarrow.fs import FileSelector, FileType

        system, root = self._open()
        found = system.get_file_info(FileSelector(root, allow_not_found=True))
        return sorted(one.base_name for one in found if one.type == FileType.Directory)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are none the less."""
        system, root = self._open()

        def one(name: str) -> None:
            with suppress(FileNotFoundError):
                system.delete_file(posixpath.join(root, name))

        at_once(one, names)

    def remove_folder(self, name: str = "") -> None:
        """Remove everything below a name, which may be gone already."""
        system, root = self._open()
        with suppress(FileNotFoundError):
            system.delete_dir(posixpath.join(root, name).rstrip("/"))

    def _open(self) -> tuple[Any, str]:
        with self._opening:
            if self._opened is None:
                from pyarrow.fs import FileSystem

                uri = self.uri
                if uri.startswith("s3://"):  # a small object is then one request instead of three
                    uri += ("&" if "?" in uri else "?") + "allow_delayed_open=true"
                self._opened = FileSystem.from_uri(uri)
            return self._opened


def at_once(call: Any, items: Iterable[Any]) -> None:
    """Call for each item, several side by side. Raises the first error, when the calls under way have ended; after one,
    or Ctrl-C, no other call begins."""
    items = list(items)
    if len(items) < 2:
        for item in items:
            call(item)
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as pool:
        calls = [pool.submit(call, item) for item in items]
        try:
            ended, _ = wait(calls, return_when=FIRST_EXCEPTION)
        finally:  # Ctrl-C too
            pool.shutdown(wait=False, cancel_futures=True)
    for one in calls:
        if one in ended:
            one.result()


def check_reachable(objects: Objects) -> None:
    """Return when files can be written there and read back, else raise StorageError with one sentence."""
    import pyarrow as pa

    scheme = objects.uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise StorageError(
            f"--storage {objects.shown} has the unknown scheme '{scheme}'; give a folder, or an address that begins "
            "with s3://, gs://, abfs:// or file://"
        )
    probe = f".writable-{os.urandom(4).hex()}"
    try:
        objects.put(probe, b"")
        objects.get(probe)
        objects.remove([probe])
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"the storage {objects.shown} cannot be used ({objects.reason(error)}); mend the address, the credentials "
            "in the environment or the rights there, or choose another with --storage"
        ) from None


def holds(objects: Objects) -> bool:
    """Whether anything lies there. Raises StorageError."""
    import pyarrow as pa

    try:
        return bool(objects.names())
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{objects.shown} cannot be looked at ({objects.reason(error)}); try again") from None


def _length(content: bytes | Path, size: int | None) -> int:
    if isinstance(content, bytes):
        return len(content)
    return content.stat().st_size if size is None else size


def _beginning(path: Path, size: int | None) -> bytes:
    with path.open("rb") as file:
        return file.read(-1 if size is None else size)


def _copy(file: IO[bytes], out: Any, size: int | None) -> None:
    left = size
    while left is None or left > 0:
        block = file.read(_BLOCK if left is None else min(_BLOCK, left))
        if not block:
            return
        out.write(block)
        if left is not None:
            left -= len(block)
