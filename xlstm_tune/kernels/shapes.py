"""Checks of what a caller passes in, whose message says what was wanted, what came, and which axis differs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple[Any, ...])


def expect_tensor(value: Any, name: str) -> None:
    """Raise TypeError for what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")


def expect_shape(tensor: Tensor, name: str, /, **axes: int | None) -> None:
    """Raise ValueError unless `tensor` has these axes, in this order; None stands for any size.

    An axis called T (steps) must not be empty, whatever its size. Raises TypeError for what is no tensor.
    """
    expect_tensor(tensor, name)
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


def expect_dtype(tensor: Tensor, name: str, wanted: torch.dtype) -> None:
    """Raise ValueError unless `tensor` has the dtype of the weights that it meets; autocast, where on, makes it so, but
    for float64."""
    cast = torch.is_autocast_enabled(tensor.device.type) and torch.float64 not in (tensor.dtype, wanted)
    if tensor.dtype != wanted and not cast:
        short = {torch.float32: "float()", torch.float64: "double()"}
        remedy = f"{name.split()[-1]}.{short.get(wanted, f'to({wanted})')}"
        raise ValueError(f"{name} must be {wanted}, as the weights are, got {tensor.dtype}; {remedy} makes it so")


def expect_floats(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError for a tensor of whole numbers, truths or complex numbers: cast to one, h would be zeros. So too
    for tensors of several devices: torch would compute with whatever lies behind an empty (meta) one.
    """
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{op}: {name} must be floating-point, such as torch.float32, got {tensor.dtype}")
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} and {first[0]} on {first[1]}; move them to one device with .to()"
            )


def as_state(given: Any, kind: type[State], op: str, name: str = "initial_state") -> State | None:
    """The state of the named tuple `kind`, from one or a plain tuple or list; None stays None. name: the argument's.

    Raises TypeError for anything else, ValueError for a wrong number of tensors.
    """
    if given is None or isinstance(given, kind):
        return given
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    wanted = f"{op}: {name} must be {kind.__name__} or a tuple of {len(names)} tensors ({', '.join(names)})"
    if not isinstance(given, tuple | list):
        raise TypeError(f"{wanted}, got {type(given).__name__}")
    if len(given) != len(names):
        raise ValueError(f"{wanted}, got {len(given)} of them")
    return kind(*given)


def of_no_samples(inputs: Iterable[Tensor | None], dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Results of these shapes, without elements, that hang on all inputs: their gradients are zeros."""
    tied = torch.stack([tensor.to(dtype).sum() for tensor in inputs if tensor is not None]).sum()
    return [tied.new_zeros(shape) * tied for shape in shapes]
