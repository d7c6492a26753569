"""LSTM and sLSTM in Triton store or recompute: the same numbers, the bytes that are said, the choice by size."""

import pytest
import torch

from xlstm_tune.kernels import LSTMState, SLSTMState, lstm, slstm

pytest.importorskip("triton")
from xlstm_tune.kernels import gated_triton, lstm_triton, slstm_triton
from xlstm_tune.kernels.dispatch import ON_CHIP

OPS = {"lstm": (lstm, LSTMState, 1, lstm_triton.CELL), "slstm": (slstm, SLSTMState, 3, slstm_triton.CELL)}
"""op → its function, its state, its states besides h, its cell."""
WAYS = ("store", "recompute")
WIDE = ON_CHIP[2] + 2
"""Step by step in every dtype."""


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Some steps make several pieces, and memory that is not yet written holds NaN."""
    monkeypatch.setattr(gated_triton, "PIECE", 4)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def problem(op, batch, steps, heads, width, dtype=torch.float32, warm=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    gates, recurrent = draw(batch, steps, heads, 4, width), draw(heads, 4, width, width) / width**0.5
    state = [draw(batch, heads, width) for _ in range(1 + OPS[op][2])]
    if op == "slstm":
        state[2] = state[2].abs() + 0.3
    return [tensor.to(dtype) for tensor in (gates, recurrent, draw(heads, 4, width))] + (state if warm else [])


def call(op, inputs, **options):
    function, kind, *_ = OPS[op]
    h, final = function(*inputs[:3], kind(*inputs[3:]) if inputs[3:] else None, **{"backend": "triton"} | options)
    return h, *final


def gradients(outputs, leaves):
    generator = torch.Generator().manual_seed(1)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    return torch.autograd.grad(loss, leaves)


def results(op, inputs, **options):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = call(op, leaves, **options)
    return *outputs, *gradients(outputs, leaves)


def both_ways(monkeypatch, run):
    """What `run` gives, storing and recomputing."""
    found = []
    for way in WAYS:
        monkeypatch.setenv(gated_triton.VARIABLE, way)
        found.append(run())
    return found


def assert_same(stored, recomputed):
    for number, (one, other) in enumerate(zip(stored, recomputed, strict=True)):
        assert torch.equal(one, other), f"result {number}"


def way_of(h):
    return "recompute" if "recomputing" in h.grad_fn.name() else "store"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "width", "dtype", "masked"),
    [(17, 5, torch.float32, False), (3, 20, torch.float16, True), (3, WIDE, torch.float16, True)],
)
@pytest.mark.parametrize("op", OPS)
def test_recomputed_gradients_are_the_stored_ones(op, batch, width, dtype, masked, monkeypatch):
    inputs = problem(op, batch, 9, 2, width, dtype)
    options = {}
    if masked:
        generator = torch.Generator().manual_seed(2)
        options["resets"] = torch.rand(batch, 9, generator=generator) < 0.3
        options["lengths"] = torch.randint(1, 10, (batch,), generator=generator)
    assert_same(*both_ways(monkeypatch, lambda: results(op, inputs, **options)))


@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("op", OPS)
def test_recomputed_gradients_equal_the_reference(op, steps, monkeypatch):
    """From the empty state, around the lengths of whole pieces."""
    inputs = problem(op, 3, steps, 2, 6, warm=False)
    monkeypatch.setenv(gated_triton.VARIABLE, "recompute")
    true = results(op, [tensor.double() for tensor in inputs], backend="reference")
    for one, other in zip(results(op, inputs), true, strict=True):
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("width", [5, WIDE])
@pytest.mark.parametrize("op", OPS)
def test_each_output_alone_has_the_same_gradients(op, width, monkeypatch):
    inputs = problem(op, 2, 5, 1, width)
    for number in range(2 + OPS[op][2]):

        def run(number=number):
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            out = call(op, leaves)[number]
            return torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)

        assert_same(*both_ways(monkeypatch, run))


@pytest.mark.parametrize("op", OPS)
def test_vmap_over_members_gives_the_same(op, monkeypatch):
    gates, *own = problem(op, 3, 6, 2, 4)
    stacked = [torch.stack([tensor, tensor + 0.1]) for tensor in own]

    def run():
        leaves = [tensor.detach().requires_grad_() for tensor in (gates, *stacked)]
        outputs = torch.vmap(lambda *parts: call(op, [leaves[0], *parts]))(*leaves[1:])
        return *outputs, *gradients(outputs, leaves)

    assert_same(*both_ways(monkeypatch, run))


@pytest.mark.parametrize("op", OPS)
def test_compiled_gives_the_same(op, monkeypatch):
    inputs = problem(op, 3, 6, 2, 4)
    torch._dynamo.reset()
    monkeypatch.setenv(gated_triton.VARIABLE, "recompute")

    def run(function):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        return *outputs, *gradients(outputs, leaves)

    plain = run(lambda *tensors: call(op, tensors))
    assert_same(plain, run(torch.compile(lambda *tensors: call(op, tensors), fullgraph=True, backend="aot_eager")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("op", OPS)
def test_kept_bytes_are_those_that_are_said(op, way, dtype, monkeypatch):
    """Of a unit and step, from the difference between four and two pieces; what does not grow with steps is left out.
    Numbers as in the head of gated_triton."""
    monkeypatch.setenv(gated_triton.VARIABLE, way)
    kept = []
    for pieces in (2, 4):
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.nbytes
            return tensor

        leaves = [tensor.requires_grad_() for tensor in problem(op, 3, pieces * gated_triton.PIECE, 2, 5, dtype)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = call(op, leaves)
        kept.append(sum(saved.values()))
        assert way_of(outputs[0]) == way
    size, cell = leaves[0].element_size(), OPS[op][3]
    each = {"store": cell.stored_bytes, "recompute": 4 * size + 4 * len(cell.states) / gated_triton.PIECE}[way]
    assert (kept[1] - kept[0]) / (3 * 2 * gated_triton.PIECE * 2 * 5) == each + size  # h is kept by both
    assert cell.stored_bytes == {"lstm": 20, "slstm": 28}[op]


@pytest.mark.parametrize("op", OPS)
def test_a_call_recomputes_where_it_would_store_too_much(op, monkeypatch):
    inputs = [tensor.requires_grad_() for tensor in problem(op, 2, 6, 2, 3)]
    stored = 2 * 6 * 2 * 3 * OPS[op][3].stored_bytes
    monkeypatch.delenv(gated_triton.VARIABLE, raising=False)
    assert way_of(call(op, inputs)[0]) == "store"  # a CPU has no limit

    def with_memory(memory):
        monkeypatch.setattr(gated_triton, "device_memory", lambda kind, index: memory)

    with_memory(32 * stored)
    assert way_of(call(op, inputs)[0]) == "store"
    with_memory(32 * stored - 1)
    assert way_of(call(op, inputs)[0]) == "recompute"
    monkeypatch.setenv(gated_triton.VARIABLE, "store")
    assert way_of(call(op, inputs)[0]) == "store"
    monkeypatch.setenv(gated_triton.VARIABLE, "recomputed")
    with pytest.raises(ValueError, match="XLSTM_TUNE_BACKWARD must be auto, store or recompute, got 'recomputed'"):
        call(op, inputs)


@pytest.mark.parametrize("shared", ["gates", "recurrent"])
def test_members_of_a_population_count(shared, monkeypatch):
    gates, recurrent, _ = problem("slstm", 2, 6, 1, 3, warm=False)
    cell, said = slstm_triton.CELL, []
    monkeypatch.delenv(gated_triton.VARIABLE, raising=False)
    for members in (4, 5):
        monkeypatch.setattr(gated_triton, "device_memory", lambda *_: 32 * 4 * gates.numel() // 4 * cell.stored_bytes)

        def member(*own):
            said.append(gated_triton.recomputes(cell, *own))
            return own[0]

        own = [tensor if name == shared else tensor.expand(members, *tensor.shape)
               for name, tensor in (("gates", gates), ("recurrent", recurrent))]  # fmt: skip
        torch.vmap(member, in_dims=tuple(None if name == shared else 0 for name in ("gates", "recurrent")))(*own)
    assert said == [False, True]


def test_without_gradients_nothing_is_recomputed(monkeypatch):
    gates, recurrent, _ = problem("slstm", 2, 6, 1, 3, warm=False)
    monkeypatch.delenv(gated_triton.VARIABLE, raising=False)
    monkeypatch.setattr(gated_triton, "device_memory", lambda *_: 1)
    assert gated_triton.recomputes(slstm_triton.CELL, gates, recurrent)
    with torch.no_grad():
        assert not gated_triton.recomputes(slstm_triton.CELL, gates, recurrent)
