"""What Triton's kernels of LSTM and sLSTM do beyond the conformance suite: 16-bit inputs, any width, launch sizes."""

import os
from itertools import chain

import pytest
import torch

from xlstm_tune.kernels import LSTMState, SLSTMState, lstm, slstm

pytest.importorskip("triton")
from xlstm_tune.kernels.dispatch import ON_CHIP
from xlstm_tune.kernels.parts_triton import INTERPRETED, launch, launch_for

ON_GPU = os.environ.get("XLSTM_TUNE_TEST_GPU") == "1"
OPS = {"lstm": (lstm, LSTMState, 2), "slstm": (slstm, SLSTMState, 4)}


def problem(op, width, steps=6, batch=5, heads=2):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    state = [draw(batch, heads, width) for _ in range(OPS[op][2])]
    if op == "slstm":
        state[2] = state[2].abs() + 0.3
    recurrent = draw(heads, 4, width, width) / width**0.5
    return [draw(batch, steps, heads, 4, width), recurrent, draw(heads, 4, width), *state]


def results(op, inputs, dtype, backend, weighed=None):
    """Outputs and gradients, states in float32 (float64 for the reference). weighed: outputs that have a gradient."""
    function, kind, _ = OPS[op]
    exact = torch.promote_types(dtype, torch.float32)
    inputs = [tensor.to(dtype if at < 3 else exact).requires_grad_() for at, tensor in enumerate(inputs)]
    h, final = function(*inputs[:3], kind(*inputs[3:]), backend=backend)
    outputs = (h, *final)
    generator = torch.Generator().manual_seed(1)
    loss = sum((out.to(exact) * torch.randn(out.shape, generator=generator)).sum() for out in outputs[:weighed])
    return outputs, torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("width", [16, 24, 100, ON_CHIP[2] + 2])
@pytest.mark.parametrize("op", OPS)
def test_16_bit_inputs_are_summed_in_float32(op, width):
    """float16 stands for bfloat16 too, whose products the interpreter gets wrong (3.9 multiplies the bits)."""
    # Values that 16 bits hold exactly, so that what is compared is the arithmetic.
    inputs = [tensor.half().float() for tensor in problem(op, width)]
    mine, true = results(op, inputs, torch.float16, "triton"), results(op, inputs, torch.float64, "reference")
    assert [out.dtype for out in mine[0]] == [torch.float16] + [torch.float32] * OPS[op][2]
    for one, other in zip((*mine[0], *mine[1]), (*true[0], *true[1]), strict=True):
        assert (one.double() - other).abs().max() <= 2e-3 * other.abs().max()


@pytest.mark.skipif(ON_GPU, reason="of the interpreter")
@pytest.mark.parametrize("width", [5, 32, 100])
@pytest.mark.parametrize("op", OPS)
def test_bfloat16_is_near_the_truth(op, width, bfloat16_products):
    inputs = [tensor.bfloat16().float() for tensor in problem(op, width)]
    # Of sLSTM's last state m has a gradient that jumps where the greater of two numbers changes.
    options = {"weighed": 4} if op == "slstm" else {}
    mine = results(op, inputs, torch.bfloat16, "triton", **options)
    true = results(op, inputs, torch.float64, "reference", **options)
    assert [out.dtype for out in mine[0]] == [torch.bfloat16] + [torch.float32] * OPS[op][2]
    for one, other in zip((*mine[0], *mine[1]), (*true[0], *true[1]), strict=True):
        assert (one.double() - other).abs().max() <= 2e-2 * other.abs().max()


@pytest.mark.parametrize("op", OPS)
def test_both_designs_give_the_same(op, monkeypatch):
    inputs = problem(op, 20)
    whole = results(op, inputs, torch.float32, "triton")
    monkeypatch.setattr(f"xlstm_tune.kernels.{op}_triton.launch_for", lambda *_: None)
    by_step = results(op, inputs, torch.float32, "triton")
    for one, other in zip((*whole[0], *whole[1]), (*by_step[0], *by_step[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_resets_and_lengths_hold_in_16_bits(op):
    """A shut gate is infinite in float16."""
    function, kind, _ = OPS[op]
    inputs = problem(op, 16)
    resets = torch.zeros(5, 6, dtype=torch.bool)
    resets[1, 3] = resets[2, 0] = True
    lengths = torch.tensor([6, 6, 2, 1, 4])
    half = [tensor.half() for tensor in inputs[:3]]
    h, final = function(*half, kind(*inputs[3:]), resets=resets, lengths=lengths, backend="triton")
    truth, ends = function(
        *[tensor.double() for tensor in half], kind(*[tensor.double() for tensor in inputs[3:]]),
        resets=resets, lengths=lengths,
    )  # fmt: skip
    for one, other in zip((h, *final), (truth, *ends), strict=True):
        assert one.isfinite().all()
        assert (one.double() - other).abs().max() <= 5e-3 * other.abs().max()


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("bytes_each", [2, 4])
def test_every_width_has_a_launch_up_to_what_fits(bytes_each, few):
    for width in range(1, 300):
        found = launch(width, bytes_each, INTERPRETED, few)
        assert (found is not None) == (width <= ON_CHIP[bytes_each])
        if found is not None:
            assert found.width >= max(16, width) and found.width & (found.width - 1) == 0
            assert found.samples >= 4 and 0 < found.memory <= INTERPRETED


def test_programs_are_smaller_where_they_would_leave_half_of_the_chip_idle():
    tensor = torch.empty(64)
    assert launch_for(tensor, heads=4, batch=256).samples < launch_for(tensor, heads=4, batch=272).samples
    assert launch_for(tensor, heads=66, batch=16).samples < launch_for(tensor, heads=67, batch=1).samples


@pytest.mark.skipif(ON_GPU, reason="of the interpreter")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("op", OPS)
def test_few_programs_and_many_give_the_same(op, dtype, monkeypatch):
    inputs = problem(op, 20, batch=19)
    few = results(op, inputs, dtype, "triton")
    monkeypatch.setattr("xlstm_tune.kernels.parts_triton.INTERPRETED_PROCESSORS", 0)
    for one, other in zip(chain(*few), chain(*results(op, inputs, dtype, "triton")), strict=True):
        assert (one - other).abs().max() <= (1e-3 if dtype == torch.float16 else 1e-6) * other.abs().max()


def test_a_smaller_chip_reads_less_ahead_or_goes_step_by_step():
    assert launch(128, 2, 166_912).stages == 1
    assert launch(128, 2, 101_376) is None
    assert launch(64, 4, 101_376).stages == 1
