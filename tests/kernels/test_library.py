import pytest
import torch
from torch.autograd import forward_ad

from xlstm_tune.kernels import lstm, slstm
from xlstm_tune.kernels.library import constant_when_compiled


def registered():
    """The default overload of every operator of this package."""
    return [getattr(torch.ops.xlstm_tune, name).default for name in dir(torch.ops.xlstm_tune) if "lstm" in name]


def test_arguments_of_an_operator_have_different_names():
    # torch.compile's code generator makes a Python function of the schema.
    operators = registered()
    assert len(operators) >= 4
    for operator in operators:
        names = [argument.name for argument in operator._schema.arguments]
        assert len(set(names)) == len(names), operator


def test_a_constant_is_marked_as_torch_marks_it():
    def ours(): ...

    def theirs(): ...

    torch.compiler.assume_constant_result(theirs)
    assert vars(constant_when_compiled(ours)) == vars(theirs) != {}


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("op", [lstm, slstm])
def test_vmap_over_parameters_that_alone_want_gradients(op, backend):
    gates = torch.randn(4, 5, 2, 4, 3)
    recurrent = torch.randn(3, 2, 4, 3, 3, requires_grad=True)
    torch.vmap(lambda weight: op(gates, weight, backend=backend)[0])(recurrent).sum().backward()
    for member, gradient in zip(recurrent.detach(), recurrent.grad, strict=True):
        member.requires_grad_()
        op(gates, member, backend=backend)[0].sum().backward()
        torch.testing.assert_close(gradient, member.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("op", [lstm, slstm])
def test_derivatives_other_than_backward_are_refused(op, backend):
    # Forward mode would come out as zeros, without a word.
    gates, recurrent = torch.randn(2, 3, 1, 4, 2), torch.randn(1, 4, 2, 2)

    def run(x):
        return op(x, recurrent, backend=backend)[0]

    with pytest.raises(RuntimeError, match=r"takes no torch\.func\.grad"):
        torch.func.jvp(run, (gates,), (gates,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="nor forward-mode tangents"):
        run(forward_ad.make_dual(gates, gates))
    with pytest.raises(RuntimeError, match=r"takes no torch\.func\.grad"):
        torch.vmap(torch.func.grad(lambda x: run(x).sum()))(torch.stack([gates, gates]))
    gates.requires_grad_()
    (gradient,) = torch.autograd.grad(run(gates).sum(), gates, create_graph=True)
    with pytest.raises(RuntimeError, match="has no double backward"):
        gradient.sum().backward()
