"""A run on disk: safetensors for the tensors, JSON for the rest, no pickle.

A checkpoint folder holds `state.json` and the tensors file that it names. A save writes a new tensors file, then
replaces `state.json`, then removes the old tensors: at every moment, also after a kill or a power cut, the folder
holds the whole of one checkpoint, and `state.json` exists only where a whole one does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor

from xlstm_tune import __version__
from xlstm_tune.data.windows import Prepared
from xlstm_tune.errors import CheckpointError
from xlstm_tune.lines import sync
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import TrainingState, begin, pick_device

SCHEMA = 1
STATE = "state.json"
TENSORS = r"epoch-\d{6,}-[0-9a-f]{8}\.safetensors"
"""Name of a tensors file: never a path that leads out of the folder."""
_KEYS = {
    "schema", "program", "config", "fingerprint", "objective", "epoch", "first_loss", "best_epoch", "best_validation",
    "tensors", "sha256",
}  # fmt: skip


def save(state: TrainingState, folder: Path | str) -> None:
    """Write everything that the next epoch depends on into `folder`, which may hold an earlier checkpoint.

    Raises OSError when the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    moments = state.optimiser.state_dict()["state"]
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in (state.best_weights or {}).items()}
    tensors |= {
        f"optimiser/{number}/{name}": value
        for number, values in moments.items()
        for name, value in values.items()
        if isinstance(value, Tensor)  # SGD's momentum is None before its first step
    }
    file = f"epoch-{state.epoch:06d}-{os.urandom(4).hex()}.safetensors"
    save_weights(folder / file, tensors)
    record = {
        "schema": SCHEMA,
        "program": f"xlstm_tune {__version__}",
        "config": state.config.flat(),
        "fingerprint": state.fingerprint,
        "objective": state.objective,
        "epoch": state.epoch,
        "first_loss": state.first_loss,
        "best_epoch": state.best_epoch,
        "best_validation": state.best_validation,
        "micro_batch": state.micro_batch,
        "together": state.together,
        "tensors": file,
        "sha256": sha256_of(folder / file),
    }
    write_atomically(folder / STATE, json.dumps(record, indent=2, allow_nan=False).encode())
    for old in [*folder.glob("epoch-*.safetensors"), *folder.glob(".*.tmp")]:  # the latter: of a save that was killed
        if old.name != file:
            old.unlink(missing_ok=True)


def load(
    folder: Path | str, config: TrialConfig, data: Prepared, device: torch.device | str | None = None
) -> TrainingState:
    """The state that `save` wrote, on `device` (None = the GPU where there is one, else the CPU).

    Raises CheckpointError when there is none, it is damaged, of a newer program, or of another config or other data.
    """
    folder = Path(folder)
    record = _read_record(folder)
    _check_same("data", record["fingerprint"], data.fingerprint, folder)
    there, here = record["config"], json.loads(config.key())
    for key in sorted(there.keys() | here.keys()):
        _check_same(key, there.get(key), here.get(key), folder)
    name = record["tensors"]
    if not isinstance(name, str) or not re.fullmatch(TENSORS, name):
        raise CheckpointError(
            f"the checkpoint {folder / STATE} names the file {name!r}, which is none that a checkpoint has; remove "
            f"{folder} to train afresh"
        )
    file = folder / name
    if file.is_symlink():
        raise CheckpointError(f"the checkpoint's file {file} is a link; remove {folder} to train afresh")
    if not file.is_file():
        raise CheckpointError(f"the checkpoint {folder} lacks its file {file.name}; remove the folder to train afresh")
    if sha256_of(file) != record["sha256"]:
        raise CheckpointError(
            f"the checkpoint file {file} is damaged (its checksum differs); remove {folder} to train afresh"
        )
    tensors = load_weights(file)
    state = begin(config, data, pick_device(device), record["objective"])
    state.model.load_state_dict(_below("model/", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimiser/", tensors).items():
        number, _, moment = name.partition("/")
        moments.setdefault(int(number), {})[moment] = value
    state.optimiser.load_state_dict({"state": moments, "param_groups": state.optimiser.state_dict()["param_groups"]})
    state.epoch, state.first_loss = record["epoch"], record["first_loss"]
    state.best_epoch, state.best_validation = record["best_epoch"], record["best_validation"]
    state.best_weights = _below("best/", tensors) or None
    state.micro_batch, state.together = record.get("micro_batch"), record.get("together")  # earlier programs wrote none
    return state


def save_weights(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors and texts as one safetensors file, whole or not at all."""
    plain = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    # A file that safetensors makes is closed to all but its owner, whatever the umask says.
    write_atomically(path, as_safetensors(plain, dict(metadata or {})))


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, on the CPU. Raises CheckpointError when it is missing or damaged."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)


def load_metadata(path: Path | str) -> dict[str, str]:
    """The texts that `save_weights` put beside the tensors. Raises CheckpointError as `load_weights`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:  # also where it may not be read
        if os.path.exists(path):
            raise CheckpointError(f"the weights file {path} cannot be read; get leave to read it") from None
        raise CheckpointError(f"there is no weights file {path}") from None
    except SafetensorError as error:
        raise CheckpointError(f"the weights file {path} is damaged: {error}") from None


def write_atomically(path: Path | str, content: bytes) -> None:
    """Write a file so that a reader, also after a power cut, finds the old content or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    try:
        record: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint in {folder}: it has no {STATE}") from None
    except ValueError as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}; remove {folder} to train afresh") from None
    if not isinstance(record, dict) or not isinstance(schema := record.get("schema"), int):
        raise CheckpointError(f"{path} is not a checkpoint: it names no schema")
    if schema > SCHEMA:
        raise CheckpointError(
            f"the checkpoint {folder} has schema {schema} of {record.get('program')}, this program reads up to "
            f"{SCHEMA}; go on with the program that wrote it"
        )
    lacking = sorted(_KEYS - record.keys())
    if lacking:
        raise CheckpointError(f"the checkpoint {path} is damaged: it lacks {lacking}; remove {folder} to train afresh")
    return record


def _check_same(what: str, there: Any, here: Any, folder: Path) -> None:
    if there != here:
        raise CheckpointError(
            f"the checkpoint {folder} belongs to another run: {what} is {there!r} there and {here!r} here; "
            f"go on with what it was saved with, or train afresh"
        )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
