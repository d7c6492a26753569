import pytest
import torch

from xlstm_tune.models.baselines import TREND, _moving_average
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.decomposition import TrendSkip, moving_average
from xlstm_tune.models.forecaster import Shape, build_model


def test_moving_average_by_hand_and_as_the_dlinear_baseline_has_it() -> None:
    x = torch.tensor([[1.0, 4.0, 7.0, 1.0]]).unsqueeze(-1)
    torch.testing.assert_close(moving_average(x, 3).squeeze(), torch.tensor([2.0, 4.0, 4.0, 3.0]))
    x = torch.randn(2, 60, 3, dtype=torch.float64)
    torch.testing.assert_close(moving_average(x, TREND), torch.from_numpy(_moving_average(60)) @ x)


def test_moving_average_leaves_a_line_and_kernels_longer_than_the_window() -> None:
    line = torch.arange(20.0).view(1, 20, 1)
    torch.testing.assert_close(moving_average(line, 5)[:, 2:-2], line[:, 2:-2])
    assert moving_average(torch.randn(1, 4, 2), 25).shape == (1, 4, 2)


def test_trend_skip_adds_linear_maps_of_trend_and_remainder() -> None:
    skip = TrendSkip(12, 4, 5)
    x = torch.randn(3, 12, 2)
    assert not skip(x).any()
    for map_ in (skip.trend, skip.remainder):
        torch.nn.init.normal_(map_.weight)
    trend = moving_average(x, 5)
    expected = torch.einsum("hl,blk->bhk", skip.trend.weight, trend)
    expected += torch.einsum("hl,blk->bhk", skip.remainder.weight, x - trend)
    torch.testing.assert_close(skip(x), expected)


@pytest.mark.parametrize("channels", ["joint", "independent"])
@pytest.mark.parametrize("norm", ["none", "last", "reversible"])
def test_decomposition_alone_learns_a_line_to_its_end(norm: str, channels: str) -> None:
    """A forecast that is linear in the window: the skip finds it while the body's weights stay as they are."""
    torch.manual_seed(0)
    config = ModelConfig(
        family="lstm", hidden_size=4, layers=1, decomposition="trend", trend_kernel=3, instance_norm=norm,
        channels=channels,
    )  # fmt: skip
    model = build_model(config, Shape(3, 8, 2, 2, (2, 0)))
    assert model.trend is not None
    torch.nn.init.zeros_(model.head.weight)
    x = torch.randn(64, 8, 3)
    targets = x[..., [2, 0]]
    y = torch.stack([2 * targets[:, -1] - targets[:, -2], targets.mean(1)], 1)
    optimiser = torch.optim.LBFGS(model.trend.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert closure() < 1e-4
