"""How much memory a trial's training will take, before it is trained.

Weights, gradients and optimiser moments are counted. Activations are measured: real forward passes on the CPU sum the
bytes of every storage that autograd keeps for the backward pass (parameters left out). Two small batches that differ
from the real one by whole tiles of samples lie on a line with it. So do short lookbacks: LSTM and sLSTM keep the same
for every step, and 4 and 8 steps or patches give any longer lookback; mLSTM keeps the same for every chunk of them, and
64 and 128 do.

Not in it: the data, the framework itself, what a kernel needs only while it runs, and the CPU copy of the best weights.
A GPU's kernels may keep more or less than the CPU's.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xlstm_tune.data.windows import Prepared
from xlstm_tune.kernels.mlstm_layer_numba import mlstm_layer_sizes_fit
from xlstm_tune.models.forecaster import Forecaster, Shape, build_model, count_parameters, outline
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import autocast_dtype, pick_device, shape_of
from xlstm_tune.training.losses import loss_of

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}
"""Numbers that an optimiser keeps per parameter."""
_TILE = 16
"""Samples that a CPU kernel keeps side by side; a batch is stored as whole tiles."""
_LANES = 16
"""Numbers of a head that a CPU kernel keeps side by side."""
_TOKENS = (4, 8)
_CHUNKS = (64, 128)
_MIB = 2**20
CONTEXT_MIB = 600.0
"""What a process takes of a GPU before its first tensor: the CUDA context and the kernels that are loaded into it. An
estimate, not measured yet."""
EVALUATION_MIB = 256.0
"""What scoring takes at the least: some sixteen layers of 16 MiB (`judge.eval_batch`) at a time. An estimate, not
measured yet."""
SAFETY = 1.5
"""A GPU's kernels keep more than the CPU's and need memory while they run, and the allocator leaves gaps. An estimate,
not measured yet."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Of one trial, in MiB (2²⁰ bytes) where not a count."""

    parameters: int
    weights_mib: float
    optimiser_mib: float
    gradients_mib: float
    activations_mib: float
    """Kept between forward and backward of a batch."""
    total_mib: float


def estimate_memory(
    config: TrialConfig, shape: Shape, device: torch.device | str | None = None, samples: int | None = None
) -> MemoryEstimate:
    """The memory that training `config` on a problem of `shape` will take.

    samples: of the training part, where they are known; no batch has more.
    device: where it would train (None = the GPU where there is one, else the CPU); decides whether `precision: auto`
    counts 16-bit activations. The measurement itself runs on the CPU. Raises BackendUnavailable as `train` does.
    """
    dtype = autocast_dtype(config.training.precision, pick_device(device))
    model = outline(config.model, shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(tensor.nbytes for tensor in model.state_dict().values()) / _MIB
    gradients = sum(parameter.nbytes for parameter in model.parameters()) / _MIB
    optimiser = gradients * MOMENTS[config.training.optimiser]
    batch = min(config.training.batch_size, samples or config.training.batch_size)
    activations = _activation_bytes(config, shape, batch, dtype) / _MIB
    total = weights + optimiser + gradients + activations
    return MemoryEstimate(parameters, weights, optimiser, gradients, activations, total)


def estimate_trial(config: TrialConfig, data: Prepared) -> MemoryEstimate:
    """`estimate_memory` on these data, of whose training part no batch has more samples."""
    return estimate_memory(config, shape_of(data, config), samples=len(data.parts["train"]))


def process_mib(estimate: MemoryEstimate, data: Prepared, members: int = 1) -> float:
    """MiB that a trial's process takes of a GPU: context, data, and `SAFETY` times what training and scoring take: the
    graph of a step keeps its memory while the model is scored.

    members: of the population that the trial trains in one pass, each with weights and activations of its own.
    """
    kept = estimate.weights_mib + estimate.gradients_mib + estimate.optimiser_mib
    working = estimate.activations_mib * members + EVALUATION_MIB
    return CONTEXT_MIB + data_mib(data) + SAFETY * (kept * members + working)


def data_mib(data: Prepared) -> float:
    """MiB of the data on the device: the training and the validation part hold the tables each."""
    tables = [data.features, data.targets, *([] if data.static is None else [data.static])]
    samples = sum(len(data.parts[part]) for part in ("train", "validation"))
    return (2 * sum(table.nbytes for table in tables) + 4 * 8 * samples) / _MIB  # four int64 a sample


def kept_weights(config: TrialConfig, data: Prepared) -> int:
    """Numbers that training keeps beside those of a step: weights, gradients and the optimiser's moments."""
    each = 2 + MOMENTS[config.training.optimiser]
    return each * count_parameters(config.model, shape_of(data, config))


def rough_size(config: TrialConfig, data: Prepared) -> float:
    """Roughly how many numbers a step keeps for its gradients, to compare configurations by without a measurement.

    Held against `estimate_trial` on 300 configurations of four families in float32: rank correlation 0.99.
    """
    model = config.model
    tokens = model.tokens(config.lookback or data.lookback)
    both = model.direction == "both"
    feed_forward = {"gated": 3, "plain": 2, "none": 0}[model.feed_forward] * model.feed_forward_size
    slstm, (mlstm, last_mlstm) = 13.0 * model.hidden_size, _mlstm_widths(config, tokens)
    after = {block: feed_forward * (block in model.feed_forward_after) for block in "sm"}
    kept = [(slstm if block == "s" else mlstm) + after[block] for block in model.blocks]
    if kept and model.pooling == "last" and not both:  # the last block is computed for its last output alone
        kept[-1] = 0.6 * kept[-1] if model.blocks[-1] == "s" else last_mlstm + 0.35 * after["m"]
    each = sum(kept) or {"lstm_torch": 17, "lstm_scratch": 25}.get(model.family, 7) * model.hidden_size * model.layers
    channels = len(data.target_names) if model.channels == "independent" else 1
    batch = min(config.training.batch_size, len(data.parts["train"]))
    return float(batch * channels * tokens * each * (2 if both else 1))


def _mlstm_widths(config: TrialConfig, tokens: int) -> tuple[float, float]:
    """Numbers that an mLSTM block keeps for each step, and one that is computed for its last output alone.

    The former keeps a matrix for each head and chunk of steps too.
    """
    model = config.model
    compiled = autocast_dtype(config.training.precision, pick_device()) is None  # whose heads are whole lanes
    lanes = _LANES if compiled else 1
    padded = math.ceil(model.inner_size / model.heads / lanes) * lanes * model.heads
    states = padded**2 / model.heads * math.ceil(tokens / _CHUNKS[0]) / tokens
    kept = 5 * model.inner_size + 3 * padded + 2 * model.hidden_size
    taps, block = model.conv_kernel, model.qkv_block
    # A block that is one pass keeps its inputs, and computes most of the rest again.
    fits = mlstm_layer_sizes_fit(tokens, model.hidden_size, model.inner_size, model.heads, taps, block)
    one_pass = compiled and fits
    return (kept + 2 * states) * (0.42 if one_pass else 1.0), kept * (0.15 if one_pass else 0.2)


def _activation_bytes(config: TrialConfig, shape: Shape, batch: int, dtype: torch.dtype | None) -> float:
    """`saved_bytes` of a batch, from measurements small in samples and, where possible, in steps."""
    model = config.model
    least = (batch - 1) % _TILE + 1  # further samples then come in whole tiles
    batches = (least, least + _TILE) if batch > least + _TILE else (batch,)

    def at(lookback: int) -> float:
        problem = replace(shape, lookback=lookback)
        with torch.random.fork_rng([]):
            built = build_model(model, problem)
            measured = [saved_bytes(built, config, problem, size, dtype) for size in batches]
        return _line(batches, measured, batch) if len(batches) > 1 else measured[0]

    def steps_of(tokens: int) -> int:
        return max(model.patch_length, 1) + (tokens - 1) * model.stride

    tokens = model.tokens(shape.lookback)
    # torch's own LSTM is computed in another way where it is very short.
    few = _CHUNKS if "m" in model.blocks or model.family == "lstm_torch" else _TOKENS
    if tokens <= few[1]:
        return at(shape.lookback)
    return _line(few, [at(steps_of(number)) for number in few], tokens)


def _line(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    """The line through two points, at `x`."""
    return ys[0] + (ys[1] - ys[0]) / (xs[1] - xs[0]) * (x - xs[0])


def saved_bytes(
    model: Forecaster, config: TrialConfig, shape: Shape, batch: int, dtype: torch.dtype | None = None
) -> int:
    """Bytes that one training forward pass of `batch` samples on the CPU keeps for its backward pass."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        one = _Saved(tensor)
        saved.add(one)
        return one

    x = torch.randn(batch, shape.lookback, shape.features)
    y = torch.randn(batch, shape.horizon, shape.targets)
    lengths = torch.full((batch,), shape.lookback) if shape.varying else None
    static = torch.randn(batch, shape.statics) if shape.statics else None
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            predicted = model(x, lengths, static, every_quantile=True)
        loss = loss_of(config.training)(predicted.float(), y)
    assert loss.requires_grad  # holds the graph until here
    storages = [one.tensor.untyped_storage() for one in saved]  # views of one storage count once
    return sum({each.data_ptr(): each.nbytes() for each in storages if each.data_ptr() not in owned}.values())


class _Saved:
    """A tensor in the graph. Parts of the graph that the loss does not hang on go away, and these with them."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
