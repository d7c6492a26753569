"""A training step as a search runs it, eager and replayed from a CUDA graph: what gpu.py holds against each other and
times, and the table. What is captured stands in xlstm_tune/training/capture.py. Imports torch where it measures."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from gpu_cases import Refused
from gpu_rows import open_

MEMBERS = (1, 4, 16)
"""Of the population; 1 is a run alone."""
SIZE = {"batch": 32, "steps": 365, "width": 64}
BATCHES = 20
"""Of an epoch, and a smaller one."""
EPOCHS = 8
SETTLED = 4
"""Epochs from which on all kernels are compiled and all graphs captured: the smaller batch comes once in each."""
SAME = 1e-4
"""What training losses may differ by, as a share. In float32 a step computes the same, in another order at the most."""


def time_capture(session: Any, lane: Any, longest: float) -> None:
    """Time every population both ways into the session's results; longest: seconds for one of them."""
    for members in MEMBERS[:: len(MEMBERS) if session.arguments.quick else 1]:
        title = f"capture: {members} together"
        if not session.wanted(title):
            continue
        left = session.left("capture")
        if left < 2:
            session.add("capture", {"members": members, "error": "not run: no time was left"})
            continue
        session.say(title)
        answer = lane.ask({"do": "capture", "members": members}, longest, left)
        session.add("capture", {"members": members} | answer)


def measure(members: int, device: Any, size: dict[str, int] = SIZE) -> dict[str, Any]:
    """Milliseconds of a step both ways, whether it was captured, and by how much training losses differ at the most."""
    try:
        from xlstm_tune.training.capture import VARIABLE
    except ImportError as error:
        raise Refused(f"xlstm_tune's training cannot be imported: {error}") from None
    before = os.environ.get(VARIABLE)
    found: dict[str, list[Any]] = {}
    try:
        for mode in ("off", "auto"):
            os.environ[VARIABLE] = mode
            found[mode] = list(_epochs(members, device, size))
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
    rows = size["batch"] * members
    eager, captured = (
        statistics.median(1e3 * rows / epoch[0].sequences_per_s for epoch in found[mode][SETTLED:])
        for mode in ("off", "auto")
    )
    differs = max(
        abs(mine.train_loss / true.train_loss - 1)
        for both in zip(found["auto"], found["off"], strict=True)
        for mine, true in zip(*both, strict=True)
    )
    return {
        "eager_ms": eager,
        "captured_ms": captured,
        "captured": found["auto"][-1][0].captured,
        "backend": found["auto"][-1][0].backend,  # if it was not captured, with the reason
        "differs": differs,
    }


def _epochs(members: int, device: Any, size: dict[str, int]) -> Iterator[list[Any]]:
    """The members' results of each epoch, of an mLSTM and an sLSTM block with dropout, in float32."""
    from xlstm_tune.models.config import ModelConfig
    from xlstm_tune.training.config import TrainingConfig, TrialConfig
    from xlstm_tune.training.loop import train
    from xlstm_tune.training.population import train_population

    model = ModelConfig(family="xlstm", pattern="ms", hidden_size=size["width"], heads=4, dropout=0.1)
    options = {"batch_size": size["batch"], "epochs": EPOCHS, "patience": 0, "precision": "fp32"}
    configs = [TrialConfig(model, TrainingConfig(**options, seed=seed), size["steps"]) for seed in range(members)]
    data = _data(size)
    if members == 1:
        for result in train(configs[0], data, device=device):
            yield [result]
        return
    for epoch in train_population(configs, data, device=device, width=members):
        yield [one.result for one in epoch]


def _data(size: dict[str, int]) -> Any:
    """Noisy waves, of which one is forecast by a step."""
    import numpy as np

    from xlstm_tune.data.windows import Prepared

    steps, samples = size["steps"], size["batch"] * BATCHES + size["batch"] // 2
    held_out = size["batch"]
    rng = np.random.default_rng(0)
    rows = steps + samples + 2 * held_out
    phase = np.arange(rows)[:, None] * (2 * np.pi / np.array([7.0, 30.0, 365.0, 91.0]))
    features = (np.sin(phase) + rng.normal(0, 0.1, phase.shape)).astype(np.float32)
    ends = np.arange(steps, rows)
    parts = np.split(np.arange(len(ends)), [samples, samples + held_out])
    return Prepared(
        task="forecast",
        features=features,
        targets=features[:, :1].copy(),
        starts=np.zeros_like(ends),
        ends=ends,
        parts=dict(zip(("train", "validation", "test"), parts, strict=True)),
        target_mean=np.zeros(1),
        target_std=np.ones(1),
        target_columns=(0,),
        feature_names=("week", "month", "year", "quarter"),
        target_names=("week",),
        horizon=1,
        lookback=steps,
        season=7,
        oracle=None,
        notes=(),
        fingerprint="waves",
    )


def wrong_captures(rows: list[dict[str, Any]]) -> list[str]:
    """What does not train, or not as it does eagerly, a line each."""
    wrong = []
    for row in rows:
        said = row.get("error") or f"losses differ by {row['differs']:.1e} when captured"
        if not (open_(row) or ("error" not in row and row["differs"] <= SAME)):
            wrong.append(f"training step, {row['members']} together: {said}")
    return wrong


def capture_table(rows: list[dict[str, Any]], header: Callable[..., list[str]], line: Callable[..., str]) -> list[str]:
    """Both ways side by side; header and line are those of gpu_tables.py."""
    if not rows:
        return []
    lines = [
        "## A training step, eager and replayed from a CUDA graph",
        "",
        f"An mLSTM and an sLSTM block, {SIZE['batch']} × {SIZE['steps']} steps, width {SIZE['width']}, float32: batch, "
        f"forward, backward, clipping and AdamW of all members; from whole epochs.",
        "",
        *header("members", "eager, ms", "captured, ms", "times as fast", "losses differ by", numbers=(0, 1, 2, 3, 4)),
    ]
    for row in rows:
        if "error" in row:
            lines.append(line(row["members"], row["error"], "", "", ""))
            continue
        eager, captured = row["eager_ms"], row["captured_ms"]
        told = f"{captured:.2f}" if row["captured"] else f"{captured:.2f} (was not captured)"
        lines.append(line(row["members"], f"{eager:.2f}", told, f"{eager / captured:.2f}", f"{row['differs']:.1e}"))
    return [*lines, ""]
