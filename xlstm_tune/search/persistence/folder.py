"""The search folder: created once, never overwritten; a search is what lies in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xlstm_tune import __version__
from xlstm_tune.data.read import without_credentials
from xlstm_tune.data.words import listing
from xlstm_tune.errors import FULL_DISK, StorageError
from xlstm_tune.layout import CHECKPOINTS as CHECKPOINTS
from xlstm_tune.layout import CONFIG as CONFIG
from xlstm_tune.layout import ENVIRONMENT as ENVIRONMENT
from xlstm_tune.layout import SPEC as SPEC
from xlstm_tune.layout import WEIGHTS as WEIGHTS
from xlstm_tune.layout import member_folder as member_folder
from xlstm_tune.layout import trial_folder as trial_folder
from xlstm_tune.lines import sync
from xlstm_tune.search.placement.resources import cpus
from xlstm_tune.search.stopping import DISK_FAILED, DISK_FULL
from xlstm_tune.spec import NAME, SearchSpec
from xlstm_tune.storage.copy import KEPT_AT, bring, kept_at, local_root
from xlstm_tune.storage.objects import Objects, check_reachable, holds, is_uri
from xlstm_tune.strict import did_you_mean
from xlstm_tune.tracking import hide_credentials

if TYPE_CHECKING:  # it loads torch
    from xlstm_tune.data.windows import Rounded

HUNG = "hung.txt"
"""In a trial's folder: where its worker hung when `resources.trial_timeout` ended it."""
STOPPED = "stopped"
"""An empty file in a trial's folder: the scheduler has stopped it, while others that it is trained with go on."""
_FAILED = (errno.EIO, errno.EROFS, errno.ESTALE)


def taken(storage: str, name: str) -> str | None:
    """Where the name of a search is already used, and what to do; None where it is not. storage: as `check_folder`."""
    folder, where = _root(storage) / name, None
    if is_uri(storage) and holds(Objects(storage) / name):
        where = f"at {Objects(storage).shown}"
    elif os.path.lexists(folder):
        where = f"by {folder}"
    remedy = f"continue that search with --resume {name}, or choose another with --name"
    return where and f"the name '{name}' is already used {where}; {remedy}"


def check_folder(storage: str, name: str, may_be_taken: bool = False) -> Path:
    """The folder that a new search `name` will use. Creates nothing but the storage folder itself.

    storage: a folder that every machine of the search can write, or a URI; the search then works in `searches` below
    the current folder. Raises StorageError when it cannot be written, or the name is taken and may not be.
    """
    root = _root(storage)
    folder = root / name
    if is_uri(storage):
        check_reachable(Objects(storage))
    if not may_be_taken and (why := taken(storage, name)):
        raise StorageError(why)
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"the storage folder {root} cannot be written ({reason}); choose another with --storage"
        ) from None
    return folder


def find_folder(storage: str, name: str) -> Path:
    """The folder of an existing search, to be continued.

    Raises StorageError when there is none, or when `name` would lead out of the storage folder.
    """
    root = _root(storage)
    folder = root / name
    if not re.fullmatch(NAME, name):
        raise StorageError(
            f"--resume takes the name of a search, which is no path, got '{name}'; give the folder that it lies in "
            "with --storage"
        )
    if is_uri(storage):
        return bring(Objects(storage), name, root)
    if (where := kept_at(folder)) is not None:
        raise StorageError(
            f"the search '{name}' is kept at {where}, where its checkpoints lie; go on with it there, with --storage "
            f"{where}, or remove {folder / KEPT_AT} to go on without them"
        )
    if not os.path.isfile(folder / SPEC):
        known = [path.parent.name for path in root.glob(f"*/{SPEC}")] if os.path.isdir(root) else []
        hint = did_you_mean(name, known, dotted=False) if known else "no search has been started there"
        raise StorageError(f"{root} holds no search '{name}' to resume; {hint}")
    if (place := folder.resolve()).parent != root.resolve():
        renamed = "" if place.name == name else f"rename that to '{name}' and "
        raise StorageError(
            f"{folder} is a link that leads out of the storage folder, to {place}; {renamed}resume it there with "
            f"--storage {place.parent}"
        )
    return folder


def _root(storage: str) -> Path:
    return local_root() if is_uri(storage) else Path(os.path.expanduser(storage)).absolute()


def create_folder(folder: Path, spec: SearchSpec, fingerprint: str) -> None:
    """Make the folder and freeze spec, environment and the data's fingerprint into it: all of it, or nothing.

    Raises StorageError if another search was faster, or the disk is full or cannot be written.
    """
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir()
        (unfinished / SPEC).write_text(spec_text(spec))
        (unfinished / ENVIRONMENT).write_text(json.dumps({**environment(), "data_fingerprint": fingerprint}, indent=2))
        for path in (unfinished / SPEC, unfinished / ENVIRONMENT, unfinished):
            sync(path)
        unfinished.rename(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and folder.exists():
            raise StorageError(
                f"another search took the name '{folder.name}' a moment ago; choose another with --name"
            ) from None
        if isinstance(error, OSError):
            raise StorageError(
                f"the search folder {folder} cannot be made ({error.strerror or error}); make room or get leave to "
                "write there, or choose another place with --storage"
            ) from None
        raise


def spec_text(spec: SearchSpec) -> str:
    """A search as the file that starts it."""
    return yaml.safe_dump(frozen(spec), sort_keys=False)


def frozen(spec: SearchSpec) -> dict[str, Any]:
    """The search file to be kept, which MLflow gets as well: without passwords."""
    frozen = spec.model_dump(by_alias=True, exclude_none=True)
    storage = spec.search.storage or ""
    if not re.match(r"sqlite(\+pysqlite)?:", storage) and re.search(r"://[^/@]*:[^@]*@|[?&]", storage):
        hidden = hide_credentials(storage.replace(" ", "%20"))  # a blank, too, may stand in a password
        frozen["search"]["storage"] = hidden if "***" in hidden else storage
    # Without a key in the address, the environment's is used.
    frozen["data"]["source"] = [without_credentials(one) for one in spec.data.source]
    return frozen


def check_password(spec: SearchSpec) -> None:
    """Raise StorageError when `search.storage` was read from a search folder, where its password is left out."""
    if "***" in (spec.search.storage or ""):
        raise StorageError(
            f"search.storage is {spec.search.storage}, as it was written down without its password; give it anew with "
            "--set search.storage=URL"
        )


def check_same_data(folder: Path, fingerprint: str, rounded: Rounded | None = None) -> None:
    """Raise StorageError when the data of a search to be resumed are not those that it began with.

    rounded: of the same `Prepared` as the fingerprint.
    """
    try:
        then = json.loads((folder / ENVIRONMENT).read_bytes())
        before = then["data_fingerprint"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise StorageError(
            f"{folder / ENVIRONMENT} is missing or damaged, so nobody knows which data the search began with; bring it "
            "back, or start a new search with another --name"
        ) from None
    if rounded is not None and before == rounded.fingerprint:
        columns = listing([f"'{name}'" for name in rounded.columns], "input")
        raise StorageError(
            f"the search '{folder.name}' was begun by an earlier xlstm_tune, which rounded "
            f"{'the input' if len(rounded.columns) == 1 else 'the inputs'} {columns} to float32, so old and new scores "
            f"cannot be compared; go on with that version, which {folder / ENVIRONMENT} names, or start a new search "
            "with another --name"
        )
    if before != fingerprint:
        other, back = "", "the old data"
        if then.get("commit") != (now := _commit()) or then.get("xlstm_tune") != __version__:
            other = f", or xlstm_tune ({then.get('commit')} then, {now} now) reads them otherwise"
            back = "the old data or that version"
        raise StorageError(
            f"the data of the search '{folder.name}' have changed since it began{other}, so old and new scores cannot "
            f"be compared; bring {back} back, or start a new search with another --name"
        )


def disk_full(error: BaseException | None) -> bool:
    """Whether an error means that there is no room, be it wrapped in those of Ray or safetensors."""
    return _tells(error, FULL_DISK)


def disk_stop(error: BaseException | None) -> str | None:
    """Why nothing more can be written, by an error as `disk_full` takes it; None where it says nothing of that.

    A disk that fails turns read-only, or answers no more, as a network's does whose server has gone.
    """
    if disk_full(error):
        return DISK_FULL
    return DISK_FAILED if _tells(error, _FAILED) else None


def _tells(error: BaseException | None, codes: tuple[int, ...]) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in codes:
            return True
        if any(os.strerror(code) in str(error) for code in codes):
            return True
        error = error.__cause__ or error.__context__
    return False


def environment() -> dict[str, Any]:
    """Versions, hardware and commit: what a stranger needs to repeat a search."""
    packages = {}
    for name in ("torch", "ray", "optuna", "mlflow", "pyarrow", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "xlstm_tune": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "cpus": cpus(),
        "gpus": _gpus(),
        "commit": _commit(),
    }


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _commit() -> str | None:
    """The commit of the working tree that this package runs from; None when installed from a wheel."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():  # some other project's repository may lie further up
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
