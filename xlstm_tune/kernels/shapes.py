"""Shape checks whose message says what was wanted, what came, and which axis differs."""

from __future__ import annotations

from torch import Tensor


def expect_shape(tensor: Tensor, name: str, /, **axes: int | None) -> None:
    """Raise ValueError unless `tensor` has these axes, in this order; None stands for any size.

    An axis called T (steps) must not be empty, whatever its size.
    """
    shape = tuple(tensor.shape)
    if len(shape) == len(axes):
        bad = [
            (at, axis, size)
            for at, (axis, size) in enumerate(axes.items())
            if (size is not None and shape[at] != size) or (axis == "T" and not shape[at])
        ]
        if not bad:
            return
        at, axis, size = bad[0]
        wanted = "at least 1" if size is None else str(size)
        detail = f"axis {at} ({axis}) is {shape[at]} and must be {wanted}"
    else:
        detail = f"it has {len(shape)} axes and must have {len(axes)}"
    legend = ", ".join(axis if size is None else f"{axis}={size}" for axis, size in axes.items())
    raise ValueError(f"{name} must be [{legend}], got {list(shape)}: {detail}")
