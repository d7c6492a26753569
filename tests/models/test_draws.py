"""Rates and seeds of a population's members: each drops in a vmap what it drops alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from xlstm_tune.models.config import FAMILIES, ModelConfig
from xlstm_tune.models.draws import Dropout, count_draws, draw, draws, new_seed
from xlstm_tune.models.forecaster import Shape, build_model

RATES = [0.3, 0.0, 0.7]


def model_of(features: int = 3, **options: Any) -> nn.Module:
    shape = Shape(features=features, lookback=12, horizon=2, targets=1)
    config = {"hidden_size": 32, "layers": 3, "heads": 2, "pattern": "msm", "dropout": 0.5, **options}
    return build_model(ModelConfig(**config), shape).train()


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
@pytest.mark.parametrize(
    "options",
    [
        *({"family": family} for family in FAMILIES),
        {"family": "lstm", "layers": 1},
        *({"family": "xlstm", "pattern": pattern} for pattern in ("s", "m", "ms", "ssm")),
        {"family": "xlstm", "ff_after": "all"},
        {"family": "xlstm", "feed_forward": "none", "conv_kernel": 0, "head_norm": False},
        {"family": "mlstm", "layers": 1, "hidden_size": 64},
    ],
    ids=str,
)
def test_every_dropout_runs_once_a_pass(options, direction, pooling):
    for features, lengths in ((3, None), (1, None), (3, torch.tensor([12, 5, 1, 7]))):
        model = model_of(features, direction=direction, pooling=pooling, **options)
        runs: list[nn.Module] = []
        for module in model.modules():
            if isinstance(module, Dropout):
                module.register_forward_pre_hook(lambda module, _, runs=runs: runs.append(module))
        model(torch.randn(4, 12, features), lengths)
        assert len(runs) == len(set(runs)) == count_draws(model)
        assert (len(runs) > 0) == (options["family"] != "lstm_torch" and options != {"family": "lstm", "layers": 1})


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("family", ["lstm", "lstm_scratch", "slstm", "mlstm", "xlstm"])
def test_members_train_as_each_alone(family, direction):
    """The masks to the last bit; the rest as far as products of several members at once are those of one."""
    models = [model_of(family=family, direction=direction, dropout=rate) for rate in RATES]
    template = model_of(family=family, direction=direction, dropout=0.0)
    x = torch.randn(3, 5, 12, 3)
    alone, seeds = [], []
    for at, model in enumerate(models):
        torch.manual_seed(at)
        alone.append(model(x[at]))
        alone[-1].square().sum().backward()
        torch.manual_seed(at)
        seeds.append(torch.tensor([new_seed() for _ in range(count_draws(template))]))
    weights, _ = stack_module_state(models)

    def run(weights, x, rate, seeds):
        with draws(rate, seeds):
            return functional_call(template, weights, (x,))

    found = vmap(run)(weights, x, torch.tensor(RATES, dtype=torch.float64), torch.stack(seeds))
    found.square().sum().backward()
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-6)
    for name, stacked in weights.items():
        own = torch.stack([model.get_parameter(name).grad for model in models])
        assert (stacked.grad - own).abs().max() <= 1e-4 * own.abs().max().clamp(min=1e-4), name


@pytest.mark.parametrize("family", ["lstm", "slstm", "mlstm", "xlstm"])
def test_members_drop_in_a_model_what_each_drops_alone(family):
    """Every dropout's zeros, layer by layer."""
    template = model_of(family=family, dropout=0.1)
    dropped: list[torch.Tensor] = []

    def note(module, given, y):
        zeros = (y == 0) & (given[0] != 0)
        dropped.append(torch._C._functorch.get_unwrapped(zeros) if at_once else zeros)

    for module in template.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(note)
    rates, x = torch.tensor(RATES, dtype=torch.float64), torch.randn(3, 5, 12, 3)
    seeds = torch.randint(2**63 - 1, (3, count_draws(template)))

    def run(x, rate, seeds):
        with draws(rate, seeds):
            return template(x)

    at_once = True
    together = vmap(run)(x, rates, seeds)
    members, dropped = dropped, []
    at_once = False
    for at in range(3):
        dropped.clear()
        alone = run(x[at], rates[at], seeds[at])
        torch.testing.assert_close(together[at], alone, rtol=1e-4, atol=1e-6)
        assert all(one[at].equal(other) for one, other in zip(members, dropped, strict=True))
        assert any(one.any() for one in dropped) == (RATES[at] > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_members_of_a_plain_network_are_each_alone_bit_for_bit(dtype):
    template = nn.Sequential(Dropout(0.0), nn.Tanh(), Dropout(0.9)).to(dtype)
    x, rates = torch.randn(3, 40, 333).to(dtype), torch.tensor(RATES, dtype=torch.float64)
    alone, seeds = [], []
    for at, rate in enumerate(RATES):
        torch.manual_seed(at)
        alone.append(nn.Sequential(Dropout(rate), nn.Tanh(), Dropout(rate))(x[at]))
        torch.manual_seed(at)
        seeds.append(torch.tensor([new_seed(), new_seed()]))

    def run(x, rate, seeds):
        with draws(rate, seeds):
            return template(x)

    assert vmap(run)(x, rates, torch.stack(seeds)).equal(torch.stack(alone))


def test_too_few_seeds_are_refused_and_leave_nothing_behind():
    layer = Dropout(0.0)
    rate = torch.tensor(0.5, dtype=torch.float64)
    few = draws(rate, torch.tensor([3]))
    with pytest.raises(RuntimeError, match="a seed for each dropout that runs, got 1; give as many as count"), few:
        assert (layer(torch.ones(100)) == 0).any()
        layer(torch.ones(100))
    assert draw(0.0)[0] == 0.0
    with draws(rate, torch.tensor([3, 4])):
        with draws(rate, torch.tensor([5])):
            assert draw(0.1)[1] == 5
        assert [draw(0.1)[1], draw(0.1)[1]] == [3, 4]
        assert layer.eval()(torch.ones(9)).equal(torch.ones(9))  # takes no seed


def test_outside_seeds_come_from_torchs_generator_and_only_where_there_is_a_rate():
    torch.manual_seed(7)
    first = [int(torch.randint(2**63 - 1, ())) for _ in range(2)]
    torch.manual_seed(7)
    assert [draw(0.1), draw(0.0), draw(0.2)] == [(0.1, first[0]), (0.0, 0), (0.2, first[1])]


def test_the_layer_is_torchs_in_every_other_respect():
    layer, x = Dropout(0.5), torch.randn(4, 100)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert (Dropout(0.5)(x.double()) == 0).any() and (Dropout(0.5, "reference")(x) == 0).any()


@pytest.mark.parametrize("rate", [0.5, 0.0])
def test_the_layer_in_a_vmap_of_its_own(rate):
    """As torch has it: members draw differently, the same, or not at all."""
    layer, x = Dropout(rate), torch.randn(2, 2, 100)
    members = vmap(layer, randomness="different")(x)
    same = vmap(layer, randomness="same")(x)
    assert (members == 0).any() == (rate > 0)
    assert (members[0] == 0).equal(members[1] == 0) == (rate == 0)
    assert (same[0] == 0).equal(same[1] == 0)
    if rate:
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(layer)(x)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lstm", "slstm", "mlstm", "xlstm"])
def test_a_model_in_training_compiles_whole(family):
    model, x = model_of(family=family), torch.randn(4, 12, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    y = compiled(x)
    assert not compiled(x).equal(y)
    torch.manual_seed(3)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-6)
    y.sum().backward()
