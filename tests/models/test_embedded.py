"""An embedding that is not written out gives what the written one gives, outputs and gradients."""

import pytest
import torch
from torch import nn

from xlstm_tune.models.block import Norm
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.embedded import Embedded
from xlstm_tune.models.forecaster import Shape, build_model


def embedded(features: int, width: int, dtype: torch.dtype = torch.float64) -> Embedded:
    torch.manual_seed(features)
    return Embedded(*(torch.randn(*size, dtype=dtype) for size in ((3, 7, features), (width, features), (width,))))


@pytest.mark.parametrize("features", [1, 5, 19])
@pytest.mark.parametrize("norm", [Norm(64), Norm(64, rms=True), nn.Identity()], ids=["layer", "rms", "none"])
def test_the_normalised_embedding_is_the_norm_of_the_embedding(norm, features):
    source, norm = embedded(features, 64), norm.double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    narrow, dense = source.normalised(norm, None, last=False)
    torch.testing.assert_close(dense, source.dense(), rtol=1e-12, atol=1e-12)
    assert narrow.rows.shape[2] % 16 == 0 and narrow.rows.shape[2] <= 32
    torch.testing.assert_close(narrow.rows @ narrow.basis.t(), norm(source.dense()), rtol=1e-12, atol=1e-12)


def test_a_small_spread_is_nearly_as_exact_as_the_norm_of_products_and_sums():
    # Near the one input at which this embedding is almost the same in all of its width. `dense` would not do beside it:
    # some processors' matrix products round once where others round twice.
    source = embedded(1, 64, torch.float32)
    weight, bias = source.weight, -300.0 * source.weight.squeeze(1) + 1e-2 * source.bias
    near = Embedded(torch.linspace(299.99, 300.01, 21).view(3, 7, 1), weight, bias)
    truth = Norm(64).double()(Embedded(*(one.double() for one in near)).dense())
    narrow, _ = near.normalised(Norm(64), None, last=False)
    mine, plain = narrow.rows @ narrow.basis.t(), Norm(64)(near.tokens * weight.squeeze(1) + bias)
    assert (mine - truth).abs().max() <= 4 * (plain - truth).abs().max()


def test_it_narrows_only_where_that_spares_work():
    assert embedded(1, 32).narrows() and embedded(19, 64).narrows()
    assert not embedded(1, 16).narrows() and not embedded(19, 32).narrows() and not embedded(40, 64).narrows()
    assert not embedded(1, 64, torch.bfloat16).narrows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not embedded(1, 64).narrows()


@pytest.mark.parametrize("lengths", [None, [11, 3, 20, 1]], ids=["whole", "lengths"])
@pytest.mark.parametrize(
    "options",
    [
        {"family": "mlstm", "layers": 1},
        {"family": "mlstm", "layers": 2, "norm": "rms"},
        {"family": "mlstm", "layers": 1, "norm": "none", "pooling": "mean", "conv_kernel": 0},
        {"family": "xlstm", "pattern": "ms", "pooling": "attention"},
        {"family": "mlstm", "layers": 2, "direction": "reverse"},
        {"family": "mlstm", "layers": 1, "direction": "both", "pooling": "mean"},
        {"family": "slstm", "layers": 1},
    ],
    ids=str,
)
def test_a_forecaster_is_the_same_without_the_embedding_written_out(options, lengths, monkeypatch):
    torch.manual_seed(0)
    config = ModelConfig.parse({"hidden_size": 64, "dropout": 0.0, **options}, "model")
    model = build_model(config, Shape(3, 20, 5, 1, (0,), varying=lengths is not None)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x = torch.randn(4, 20, 3, dtype=torch.float64, requires_grad=True)
    lengths = None if lengths is None else torch.tensor(lengths)
    inputs = [x, *model.parameters()]
    short = model(x, lengths)
    weight = torch.randn_like(short)
    of_short = torch.autograd.grad(short, inputs, weight)
    monkeypatch.setattr(Embedded, "narrows", lambda self: False)
    whole = model(x, lengths)
    torch.testing.assert_close(short, whole, rtol=1e-10, atol=1e-10)
    for mine, true in zip(of_short, torch.autograd.grad(whole, inputs, weight), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-8, atol=1e-10)
