import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.patching import cut_patches


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_cut_patches_is_naive_slicing_and_covers_every_step(steps: int, length: int, draw: st.DataObject) -> None:
    stride = draw.draw(st.integers(1, length))
    x = torch.arange(2.0 * steps * 3).view(2, steps, 3)
    patches, lengths = cut_patches(x, length, stride)
    assert lengths is None
    held = torch.cat([x, x[:, -1:].expand(-1, length + stride, -1)], 1)
    for number in range(patches.shape[1]):
        piece = held[:, number * stride : number * stride + length]
        assert torch.equal(patches[:, number].view(2, 3, length), piece.transpose(1, 2))
    covered = (patches.shape[1] - 1) * stride + length
    assert covered >= steps and (patches.shape[1] == 1 or covered - stride < steps)
    assert ModelConfig(patch_length=length, patch_stride=stride).tokens(steps) == (
        patches.shape[1] if length > 1 else steps
    )


def test_cut_patches_end_with_the_newest_step() -> None:
    x = torch.arange(10.0).view(1, 10, 1)
    patches, _ = cut_patches(x, 4, 4)
    assert patches.squeeze(0).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    patches, _ = cut_patches(x, 4, 2)
    assert patches.squeeze(0).tolist()[-1] == [6, 7, 8, 9]


def test_cut_patches_with_lengths_are_those_of_each_sample_alone() -> None:
    x = torch.randn(9, 9, 2)
    lengths = torch.arange(1, 10)
    for length, stride in [(4, 2), (4, 4), (3, 1), (1, 1), (9, 5)]:
        patches, counts = cut_patches(x, length, stride, lengths)
        assert counts is not None and counts.dtype == torch.int64
        for sample, steps in enumerate(lengths.tolist()):
            alone, _ = cut_patches(x[sample : sample + 1, :steps], length, stride)
            assert counts[sample] == alone.shape[1]
            assert torch.equal(patches[sample, : alone.shape[1]], alone[0])


@pytest.mark.parametrize(("length", "stride", "expected"), [(16, 0, 8), (5, 0, 3), (2, 0, 1), (16, 4, 4), (0, 9, 1)])
def test_stride_is_half_a_patch_unless_given(length: int, stride: int, expected: int) -> None:
    assert ModelConfig(patch_length=length, patch_stride=stride).stride == expected
