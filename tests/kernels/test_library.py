import pytest
import torch

from xlstm_tune.kernels import lstm, slstm


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
