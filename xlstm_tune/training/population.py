"""Many members of one shape trained in one pass.

Members differ in what leaves every tensor's shape alone: learning rate, weight decay, dropout rate, clip, seed, weight
of the loss, schedule. Their weights are stacked, one vmap runs the model for all of them, and one backward pass gives
all gradients. Everything else stays a member's own: model, optimiser, order of the data, dropout, clipping. So a member
is an ordinary training run whose weights happen to be views of a stack, and ends with the numbers that it has alone, up
to rounding.

A step that runs out of memory takes half as many members through the model at a time, which changes no member's
mathematics. Only where one at a time is too much are batches done in pieces (`micro`), as for a run alone.

Legend: M members of a pack, B batch, L lookback, F features, H horizon, K targets.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.models.draws import count_draws, draws, new_seeds
from xlstm_tune.training import capture
from xlstm_tune.training.clock import clock
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.judge import eval_batch
from xlstm_tune.training.loop import (
    Diverged,
    EpochResult,
    TrainingState,
    autocast_dtype,
    begin,
    check_same_run,
    checked_loss,
    close_epoch,
    peak_memory_mib,
    pick_device,
    train,
)
from xlstm_tune.training.losses import loss_of
from xlstm_tune.training.members import check_one_shape, width_for
from xlstm_tune.training.metrics import ErrorSums
from xlstm_tune.training.micro import backward, fitting, in_pieces
from xlstm_tune.training.optimiser import clip_members, learning_rate_at
from xlstm_tune.training.seeding import mixed_seed
from xlstm_tune.training.threads import threads_for


@dataclass(frozen=True)
class MemberEpoch:
    """What one epoch brought a member."""

    member: int
    """Its place in the list of configurations."""
    result: EpochResult | None
    """As of a run of its own; its seconds are the member's share of the pack's."""
    failure: str | None
    """Why the member is not trained further, instead of a result."""


def train_population(
    configs: Sequence[TrialConfig],
    data: Prepared,
    resume: Sequence[TrainingState | None] | None = None,
    device: torch.device | str | None = None,
    objective: str = "rmse",
    width: int | None = None,
    left_out: Container[int] = (),
) -> Iterator[list[MemberEpoch]]:
    """Train all members, one epoch of each per `next()`; those that have finished or failed are left out from then on.

    configs: alike but for what `members.SHAPE_PRESERVING` names. data, device, objective: as `loop.train`.
    resume: a state for each member, None for one that has failed.
    width: members in a pass at most; None = as many as is fastest (`members.width_for`). It decides the speed, and the
        numbers in their last bits at most. Members of `lstm_torch` always train one after another.
    left_out: members that train no further; looked at before every epoch, so that it may grow.
    Raises ValueError for members of different shapes and what `loop.train` refuses.
    """
    check_one_shape(configs)
    device = pick_device(device)
    dtype = autocast_dtype(configs[0].training.precision, device)
    samples = Windows(data, "train", configs[0].lookback, device)
    held_out = Windows(data, "validation", configs[0].lookback, device)
    states: dict[int, TrainingState] = {}
    for member, config in enumerate(configs):
        if resume is None:
            states[member] = begin(config, data, device, objective)
        elif (state := resume[member]) is not None:
            check_same_run(state, config, data, objective)
            states[member] = state
    alone: dict[int, Iterator[EpochResult]] = {}
    if configs[0].model.family == "lstm_torch":
        width = 1
    elif width is None:
        width = width_for(configs[0], data.lookback, device.type == "cuda")
    packs: dict[tuple[int, ...], Pack] = {}
    while members := [member for member, state in states.items() if not state.finished and member not in left_out]:
        ended: list[MemberEpoch] = []
        parts = -(-len(members) // width)
        each = [  # of nearly the same size
            tuple(members[len(members) * part // parts : len(members) * (part + 1) // parts]) for part in range(parts)
        ]
        joined = {member for chosen in each if len(chosen) > 1 for member in chosen}
        for member in {member for chosen in packs for member in chosen} & states.keys() - joined:
            _leave(states[member])
        # A pack stays while its members do, and with it on a GPU the graph of its step, each with memory of its own.
        packs = {chosen: pack for chosen, pack in packs.items() if chosen in each}
        alone = {member: run for member, run in alone.items() if member not in joined}
        for chosen in each:
            if len(chosen) == 1:  # faster without a vmap
                member = chosen[0]
                if member not in alone:
                    alone[member] = train(configs[member], data, states[member], device, objective)
                epochs = [_next(alone[member])]
            else:
                if chosen not in packs:
                    packs[chosen] = Pack([states[member] for member in chosen], samples, held_out, data, dtype)
                epochs = packs[chosen].epoch()
            for member, (result, failure) in zip(chosen, epochs, strict=True):
                ended.append(MemberEpoch(member, result, failure))
                if failure is not None:
                    _leave(states.pop(member))
        yield ended


def _leave(state: TrainingState) -> None:
    """Out of its pack: a member that has ended would hold the weights and gradients of all by its views of them."""
    for parameter in state.model.parameters():
        parameter.data, parameter.grad = parameter.data.clone(), None


def _next(run: Iterator[EpochResult]) -> tuple[EpochResult | None, str | None]:
    """An epoch of a single member, or why it has failed."""
    try:
        return next(run), None
    except Diverged as reason:
        return None, f"diverged: {reason}"


class Pack:
    """Members that train together."""

    def __init__(
        self,
        states: list[TrainingState],
        samples: Windows,
        held_out: Windows,
        data: Prepared,
        dtype: torch.dtype | None,
    ) -> None:
        self.states, self.samples, self.held_out, self.data, self.dtype = states, samples, held_out, data, dtype
        self.template = states[0].model
        self.parameters = [list(state.model.parameters()) for state in states]
        self.stacked: dict[str, Tensor] = {}
        for place, (name, _) in enumerate(self.template.named_parameters()):
            whole = torch.stack([parameters[place].detach() for parameters in self.parameters])
            for parameters, own in zip(self.parameters, whole.unbind(0), strict=True):
                parameters[place].data = own  # a view: what an optimiser does to it, the stack sees
            self.stacked[name] = whole.requires_grad_()
        self.device = whole.device
        self.together = min((state.together for state in states if state.together), default=None)
        self.micro_batch = min((state.micro_batch for state in states if state.micro_batch), default=None)
        self.criterion = loss_of(states[0].config.training)
        self.dropouts = self._of_each([state.config.model.dropout for state in states], torch.float64)
        self.weights = self._of_each([state.config.training.loss_weight for state in states])
        self.clips = self._of_each([state.config.training.clip for state in states])
        # A proxy makes no cycle: a pack that is left goes at once, and on a GPU the memory of its graph with it.
        step: Callable[..., tuple[Tensor, Tensor]] = partial(Pack._step, weakref.proxy(self))
        self.captured = capture.Captured(step, partial(step, whole=True), self.device)

    def _of_each(self, values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        """A number of each member, [M] on the device."""
        return torch.tensor(values, dtype=dtype, device=self.device)

    def epoch(self) -> list[tuple[EpochResult | None, str | None]]:
        """Train one epoch and judge it; for each member a result, or why it has failed."""
        started = clock()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        losses, norms, rates = self._train()
        trained = clock()
        outcomes: list[float | str] = []
        for place, state in enumerate(self.states):
            try:
                outcomes.append(checked_loss(losses[place], norms[place], len(self.samples), state, rates[place]))
            except Diverged as reason:
                outcomes.append(f"diverged: {reason}")
        judged = self._judge()
        ended = clock()
        count = len(self.states)
        found: list[tuple[EpochResult | None, str | None]] = []
        for place, (state, outcome) in enumerate(zip(self.states, outcomes, strict=True)):
            if isinstance(outcome, str):
                found.append((None, outcome))
                continue
            try:
                validation = judged[place].result()
                improved = close_epoch(state, validation, rates[place], judged[place].end)
            except Diverged as reason:
                found.append((None, f"diverged: {reason}"))
                continue
            result = EpochResult(
                epoch=state.epoch,
                train_loss=outcome,
                validation=validation,
                seconds=(ended - started) / count,
                sequences_per_s=len(self.samples) * count / (trained - started),
                learning_rate=rates[place],
                peak_memory_mib=peak_memory_mib(self.device, self.captured),
                parameters=sum(parameter.numel() for parameter in self.parameters[place]),
                backend=state.model.describe_backend() + self.captured.describe(),
                improved=improved,
                finished=state.finished,
                state=state,
                micro_batch=state.micro_batch,
                together=state.together,
                captured=self.captured.replaying,
            )
            found.append((result, None))
        return found

    def _train(self) -> tuple[Tensor, Tensor, list[float]]:
        """One epoch: losses and norms of gradients [M, batches], and each member's last learning rate."""
        count = len(self.states)
        trainings = [state.config.training for state in self.states]
        batch_size = trainings[0].batch_size
        batches = -(-len(self.samples) // batch_size)
        losses = torch.zeros(count, batches, device=self.device)
        norms = torch.zeros_like(losses)
        self.template.train()
        calls = count_draws(self.template)
        generators = [
            torch.Generator().manual_seed(mixed_seed(state.config.training.seed, state.epoch + 1))
            for state in self.states
        ]
        orders = torch.stack([torch.randperm(len(self.samples), generator=one) for one in generators])
        seeds = torch.stack([new_seeds(batches * calls, one).view(batches, calls) for one in generators])
        orders, seeds = orders.to(self.device), seeds.to(self.device)
        rates = [
            [
                learning_rate_at(training, state.epoch * batches + number, batches * training.epochs)
                for state, training in zip(self.states, trainings, strict=True)
            ]
            for number in range(batches)
        ]
        each: Any = torch.tensor(rates, device=self.device) if capture.possible(self.device) else rates
        with threads_for(self.template):
            for number, index in enumerate(torch.split(orders.t(), batch_size)):
                if self.captured.active and ((self.together or count) < count or self.micro_batch):
                    self.captured.stop(capture.NO_MEMORY)
                losses[:, number], norms[:, number] = self.captured(index, seeds[:, number], each[number])
        for state in self.states:
            state.together, state.micro_batch = self.together, self.micro_batch
        return losses, norms, rates[-1]

    def _step(
        self, index: Tensor, seeds: Tensor, rates: Tensor | list[float], whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """A step of each member on samples index [B, M]; losses and norms of gradients, [M].

        seeds [M, calls], rates [M]. whole: all members and samples at once, whether they fit or not.
        """
        if whole:
            loss_at = partial(self._losses, self.stacked, self.dropouts, seeds)
            losses = in_pieces(loss_at, index, partial(_clear, self.stacked.values()), len(index), self.weights)
        else:
            losses = self._backward(seeds, index)
        norms = clip_members([stack.grad for stack in self.stacked.values() if stack.grad is not None], self.clips)
        self._share_gradients()
        for state, rate in zip(self.states, rates, strict=True):
            for group in state.optimiser.param_groups:
                group["lr"] = rate
            state.optimiser.step()
        return losses, norms

    def _backward(self, seeds: Tensor, index: Tensor) -> Tensor:
        """The gradients of all members' losses, each times its weight, in the stacks' `grad`.

        seeds [M, calls], index [B, M]. Returns the losses without the weights, [M].
        """

        def of(members: slice, stacked: dict[str, Tensor], halved: bool) -> Tensor:
            """The losses of some members, whose weights `stacked` holds, and their gradients there."""
            loss_at = partial(self._losses, stacked, self.dropouts[members], seeds[members])
            clear = partial(_clear, stacked.values())
            if halved:
                losses, self.micro_batch = backward(
                    loss_at, index[:, members], clear, self.micro_batch, self.weights[members]
                )
                return losses
            most = min(self.micro_batch or len(index), len(index))
            return in_pieces(loss_at, index[:, members], clear, most, self.weights[members])

        def attempt(most: int) -> Tensor:
            _clear(self.stacked.values())
            if most >= count:
                return of(slice(0, count), self.stacked, halved=most == 1)
            losses = []
            for members in _parts(count, most):
                stacked = {name: whole.detach()[members].requires_grad_() for name, whole in self.stacked.items()}
                losses.append(of(members, stacked, halved=most == 1))
                for name, part in stacked.items():
                    if part.grad is None:  # as alone: what the model does not use, the optimiser leaves
                        continue
                    whole = self.stacked[name]
                    if whole.grad is None:
                        whole.grad = torch.empty_like(whole)
                    whole.grad[members] = part.grad
            return torch.cat(losses)

        count = len(self.states)
        tried = min(self.together or count, count)
        found, fitted = fitting(attempt, tried)
        if fitted < tried:
            self.together = fitted
        return found

    def _losses(self, stacked: dict[str, Tensor], dropouts: Tensor, seeds: Tensor, index: Tensor, piece: int) -> Tensor:
        """The losses [M] of samples index [B, M], of members with these weights; dropouts [M], seeds [M, calls] of the
        batch, of which these samples are the piece of this number."""
        if piece:  # the first one's seeds would drop the same of every piece
            seeds = seeds ^ (mixed_seed(0, piece) >> 1)
        index = index.t()
        batch = self.samples.batch(index.flatten())
        x, y, lengths, static = (None if one is None else one.view(*index.shape, *one.shape[1:]) for one in batch)
        dropping = any(state.config.model.dropout for state in self.states)

        def one(
            weights: dict[str, Tensor], x: Any, y: Any, lengths: Any, static: Any, rate: Tensor, seeds: Tensor
        ) -> Tensor:
            with draws(rate, seeds) if dropping else nullcontext():
                predicted = functional_call(self.template, weights, (x, lengths, static), {"every_quantile": True})
            return self.criterion(predicted.float(), y)

        axes = (0, 0, 0, None if lengths is None else 0, None if static is None else 0, 0, 0)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            found: Tensor = vmap(one, axes)(stacked, x, y, lengths, static, dropouts, seeds)
        return found

    def _share_gradients(self) -> None:
        """Each member's part of the stacks' gradients as those of its own parameters."""
        for place, whole in enumerate(self.stacked.values()):
            grads = [None] * len(self.states) if whole.grad is None else whole.grad.unbind(0)
            for parameters, grad in zip(self.parameters, grads, strict=True):
                parameters[place].grad = grad

    @torch.no_grad()
    def _judge(self) -> list[ErrorSums]:
        """The errors of every member over all validation samples."""
        count = len(self.states)
        self.template.eval()

        def one(weights: dict[str, Tensor], x: Tensor, lengths: Any, static: Any) -> Tensor:
            predicted: Tensor = functional_call(self.template, weights, (x, lengths, static))
            return predicted

        def of(members: slice, size: int) -> list[ErrorSums]:
            stacked = {name: whole[members] for name, whole in self.stacked.items()}
            sums = [ErrorSums(self.data.target_std, self.device) for _ in self.states[members]]
            for index in torch.split(torch.arange(len(self.held_out), device=self.device), size):
                x, y, lengths, static = self.held_out.batch(index)
                with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                    predicted = vmap(one, (0, None, None, None))(stacked, x, lengths, static)
                for own, forecast in zip(sums, predicted.float(), strict=True):
                    own.add(forecast, y)
            return sums

        def attempt(most: int) -> list[ErrorSums]:
            found: list[ErrorSums] = []
            for members in _parts(count, most):
                found += of(members, whole) if most > 1 else fitting(partial(of, members), whole)[0]
            return found

        config = self.states[0].config
        whole = max(1, eval_batch(config, self.data, self.device) // count)
        if self.device.type == "cuda":  # a training batch of each fits, and a few samples at a time leave a GPU idle
            whole = max(whole, config.training.batch_size)
        found, _ = fitting(attempt, count)
        return found


def _parts(count: int, most: int) -> list[slice]:
    """The places 0 .. count - 1 in parts of at most `most`."""
    return [slice(start, min(start + most, count)) for start in range(0, count, most)]


def _clear(weights: Iterable[Tensor]) -> None:
    """Take all gradients away."""
    for one in weights:
        one.grad = None
