"""What goes to the head with a search: the search file whole, and the data files that lie on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import yaml

from xlstm_tune.data.read import local_files
from xlstm_tune.errors import SpecError
from xlstm_tune.search.remote.head import INPUTS, tree_digest
from xlstm_tune.search.remote.reach import Head
from xlstm_tune.spec import SearchSpec


@dataclass(frozen=True)
class Input:
    """A source of the data that lies here."""

    files: dict[str, Path]
    """Its name in the archive → the file."""
    folder: bool
    """The source is a folder, whose subfolders may be columns, rather than single files."""
    digest: str

    def sources(self, searches: str) -> list[str]:
        """What stands in the search file instead. searches: the folder of searches on the head."""
        place = f"{searches}/{INPUTS}/{self.digest}"
        return [place] if self.folder else [f"{place}/{name}" for name in self.files]

    @property
    def mib(self) -> float:
        """Size."""
        return sum(path.stat().st_size for path in self.files.values()) / 2**20


def find_inputs(spec: SearchSpec) -> list[Input | str]:
    """The sources of a search in their order: those that lie here, and others (`sample:`, s3://) as they are."""
    return [_input(source) for source in spec.data.source]


def _input(source: str) -> Input | str:
    found = local_files(source)
    if found is None:
        return source
    root = os.path.abspath(os.path.expanduser(_path(source)))
    if folder := os.path.isdir(root):
        files = {os.path.relpath(path, root): Path(path) for path in found}
    else:  # a glob's files may have one name in different folders; the number keeps their order as well
        several = len(found) > 1
        files = {(f"{n:06d}/" if several else "") + os.path.basename(path): Path(path) for n, path in enumerate(found)}
    return Input(files, folder, tree_digest(files))


def _path(source: str) -> str:
    if not source.startswith("file:"):
        return source
    return urllib.parse.unquote(urllib.parse.urlsplit(source).path)


def moved(spec: SearchSpec, inputs: list[Input | str], searches: str) -> str:
    """The search file as the head reads it, passwords included: it is sent, and kept for its owner alone."""
    sources = [one for each in inputs for one in ([each] if isinstance(each, str) else each.sources(searches))]
    raw = spec.model_dump(by_alias=True, exclude_none=True)
    raw["data"]["source"] = sources
    return yaml.safe_dump(raw, sort_keys=False)


def check_storage(spec: SearchSpec) -> None:
    """Raise SpecError for a study's database that only this machine has."""
    storage = spec.search.storage or ""
    if storage.startswith("sqlite"):
        raise SpecError(
            f"search.storage is {storage}, a file of this machine, which the head of a cluster cannot open; leave it "
            "out: the study then lies in the search's folder there"
        )


def send_inputs(head: Head, inputs: list[Input | str]) -> list[Input]:
    """Send what the head does not have yet, and say what that was. Raises Unreachable or ResourceError."""
    here = {one.digest: one for one in inputs if isinstance(one, Input)}
    wanted = [here[digest] for digest in head.ask("missing", *here)] if here else []
    for one in wanted:
        process = head.start("receive", one.digest, stdin=subprocess.PIPE)
        assert process.stdin is not None and process.stderr is not None
        with contextlib.suppress(BrokenPipeError):  # the other side has said why
            with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                for name, path in one.files.items():
                    archive.add(path.resolve(), arcname=name, recursive=False)
            process.stdin.close()
        errors = process.stderr.read()
        head.check(process.wait(), errors, "receive")
    return wanted
