"""From a source as the user names it to one Arrow table that still knows which file each row came from."""

from __future__ import annotations

import fnmatch
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pa_parquet

from xlstm_tune.addresses import SECRET_OPTIONS
from xlstm_tune.data.config import ARROW, CSV, PARQUET, READABLE
from xlstm_tune.data.csv_files import File, read_csv
from xlstm_tune.data.labels import padded, with_labels
from xlstm_tune.errors import DataError, first_line
from xlstm_tune.strict import did_you_mean

_PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_WEB = ("http", "https", "ftp", "sftp")
# A / may stand unquoted in a password; after a port comes the path.
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?![^/@]*:\d+/)([^/@]*:[^@]*|[^/@]*)@")
_SECRET_OPTION = re.compile(rf"(?<=[?&])(?:{'|'.join(SECRET_OPTIONS)})=[^&]*&?")


@dataclass(frozen=True)
class Source:
    """One table and where its rows came from."""

    table: pa.Table
    files: tuple[str, ...]
    """Names of the files in row order."""
    ends: np.ndarray
    """int64 [files]: one past the last row of each file, counted over all files."""
    oracle: Mapping[str, str]
    """Of a built-in sample: the column with a target's conditional mean; empty for files."""
    asked: str = "data.source"
    """What named the files: the setting, or a command's argument."""

    def where(self, row: int) -> str:
        """Name a row (counted from 0 over all files) as its file counts it: the first data row is row 1."""
        file = int(np.searchsorted(self.ends, row, side="right"))
        first = int(self.ends[file - 1]) if file else 0
        place = f"row {row - first + 1}"
        return place if len(self.files) == 1 else f"{place} of {self.files[file]}"

    @property
    def name(self) -> str:
        """The file, or how many files there are."""
        return self.files[0] if len(self.files) == 1 else f"the {len(self.files)} files of {self.asked}"


def read_source(
    sources: Sequence[str], sample: Mapping[str, int | float], labels: Sequence[str] = (), asked: str = "data.source"
) -> Source:
    """Read `data.source` (paths, globs, folders, URIs, or one `sample:NAME`) into one table.

    labels: columns whose cells are names, which those of CSV files keep as `with_labels` has it.
    asked: what named the sources, as messages call it.
    Files must agree on their columns; their rows follow each other in the order of the sources, files of a glob or
    a folder in the order of their names. Raises DataError.
    """
    if not sources:
        raise DataError("'data.source' is empty; give a path, a glob, a folder, a URI or sample:NAME")
    built_in = [source for source in sources if source.startswith("sample:")]
    if built_in:
        if len(sources) > 1:
            raise DataError(f"'{built_in[0]}' cannot be joined with other sources; let it be the only 'data.source'")
        from xlstm_tune.data.samples import load_sample

        drawn = load_sample(built_in[0].removeprefix("sample:"), sample)
        _check_names(drawn.table, built_in[0])
        return Source(drawn.table, (built_in[0],), np.array([drawn.table.num_rows]), drawn.oracle)
    if sample:
        raise DataError(
            f"'data.sample' sets parameters of a built-in sample, but data.source is '{_without_secrets(sources[0])}'"
        )
    files = [file for source in sources for file in _find(source, asked)]
    tables = with_labels([_read(file) for file in files], files, labels)
    tables = [_with_partitions(table, file, labels) for table, file in zip(tables, files, strict=True)]
    table = _join(tables, files)
    if table.num_rows == 0:
        raise DataError(f"{files[0].name} has a header but no rows" if len(files) == 1 else "no file holds any rows")
    ends = np.cumsum([part.num_rows for part in tables])
    return Source(table, tuple(file.name for file in files), ends.astype(np.int64), {}, asked)


def without_views(table: pa.Table) -> pa.Table:
    """The table with views of text and bytes, as polars writes them, in plain columns: Arrow takes no rows of views."""
    for index, field in enumerate(table.schema):
        coded = pa.types.is_dictionary(field.type)
        plain = _PLAIN.get(field.type.value_type if coded else field.type)
        if plain is not None:
            kind = pa.dictionary(field.type.index_type, plain) if coded else plain
            table = table.set_column(index, field.name, table.column(index).cast(kind))
    return table


def local_files(source: str, asked: str = "data.source") -> list[str] | None:
    """Absolute paths of the files that a source names on this machine; None where it names none here.

    asked: as in `read_source`. Raises DataError.
    """
    if source.startswith("sample:") or ("://" in source and not source.startswith("file:")):
        return None
    return [file.path for file in _find(source, asked)]


def _find(source: str, asked: str) -> list[File]:
    """The files that one source names, in order of their paths."""
    remote = "://" in source
    shown = _without_secrets(source)
    magic = _first_magic(source)
    if remote and source.partition("://")[0] in _WEB:
        raise DataError(
            f"'{shown}' cannot be reached: addresses of tables begin with s3://, gs://, abfs://, hdfs:// or file://; "
            "put it at one of these, or download it and give the file's path"
        )
    try:
        if remote:
            address, _, query = source.partition("?")
            cut = address.rfind("/", 0, magic) if magic is not None else len(address)
            if magic is not None and cut < address.find("://") + 3:
                raise DataError(f"'{shown}' has a wildcard in the bucket's name; name the bucket in full")
            system, root = pa_fs.FileSystem.from_uri(address[:cut] + (f"?{query}" if query else ""))
            tail = [urllib.parse.unquote(part) for part in address[cut + 1 :].split("/")] if magic is not None else []
        else:
            path = os.path.abspath(os.path.expanduser(source))
            system, root = pa_fs.LocalFileSystem(), path
            tail = []
            # A file may really be called data[1].csv, so a name that exists is never taken for a pattern.
            magic = None if os.path.exists(path) else _first_magic(path)
            if magic is not None:
                cut = path.rfind(os.sep, 0, magic)
                root, tail = path[:cut] or os.sep, path[cut + 1 :].split(os.sep)
        if tail:
            found = sorted(_expand(system, root, tail))
            if not found:
                raise DataError(f"no file matches '{shown}'{'' if remote else _start(source)}")
            return [File(system, path, path if remote else os.path.relpath(path)) for path in found]
        info = system.get_file_info(root)
        if info.type == pa_fs.FileType.NotFound:
            raise DataError(f"'{shown}' does not exist{'' if remote else _near(root, source, asked)}")
        if info.type == pa_fs.FileType.Directory:
            return _folder(system, root, shown)
        return [File(system, root, shown)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{shown}' cannot be reached: {first_line(error).replace(source, shown)}") from None


def without_credentials(source: str) -> str:
    """The source without user, key and password. What names the place stays: an abfs container, gs://anonymous@."""
    found = _USERINFO.match(source)
    if found is not None:
        scheme, info = found.groups()
        rest = source[found.end() :]
        authority, slash, path = rest.partition("/")
        rest = authority.rpartition("@")[2] + slash + path  # of a password with an unquoted @ in it
        container = info.partition(":")[0] if scheme.lower() in ("abfs", "abfss") else ""
        kept = container or (info if info == "anonymous" else "")
        source = f"{scheme}://{kept}{'@' if kept else ''}{rest}"
    return _SECRET_OPTION.sub("", source).rstrip("?&") if "://" in source else source


def _without_secrets(source: str) -> str:
    """The source as messages may show it: without credentials and options."""
    return without_credentials(source).partition("?")[0] if "://" in source else source


def _first_magic(text: str) -> int | None:
    # A question mark opens the query of a URI; elsewhere it stands for any one character.
    marks = "*[" if "://" in text else "*[?"
    places = [text.find(mark) for mark in marks if mark in text]
    return min(places) if places else None


def _near(path: str, source: str, asked: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return f": there is no folder {folder}"
    hint = did_you_mean(name, os.listdir(folder), dotted=False)
    return f"; {hint}" if hint.startswith("did") else _start(source) or f"; check {asked}"


def _start(source: str) -> str:
    """Where a relative path begins; a search file's are absolute by now."""
    return "" if os.path.isabs(source) else f"; a relative path starts at {os.getcwd()}"


def _expand(system: pa_fs.FileSystem, root: str, tail: list[str]) -> set[str]:
    """Files under `root` whose path below it matches the pattern's parts; `**` stands for any folders."""
    head, rest = tail[0], tail[1:]
    selector = pa_fs.FileSelector(root, allow_not_found=True, recursive=head == "**")
    entries = system.get_file_info(selector)
    folders = [entry.path for entry in entries if entry.type == pa_fs.FileType.Directory]
    if head == "**":
        # Zero folders as well: a/**/b.csv also means a/b.csv.
        return {path for folder in [root, *folders] for path in _expand(system, folder, rest or ["*"])}
    matching = [entry for entry in entries if fnmatch.fnmatchcase(entry.base_name, head)]
    matching = [entry for entry in matching if not entry.base_name.startswith(".") or head.startswith(".")]
    if not rest:
        return {entry.path for entry in matching if entry.type == pa_fs.FileType.File}
    inner = [entry.path for entry in matching if entry.type == pa_fs.FileType.Directory]
    return {path for folder in inner for path in _expand(system, folder, rest)}


def _folder(system: pa_fs.FileSystem, root: str, source: str) -> list[File]:
    """Every readable file under a folder; `year=2020/` on the way to a file becomes a column, as Hive has it."""
    files = []
    for entry in system.get_file_info(pa_fs.FileSelector(root, recursive=True)):
        parts = entry.path[len(root) :].strip("/").split("/")
        hidden = any(part.startswith((".", "_")) for part in parts)
        if entry.type == pa_fs.FileType.File and not hidden and entry.base_name.lower().endswith(READABLE):
            pairs = [part.split("=", 1) for part in parts[:-1] if "=" in part]
            partitions = tuple((key, urllib.parse.unquote(value)) for key, value in pairs)
            files.append(File(system, entry.path, "/".join(parts), partitions))
    if not files:
        raise DataError(f"the folder '{source}' holds no file that can be read ({', '.join(READABLE)})")
    return sorted(files, key=lambda file: file.path)


def _read(file: File) -> pa.Table:
    """One file as a table, without its partition columns."""
    lower = file.path.lower()
    try:
        if lower.endswith(CSV):
            table = read_csv(file)
        elif lower.endswith(PARQUET):
            with file.system.open_input_file(file.path) as opened:
                table = pa_parquet.ParquetFile(opened).read()
                table.validate(full=True)
        elif lower.endswith(ARROW):
            with file.system.open_input_file(file.path) as opened:
                stream = lower.endswith(".arrows")
                table = (pa.ipc.open_stream if stream else pa.ipc.open_file)(opened).read_all()
                table.validate(full=True)  # Arrow believes what a file says about itself, such as where a text ends
        else:
            raise DataError(f"{file.name} is of a kind that cannot be read; readable are {', '.join(READABLE)}")
        _check_names(table, file.name)
    except UnicodeDecodeError:
        raise DataError(f"{file.name} is not UTF-8 text; save it as UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        if file.system.get_file_info(file.path).size == 0:
            raise DataError(f"{file.name} is empty") from None
        raise DataError(f"{file.name} cannot be read: {first_line(error)}") from None
    return table


def _with_partitions(table: pa.Table, file: File, labels: Sequence[str]) -> pa.Table:
    """The table with a column for each `key=value` folder that it lies in."""
    for name, value in file.partitions:
        if name not in table.column_names:
            number = value.isascii() and value.isdigit() and not (name in labels and padded(pa.array([value])))
            table = table.append_column(name, pa.repeat(int(value) if number else value, table.num_rows))
    return table


def _check_names(table: pa.Table, name: str) -> None:
    names: list[str] = table.column_names
    twice = sorted({column for column in names if names.count(column) > 1})
    if "" in twice:
        raise DataError(f"{name} has more than one column without a name; give them names or remove them")
    if twice:
        raise DataError(f"{name} has more than one column named '{twice[0]}'; rename one of them")


def _join(tables: list[pa.Table], files: list[File]) -> pa.Table:
    """Rows of all files one after another; where types differ, numbers widen and the rest is read as text.

    A column without a name is left out where a file lacks it, as one does that has nothing there (`read_csv`).
    """
    if any("" not in table.column_names for table in tables):
        tables = [table.drop_columns("") if "" in table.column_names else table for table in tables]
    first = tables[0]
    for table, file in zip(tables[1:], files[1:], strict=True):
        for one, other, a, b in ((first, table, files[0], file), (table, first, file, files[0])):
            lacking = [name for name in one.column_names if name not in other.column_names]
            if lacking:
                raise DataError(f"{b.name} lacks the column '{lacking[0]}' that {a.name} has; files must agree")
    if not any(table.num_rows for table in tables):
        return first
    tables = [table.select(first.column_names) for table in tables]
    for index, name in enumerate(first.column_names):
        # A file without rows says nothing about types.
        types = {table.schema.field(name).type for table in tables if table.num_rows}
        types = {kind for kind in types if not pa.types.is_null(kind)}
        if len(types) > 1:
            if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in types):
                common = pa.float64() if any(pa.types.is_floating(kind) for kind in types) else pa.int64()
            elif all(pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and not kind.tz) for kind in types):
                common = pa.timestamp("ns")
            else:
                common = pa.string()
            cast = [_cast(table.column(name), common, name, file) for table, file in zip(tables, files, strict=True)]
            tables = [table.set_column(index, name, column) for table, column in zip(tables, cast, strict=True)]
        elif types:
            (common,) = types
            tables = [
                table if table.num_rows else table.set_column(index, name, pa.chunked_array([], type=common))
                for table in tables
            ]
    return pa.concat_tables([table.replace_schema_metadata() for table in tables], promote_options="permissive")


def _cast(column: pa.ChunkedArray, common: pa.DataType, name: str, file: File) -> pa.ChunkedArray:
    try:
        return column.cast(common)
    except pa.ArrowException:
        raise DataError(
            f"column '{name}' of {file.name} holds {column.type} values that cannot be joined with those of the other "
            f"files as {common}; files must agree"
        ) from None
