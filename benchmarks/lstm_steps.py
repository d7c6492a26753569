"""From the LSTM's equations to torch's LSTM, step by step: what each costs and gains, and that all learn the same.

    python benchmarks/lstm_steps.py             about two minutes; --write puts the tables into results/lstm_steps.md
    python benchmarks/lstm_steps.py --threads 2

Every rung has the interface and the weights of `xlstm_tune.models.lstm`, and changes one thing of the rung before:

1. the equations as they stand: primitives (sigmoid, tanh, matmul from arithmetic and exp), two products a step;
2. the family `lstm_scratch`: the inputs' share of the gates of all steps in one product;
3. torch's sigmoid, tanh and matmul for the primitives; autograd still notes down every operation of every step;
4. the op `lstm` with backend `reference`: batch innermost, memory allocated once, an explicit backward, the weights'
   gradients in one product after the loop;
5. the family `lstm`: the same with the backend that dispatch takes here;
6. the family `lstm_torch`: torch.nn.LSTM.

Speed: forward and backward of two layers, batch 128 × 96 steps, width 64, float32. The rungs take turns, and the
fastest pass counts: slow rungs get few, and a median of few would mostly tell who else used the machine. Kept: what
autograd holds between forward and backward, weights left out. All get the same weights and input; output and weight
gradients have to agree with torch's.

Learning: each rung as the body of the same model, from the same weights, by `training.loop.train` on a small
`sample:outbreak`. The losses of all epochs have to agree.

Exit code 1 when they do not, or when the fused LSTM takes more than 1.5 times as long as torch's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
import typer
from machine import describe, write_results
from torch import Tensor, nn

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.kernels.dispatch import resolve
from xlstm_tune.models import primitives
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.lstm import LSTM, LSTMScratch, LSTMState, LSTMTorch
from xlstm_tune.training.config import TrainingConfig, TrialConfig
from xlstm_tune.training.loop import EpochResult, begin, train
from xlstm_tune.training.optimiser import build_optimiser

BATCH, STEPS, WIDTH, LAYERS = 128, 96, 64, 2
MOST = 1.5
"""Times of torch's that the fused LSTM may take."""
TOLERANCE = 1e-4
"""Of outputs and weight gradients, as a share of the largest, and of losses: float32 after sums of thousands."""
TURN = 0.5
"""Seconds of a rung's turn; one pass at least."""


class EveryStep(LSTMScratch):
    """The equations as they stand: all that a step needs is computed in the step."""

    def _run_layer(
        self, name: str, x: Tensor, state: LSTMState | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LSTMState]:
        from_input, from_hidden = (self._weight(kind, name).t().contiguous() for kind in ("weight_ih", "weight_hh"))
        bias = self._weight("bias_ih", name) + self._weight("bias_hh", name)
        h = c = x.new_zeros(len(x), self.hidden_size)
        outputs = []
        for step in x.unbind(1):
            raw = primitives.matmul(step, from_input) + primitives.matmul(h, from_hidden) + bias
            i, f, g, o = raw.chunk(4, dim=1)
            c = primitives.sigmoid(f) * c + primitives.sigmoid(i) * primitives.tanh(g)
            h = primitives.sigmoid(o) * primitives.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


class TorchFunctions(LSTMScratch):
    """`lstm_scratch` with torch's functions for the primitives."""

    def _run_layer(
        self, name: str, x: Tensor, state: LSTMState | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LSTMState]:
        from_hidden = self._weight("weight_hh", name).t()
        inputs = x @ self._weight("weight_ih", name).t() + self._weight("bias_ih", name) + self._weight("bias_hh", name)
        h = c = x.new_zeros(len(x), self.hidden_size)
        outputs = []
        for step in inputs.unbind(1):
            i, f, g, o = (step + h @ from_hidden).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


@dataclass
class Rung:
    """One way to compute the same LSTM, and what was found about it."""

    name: str
    build: Callable[[int, int, int], nn.Module]
    """(inputs, width, layers) → the LSTM."""
    seconds: list[float] = field(default_factory=list)
    kept_mib: float = 0.0
    differs: float = 0.0
    """From torch.nn.LSTM with the same weights: the largest difference as a share of the largest value."""
    epochs: list[EpochResult] = field(default_factory=list)

    @property
    def ms(self) -> float:
        return 1e3 * min(self.seconds)


def make_rungs() -> list[Rung]:
    fused = str(resolve("lstm").backend)
    return [
        Rung("1 the equations, step by step, from primitives", EveryStep),
        Rung("2 inputs' products at once (`lstm_scratch`)", LSTMScratch),
        Rung("3 torch's sigmoid, tanh and matmul", TorchFunctions),
        Rung("4 explicit backward (backend `reference`)", lambda *sizes: LSTM(*sizes, backend="reference")),
        Rung(f"5 chosen by dispatch (`lstm`: {fused})", LSTM),
        Rung("6 torch.nn.LSTM (`lstm_torch`)", LSTMTorch),
    ]


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """What autograd holds for the backward pass, each storage once, weights left out."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = model(x)
    kept = sum(one.untyped_storage().nbytes() for place, one in held.items() if place not in owned)
    del y  # only now: a storage that is freed meanwhile may come again for another tensor
    return kept


def measure(rungs: list[Rung], rounds: int) -> None:
    """Time all rungs in turns, and hold them against the last one."""
    torch.manual_seed(0)
    models = [rung.build(WIDTH, WIDTH, LAYERS) for rung in rungs]
    x, weighting = torch.randn(BATCH, STEPS, WIDTH), torch.randn(BATCH, STEPS, WIDTH)

    def run(model: nn.Module) -> list[Tensor]:
        """Output and weight gradients of one pass."""
        for parameter in model.parameters():
            parameter.grad = None
        y, _ = model(x)
        y.backward(weighting)
        return [y.detach(), *(parameter.grad for parameter in model.parameters())]

    for model in models:
        model.load_state_dict(models[-1].state_dict())
    truth = run(models[-1])
    for rung, model in zip(rungs, models, strict=True):
        rung.kept_mib = kept_bytes(model, x) / 2**20
        rung.differs = max(
            ((mine - true).abs().max() / true.abs().max()).item() for mine, true in zip(run(model), truth, strict=True)
        )
    for _ in range(rounds):
        for rung, model in zip(rungs, models, strict=True):
            until = time.perf_counter() + TURN
            while True:
                started = time.perf_counter()
                run(model)
                rung.seconds.append(time.perf_counter() - started)
                if time.perf_counter() > until:
                    break


def outbreak() -> Prepared:
    """A small outbreak: yearly cases of a county from a year's daily weather."""
    config = DataConfig.model_validate(
        {
            "source": "sample:outbreak",
            "sample": {"counties": 6, "years": 8},
            "task": "regression",
            "sequence": ["county", "year"],
            "time": {"column": "date"},
            "target": "cases",
            "features": "all",
            "exclude": ["day"],
            "categories": ["weather_main", "weather_description"],
            "split": {"by": "time", "validation": 0.2, "test": 0.2},
        }
    )
    return prepare(load_table(config), config)


def learn(rungs: list[Rung], data: Prepared, epochs: int) -> None:
    """Train the same model on every rung, from the same weights."""
    model = ModelConfig(family="lstm", layers=1, hidden_size=16, pooling="mean")
    config = TrialConfig(model, TrainingConfig(epochs=epochs, batch_size=8, learning_rate=1e-2), None)
    for rung in rungs:
        state = begin(config, data)
        body = rung.build(model.hidden_size, model.hidden_size, model.layers)
        body.load_state_dict(state.model.body.state_dict())
        state.model.body = body
        state.optimiser = build_optimiser(state.model, config.training)
        rung.epochs = list(train(config, data, resume=state, device="cpu"))


def apart(rung: Rung, truth: Rung) -> float:
    """The largest difference between two rungs' losses and errors, as a share of the error."""
    return max(
        abs(mine / true - 1)
        for one, other in zip(rung.epochs, truth.epochs, strict=True)
        for mine, true in ((one.train_loss, other.train_loss), (one.validation["rmse"], other.validation["rmse"]))
    )


def speed_table(rungs: list[Rung]) -> list[str]:
    lines = ["| rung | forward + backward, ms | of torch's | gain on the rung before | kept, MiB | differs |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for before, rung in zip([None, *rungs], rungs, strict=False):
        gain = "" if before is None else f"{before.ms / rung.ms:.2f}×"
        share = f"{rung.ms / rungs[-1].ms:.2f}×"
        lines.append(f"| {rung.name} | {rung.ms:,.0f} | {share} | {gain} | {rung.kept_mib:.0f} | {rung.differs:.0e} |")
    return lines


def learning_table(rungs: list[Rung]) -> list[str]:
    lines = ["| rung | first epoch's loss | last epoch's loss | validation RMSE, cases | apart | seconds |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for rung in rungs:
        first, last = rung.epochs[0], rung.epochs[-1]
        cells = [
            rung.name,
            f"{first.train_loss:.6f}",
            f"{last.train_loss:.6f}",
            f"{last.validation['rmse']:.4f}",
            f"{apart(rung, rungs[-1]):.0e}",
            f"{sum(epoch.seconds for epoch in rung.epochs):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(
    threads: Annotated[int, typer.Option(min=1, help="torch's threads.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each rung.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of training.")] = 8,
    write: Annotated[bool, typer.Option("--write", help="Write the tables to results/lstm_steps.md.")] = False,
) -> None:
    """Measure every step from the LSTM's equations to torch's LSTM."""
    torch.set_num_threads(threads)
    rungs = make_rungs()
    load = os.getloadavg()[0]
    measure(rungs, rounds)
    busy = f"load of the machine before {load:.1f}, after {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    speed = speed_table(rungs)
    print(*speed, "", sep="\n", flush=True)
    data = outbreak()
    learn(rungs, data, epochs)
    learning = learning_table(rungs)
    fused = rungs[-2].ms / rungs[-1].ms
    wrong = [f"{rung.name}: differs from torch's by {rung.differs:.1e}" for rung in rungs if rung.differs > TOLERANCE]
    wrong += [
        f"{rung.name}: learns something else, {apart(rung, rungs[-1]):.1e} apart"
        for rung in rungs
        if apart(rung, rungs[-1]) > TOLERANCE
    ]
    verdict = f"Target, at most {MOST} times torch's for the fused LSTM: {'met' if fused <= MOST else 'MISSED'}"
    verdict += f" ({fused:.2f})."
    samples = len(data.parts["train"])
    said = [
        f"Speed: {LAYERS} layers, batch {BATCH} × {STEPS} steps, width {WIDTH}, {threads} "
        f"thread{'s' if threads > 1 else ''}, float32; {busy}. Differs: output and weight gradients from torch's.",
        f"Learning: {epochs} epochs of {samples} sequences × {data.lookback} days, width 16, batch 8, AdamW. Apart: "
        f"losses and RMSE of all epochs from torch's, relative.",
        verdict,
        *wrong,
    ]
    print(*learning, "", *said, sep="\n")
    if write:
        lines = [f"{describe()}.", "", *speed, "", *learning, "", *(f"- {line}" for line in said)]
        print(f"Written to {write_results('lstm_steps', lines)}.")
    raise SystemExit(1 if wrong or fused > MOST else 0)


if __name__ == "__main__":
    typer.run(main)
