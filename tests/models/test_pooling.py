import pytest
import torch

from xlstm_tune.models.pooling import Pooling

STATES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([5, 1, 3])


def alone(pooling: Pooling) -> torch.Tensor:
    """Each sample without its padding."""
    return torch.cat([pooling(STATES[at : at + 1, :steps]) for at, steps in enumerate(LENGTHS.tolist())])


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("kind", ["last", "mean", "attention"])
def test_pooling_with_lengths_sees_no_padding(kind: str, halves: bool, direction: str) -> None:
    pooling = Pooling(kind, 4, 5, direction, halves)
    if pooling.score is not None:
        torch.nn.init.normal_(pooling.score)
    padded = STATES.clone()
    for at, steps in enumerate(LENGTHS.tolist()):
        padded[at, steps:] = torch.nan
    padded.requires_grad_()
    pooled = pooling(padded, LENGTHS)
    torch.testing.assert_close(pooled, alone(pooling))
    pooled.sum().backward()
    assert padded.grad is not None and torch.isfinite(padded.grad).all()
    assert pooled.shape == (3, pooling.width)


def test_last_pooling_takes_the_end_of_the_running_direction() -> None:
    assert torch.equal(Pooling("last", 4, 5)(STATES), STATES[:, -1])
    assert torch.equal(Pooling("last", 4, 5, "reverse")(STATES), STATES[:, 0])
    torch.testing.assert_close(Pooling("last", 4, 5, "both")(STATES), (STATES[:, 0] + STATES[:, -1]) / 2)
    halves = Pooling("last", 4, 5, "both", halves=True)(STATES)
    assert torch.equal(halves, torch.cat([STATES[:, -1, :2], STATES[:, 0, 2:]], 1))


def test_attention_pooling_begins_as_the_mean_and_can_look_at_one_step() -> None:
    pooling = Pooling("attention", 4, 5)
    torch.testing.assert_close(pooling(STATES), STATES.mean(1))
    states = torch.zeros(1, 5, 4)
    states[0, 2] = torch.tensor([1.0, 7.0, 8.0, 9.0])
    with torch.no_grad():
        pooling.score.copy_(torch.tensor([50.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(pooling(states), states[:, 2])


def test_flatten_pooling_keeps_every_state_and_refuses_other_steps() -> None:
    pooling = Pooling("flatten", 4, 5)
    assert pooling.width == 20 and torch.equal(pooling(STATES), STATES.reshape(3, 20))
    with pytest.raises(ValueError, match="wants 5 steps of every sample, got 4 steps"):
        pooling(STATES[:, :4])
    with pytest.raises(ValueError, match="got lengths"):
        pooling(STATES, LENGTHS)
