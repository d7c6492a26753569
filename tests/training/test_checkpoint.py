from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xlstm_tune.errors import CheckpointError
from xlstm_tune.training import checkpoint
from xlstm_tune.training.checkpoint import load, load_metadata, load_weights, save, save_weights, write_atomically
from xlstm_tune.training.loop import EpochResult, TrainingState, begin, train

Maker = Callable[..., Any]


def numbers(result: EpochResult) -> tuple[Any, ...]:
    return result.epoch, result.train_loss, result.validation, result.learning_rate, result.improved, result.finished


def assert_same(one: TrainingState, other: TrainingState) -> None:
    for a, b in (
        (one.model.state_dict(), other.model.state_dict()),
        (one.best_weights, other.best_weights),
    ):
        assert a is not None and b is not None and a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = one.optimiser.state_dict()["state"], other.optimiser.state_dict()["state"]
    assert a.keys() == b.keys() and a
    assert all(torch.equal(a[number][name], b[number][name]) for number in a for name in a[number])
    for field in ("config", "fingerprint", "objective", "epoch", "first_loss", "best_epoch", "best_validation"):
        assert getattr(one, field) == getattr(other, field)


@pytest.mark.parametrize(("optimiser", "family"), [("adamw", "lstm"), ("adamw", "xlstm"), ("sgd", "lstm")])
def test_load_after_an_epoch_goes_on_to_the_same_bits(
    optimiser: str, family: str, tmp_path: Path, make_forecast: Maker, make_config: Maker
) -> None:
    data = make_forecast()
    # At this rate sgd does not get far: patience ends its run after a best epoch in the middle.
    model = {"family": family, "dropout": 0.3, "layers": 2, "forget_bias": 0.0}
    config = make_config(
        model=model, epochs=6, patience=2, schedule="cosine", optimiser=optimiser, learning_rate=0.05, warmup=0.1
    )
    whole = []
    for result in train(config, data, device="cpu"):
        whole.append(result)
        save(result.state, tmp_path / str(result.epoch))
    assert whole[-1].finished and (whole[-1].epoch < 6) == (optimiser == "sgd")
    expected = [numbers(result) for result in whole]
    for epoch in (1, len(whole) - 2):
        resumed = load(tmp_path / str(epoch), config, data, "cpu")
        assert resumed.epoch == epoch
        rest = list(train(config, data, resume=resumed, device="cpu"))
        assert [numbers(result) for result in rest] == expected[epoch:]
        assert_same(resumed, whole[-1].state)
    assert list(train(config, data, resume=load(tmp_path / str(len(whole)), config, data, "cpu"), device="cpu")) == []


@pytest.fixture
def saved(tmp_path: Path, make_forecast: Maker, make_config: Maker) -> Path:
    result = next(train(make_config(), make_forecast(), device="cpu"))
    save(result.state, tmp_path / "run")
    return tmp_path / "run"


def test_save_again_leaves_one_checkpoint(saved: Path, make_forecast: Maker, make_config: Maker) -> None:
    (saved / ".state.json.0123abcd.tmp").write_text("of a save that was killed")
    *_, last = train(make_config(), make_forecast(), resume=load(saved, make_config(), make_forecast()), device="cpu")
    save(last.state, saved)
    assert len(list(saved.iterdir())) == 2
    assert_same(load(saved, make_config(), make_forecast()), last.state)


def test_save_before_the_first_epoch(tmp_path: Path, make_forecast: Maker, make_config: Maker) -> None:
    state = begin(make_config(), make_forecast())
    save(state, tmp_path)
    again = load(tmp_path, make_config(), make_forecast(), "cpu")
    assert again.epoch == 0 and again.best_weights is None and again.best_validation is None
    first, second = (next(train(make_config(), make_forecast(), resume=s, device="cpu")) for s in (state, again))
    assert numbers(first) == numbers(second)


@pytest.mark.parametrize("break_at", ["state.json", "safetensors"])
def test_save_interrupted_keeps_the_earlier_checkpoint(
    break_at: str, saved: Path, make_forecast: Maker, make_config: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load(saved, make_config(), make_forecast(), "cpu")
    before = (saved / "state.json").read_bytes()
    state.epoch = 2
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if break_at in target.name:
            raise OSError("No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(state, saved)
    assert (saved / "state.json").read_bytes() == before
    assert not list(saved.glob(".*.tmp"))
    assert load(saved, make_config(), make_forecast(), "cpu").epoch == 1


def test_save_uses_no_pickle(saved: Path) -> None:
    kinds = sorted(path.suffix for path in saved.iterdir())
    assert kinds == [".json", ".safetensors"]
    source = Path(checkpoint.__file__).read_text()
    assert "import pickle" not in source and "torch.save(" not in source and "torch.load(" not in source


def damage_tensors(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def remove_tensors(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def cut_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_bytes(path.read_bytes()[:100])


def change_state(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "state.json"
        record = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value != "GONE"}
        path.write_text(json.dumps(record))

    return change


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_tensors, "damaged .its checksum differs"),
        (remove_tensors, "lacks its file epoch-"),
        (cut_state, "is damaged"),
        (lambda folder: (folder / "state.json").unlink(), "there is no checkpoint in"),
        (lambda folder: (folder / "state.json").write_text("[]"), "names no schema"),
        (change_state(schema=2, program="xlstm_tune 9.0"), "schema 2 of xlstm_tune 9.0, this program reads up to 1"),
        (change_state(first_loss="GONE"), r"lacks \['first_loss'\]"),
        (change_state(fingerprint="other"), "another run: data is 'other' there"),
    ],
)
def test_load_of_what_cannot_be_trusted_is_refused(
    harm: Callable[[Path], None], message: str, saved: Path, make_forecast: Maker, make_config: Maker
) -> None:
    harm(saved)
    with pytest.raises(CheckpointError, match=message):
        load(saved, make_config(), make_forecast(), "cpu")


def test_load_for_another_config_is_refused(saved: Path, make_forecast: Maker, make_config: Maker) -> None:
    with pytest.raises(CheckpointError, match=r"training.learning_rate is 0.01 there and 0.5 here"):
        load(saved, make_config(learning_rate=0.5), make_forecast(), "cpu")


def test_weights_are_as_open_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        save_weights(tmp_path / "weights", {"a": torch.ones(5)})
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o664


def test_save_weights_and_load_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    shared = torch.arange(12.0).view(3, 4)
    tensors = {"transposed": shared.t(), "row": shared[1], "half": torch.ones(2, dtype=torch.bfloat16)}
    save_weights(path, tensors, {"config": "{}", "epoch": "3"})
    again = load_weights(path)
    assert again.keys() == tensors.keys() and load_metadata(path) == {"config": "{}", "epoch": "3"}
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)
    assert list(tmp_path.iterdir()) == [path]


def test_load_weights_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match="there is no weights file"):
        load_weights(path)
    save_weights(path, {"a": torch.ones(5)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_weights(path)


def test_write_atomically_replaces_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "/etc/passwd", "", ".", "state.json", None, 7, "epoch-1\x00"]
)
def test_load_reads_no_file_but_its_own(name: Any, saved: Path, make_forecast: Maker, make_config: Maker) -> None:
    record = json.loads((saved / "state.json").read_text())
    own = saved / record["tensors"]
    own.rename(saved.parent / "elsewhere.safetensors")
    (saved / "state.json").write_text(json.dumps(record | {"tensors": name}))
    with pytest.raises(CheckpointError, match="which is none that a checkpoint has"):
        load(saved, make_config(), make_forecast())
    own.symlink_to(saved.parent / "elsewhere.safetensors")
    (saved / "state.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="is a link"):
        load(saved, make_config(), make_forecast())
