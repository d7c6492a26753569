import pytest

from xlstm_tune.errors import BackendUnavailable
from xlstm_tune.kernels.dispatch import OPS, resolve


@pytest.mark.parametrize("op", OPS)
def test_resolve_auto_takes_the_reference_and_says_why(op):
    choice = resolve(op)
    assert choice.backend == "reference"
    assert op in choice.reason and op in str(choice)


@pytest.mark.parametrize("op", OPS)
def test_resolve_explicit_request_is_met_or_refused(op):
    assert resolve(op, "reference").backend == "reference"
    with pytest.raises(BackendUnavailable, match=f"'triton' was asked for, but .*{op}"):
        resolve(op, "triton")


def test_resolve_unknown_names():
    with pytest.raises(ValueError, match="backend must be one of auto, reference, triton, got 'cuda'"):
        resolve("slstm", "cuda")
    with pytest.raises(ValueError, match="op must be one of"):
        resolve("gru")
