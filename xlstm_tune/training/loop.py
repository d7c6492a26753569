"""The training loop: a generator of epochs that knows nothing of Ray.

Everything random is drawn from (seed, epoch): the initial weights, the order of the samples, the dropout. So a run
needs no generator state to go on after any epoch, and several runs can take turns in one process. On a CPU, with the
same number of threads, the same config, seed and data give the same numbers bit for bit, resumed or not.

Shapes: B batch, L lookback, F features, H horizon, K targets, S static inputs, Q quantiles.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.errors import BackendUnavailable
from xlstm_tune.models.draws import count_draws, draws, new_seeds
from xlstm_tune.models.forecaster import Forecaster, Shape, build_model
from xlstm_tune.ranking import METRICS
from xlstm_tune.training import capture
from xlstm_tune.training.clock import clock
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.judge import eval_batch, judge
from xlstm_tune.training.losses import loss_of
from xlstm_tune.training.micro import backward, in_pieces
from xlstm_tune.training.optimiser import build_optimiser, clip_gradients, learning_rate_at
from xlstm_tune.training.seeding import seeded
from xlstm_tune.training.threads import threads_for

EXPLODED = 1e6
"""A training loss this many times the first batch's (or this large, where that was below 1) has diverged."""


class Diverged(Exception):
    """Training left the numbers that mean anything; the text says what, when and at which learning rate."""


@dataclass
class TrainingState:
    """All that the next epoch depends on. One object per run, changed in place by every epoch."""

    config: TrialConfig
    fingerprint: str
    """Of the data."""
    objective: str
    """The validation metric that decides which epoch is best."""
    model: Forecaster
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    """Epochs done."""
    first_loss: float | None = None
    """The first batch's, on standardised targets."""
    best_epoch: int = 0
    best_validation: dict[str, float] | None = None
    best_weights: dict[str, Tensor] | None = field(default=None, repr=False)
    """The model's state_dict after `best_epoch`, on the CPU. A better epoch puts a new dict here, the old one stays."""
    best_end: Tensor | None = field(default=None, repr=False)
    """Forecasts and truth of the last validation samples at `best_epoch`: `ErrorSums.end`. Not kept in checkpoints."""
    micro_batch: int | None = None
    """Samples that go through the model at a time in training, since more ran out of memory; None = whole batches."""
    together: int | None = None
    """Members of a population that go through the model at a time in training, since more ran out of memory; None =
    the whole pack. Only where one at a time is too much does `micro_batch` get smaller."""

    @property
    def finished(self) -> bool:
        """No epoch is left, or patience has run out."""
        training = self.config.training
        impatient = training.patience > 0 and self.epoch - self.best_epoch >= training.patience
        return self.epoch >= training.epochs or impatient


@dataclass(frozen=True)
class EpochResult:
    """What one epoch brought."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the epoch's samples, as they were trained, on standardised targets; without `training.loss_weight`."""
    validation: dict[str, float]
    """Every metric of `ranking.METRICS` on every validation sample."""
    seconds: float
    """Training and validation, without compiling kernels."""
    sequences_per_s: float
    """Of training alone."""
    learning_rate: float
    """Of the epoch's last step."""
    peak_memory_mib: float | None
    """On a GPU the most that this process had allocated there during the epoch; on a CPU the high-water mark of the
    process's resident memory, Python, libraries and earlier trials in it included; None where the system tells none."""
    parameters: int
    backend: str
    """What computes the recurrences, and why."""
    improved: bool
    """This is the best epoch so far."""
    finished: bool
    """This is the last epoch."""
    state: TrainingState = field(repr=False)
    micro_batch: int | None = None
    """Samples at a time, since a whole batch ran out of memory: gradients were summed over the pieces, which gives the
    same steps. None = whole batches."""
    together: int | None = None
    """Members that go through the model at a time, since more ran out of memory; None = the whole pack."""
    captured: bool = False
    """Steps were replayed from a CUDA graph when the epoch ended."""


def train(
    config: TrialConfig,
    data: Prepared,
    resume: TrainingState | None = None,
    device: torch.device | str | None = None,
    objective: str = "rmse",
) -> Iterator[EpochResult]:
    """Train, one epoch per `next()`.

    A batch that runs out of memory is done again in pieces of half the size, as is every later one; see `micro`. On a
    GPU steps are replayed from a CUDA graph where they can be; see `capture`.

    data: its training and validation parts are used, the test part is not touched.
    resume: a state that an earlier run of the same config on the same data yielded, or that a checkpoint held.
    device: None = the GPU where there is one, else the CPU.
    objective: the metric of `ranking.METRICS` that decides the best epoch and patience.
    Raises Diverged when a loss, a gradient or a prediction is not finite or the loss explodes, ValueError for an
    unknown objective or a state of another run, BackendUnavailable when the precision asked for does not exist here,
    and the error as it came when a single sample runs out of memory.
    """
    if resume is not None:
        check_same_run(resume, config, data, objective)
    device = pick_device(device)
    training = config.training
    dtype = autocast_dtype(training.precision, device)
    samples = Windows(data, "train", config.lookback, device)
    held_out = Windows(data, "validation", config.lookback, device)
    state = begin(config, data, device, objective) if resume is None else resume
    model, optimiser = state.model, state.optimiser
    parameters = list(model.parameters())
    criterion = loss_of(training)
    batches = -(-len(samples) // training.batch_size)  # the last one may be smaller
    total_steps = batches * training.epochs
    # One cell per batch, read once per epoch: asking after each batch would stall a GPU.
    losses = torch.zeros(batches, device=device)
    norms = torch.zeros(batches, device=device)

    on_device = capture.possible(device)
    calls = count_draws(model) if on_device and config.model.dropout else 0
    dropout = torch.tensor(config.model.dropout, dtype=torch.float64, device=device)

    def loss_at(index: Tensor, seeds: Tensor | None = None) -> Tensor:
        x, y, lengths, static = samples.batch(index)  # [B, L, F], [B, H, K], [B], [B, S]
        with (
            nullcontext() if seeds is None else draws(dropout, seeds),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            predicted = model(x, lengths, static, every_quantile=True)  # [B, H, K, Q]
        return criterion(predicted.float(), y)

    def step(
        index: Tensor, rate: float | Tensor, seeds: Tensor | None = None, whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """A step on samples index [B]; the loss and the norm of its gradients. seeds: int64 [calls]."""

        def drawn(piece: Tensor, _number: int) -> Tensor:  # a piece of the batch draws seeds of its own
            return loss_at(piece, seeds if calls and len(piece) == len(index) else None)

        if whole:
            loss = in_pieces(drawn, index, model.zero_grad, len(index), training.loss_weight)
        else:
            loss, state.micro_batch = backward(drawn, index, model.zero_grad, state.micro_batch, training.loss_weight)
        for group in optimiser.param_groups:
            group["lr"] = rate
        norm = clip_gradients(parameters, training.clip)
        optimiser.step()
        return loss, norm

    captured = capture.Captured(step, partial(step, whole=True), device)
    if captured.active and (reason := capture.refusal(model, samples.padded)):
        captured.stop(reason)

    while not state.finished:
        epoch = state.epoch + 1
        started = clock()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with seeded(training.seed, epoch, device), threads_for(model):
            model.train()
            order = torch.randperm(len(samples)).to(device)
            rates = [
                learning_rate_at(training, state.epoch * batches + number, total_steps) for number in range(batches)
            ]
            each: list[tuple[float | Tensor, ...]] = [(rate,) for rate in rates]
            if on_device:
                seeds = new_seeds(batches * calls, torch.default_generator).view(batches, calls).to(device)
                each = list(zip(torch.tensor(rates, device=device), seeds, strict=True))
            for number, index in enumerate(torch.split(order, training.batch_size)):
                if captured.active and state.micro_batch is not None:
                    captured.stop(capture.NO_MEMORY)
                losses[number], norms[number] = captured(index, *each[number])
            rate = rates[-1]
        train_loss = checked_loss(losses, norms, len(samples), state, rate)
        trained = clock()

        judged = judge(model, held_out, data.target_std, eval_batch(config, data, device), dtype)
        validation = judged.result()
        improved = close_epoch(state, validation, rate, judged.end)
        ended = clock()
        yield EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            validation=validation,
            seconds=ended - started,
            sequences_per_s=len(samples) / (trained - started),
            learning_rate=rate,
            peak_memory_mib=peak_memory_mib(device, captured),
            parameters=sum(parameter.numel() for parameter in parameters),
            backend=model.describe_backend() + captured.describe(),
            improved=improved,
            finished=state.finished,
            state=state,
            micro_batch=state.micro_batch,
            captured=captured.replaying,
        )


def begin(
    config: TrialConfig, data: Prepared, device: torch.device | str = "cpu", objective: str = "rmse"
) -> TrainingState:
    """The state before the first epoch: weights drawn from the seed, nothing trained. The caller's RNG is untouched."""
    if objective not in METRICS:
        raise ValueError(f"objective must be one of {', '.join(METRICS)}, got '{objective}'")
    # Drawn on the CPU, so that a seed gives the same weights on every device.
    with seeded(config.training.seed, 0, torch.device("cpu")):
        model = build_model(config.model, shape_of(data, config))
    model.to(device)
    return TrainingState(config, data.fingerprint, objective, model, build_optimiser(model, config.training))


def close_epoch(state: TrainingState, validation: dict[str, float], rate: float, end: Callable[[], Tensor]) -> bool:
    """Note an epoch that has been trained and judged; returns whether it is the best so far. Raises Diverged.

    end: gives the `best_end` of this epoch.
    """
    epoch = state.epoch + 1
    if not np.isfinite(list(validation.values())).all():
        raise Diverged(f"the validation predictions are not finite after epoch {epoch} (learning rate {rate:.3g})")
    best = state.best_validation
    improved = best is None or validation[state.objective] < best[state.objective]
    if improved:
        state.best_epoch, state.best_validation, state.best_end = epoch, validation, end()
        state.best_weights = {name: value.to("cpu", copy=True) for name, value in state.model.state_dict().items()}
    state.epoch = epoch
    return improved


def shape_of(data: Prepared, config: TrialConfig | None = None) -> Shape:
    """The problem that a model has to fit: `data` as `config` looks at it. None = as the search file does, with one
    number for each target and step."""
    lookback = data.lookback if config is None else config.lookback or data.lookback
    return Shape(
        features=len(data.feature_names),
        lookback=lookback,
        horizon=data.horizon,
        targets=len(data.target_names),
        target_columns=data.target_columns,
        statics=len(data.static_names),
        quantiles=() if config is None else config.training.levels,
        varying=data.task == "regression" and data.shortest < lookback,
        floor=data.floor,
    )


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """`device`, or the GPU where there is one, else the CPU."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def autocast_dtype(precision: str, device: torch.device | str) -> torch.dtype | None:
    """bfloat16 or None (float32), from training.precision. Raises BackendUnavailable when bf16 is not to be had."""
    device = torch.device(device)
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if precision == "auto":
        return None
    name = torch.cuda.get_device_name(device)
    raise BackendUnavailable(f"training.precision is 'bf16', but {name} has no bfloat16; use 'auto' or 'fp32'")


def check_same_run(state: TrainingState, config: TrialConfig, data: Prepared, objective: str) -> None:
    there = (state.config.key(), state.fingerprint, state.objective)
    here = (config.key(), data.fingerprint, objective)
    for what, one, other in zip(("config", "data", "objective"), there, here, strict=True):
        if one != other:
            raise ValueError(f"resume must be a state of the same {what}, got one of {one} for {other}")


def checked_loss(losses: Tensor, norms: Tensor, samples: int, state: TrainingState, rate: float) -> float:
    """The epoch's mean loss over samples. losses, norms: [batches], in order. Raises Diverged."""
    epoch = state.epoch + 1
    read = torch.stack([losses, norms]).cpu().double()
    bad = (~read.isfinite()).any(dim=0).nonzero()
    if len(bad):
        batch = int(bad[0])
        what, value = ("loss", read[0, batch]) if not read[0, batch].isfinite() else ("gradient", read[1, batch])
        where = f"epoch {epoch}, batch {batch + 1} of {len(losses)}"
        raise Diverged(f"the {what} is {value.item()} in {where} (learning rate {rate:.3g})")
    if state.first_loss is None:
        state.first_loss = read[0, 0].item()
    sizes = torch.full_like(read[0], state.config.training.batch_size)
    sizes[-1] = samples - sizes[:-1].sum()
    mean = ((read[0] * sizes).sum() / samples).item()
    if mean > EXPLODED * max(state.first_loss, 1.0):
        raise Diverged(
            f"the loss grew from {state.first_loss:.3g} to {mean:.3g} in epoch {epoch} (learning rate {rate:.3g})"
        )
    return mean


def peak_memory_mib(device: torch.device, captured: capture.Captured) -> float | None:
    """The `peak_memory_mib` of an EpochResult."""
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(device) / 2**20, captured.peak_mib)
    if sys.platform == "win32":
        return None
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
