"""Registers a cell's forward and backward as torch operators: autograd, vmap, torch.compile and fake tensors know them.

A backend gives plain functions over tensors in its own layout. Under `torch.func.vmap` the members of a population are
folded into one axis of every tensor (heads or batch), so that a population is a bigger problem for the same kernel.
The backward must be taken outside the vmap: sum the members' losses, call backward once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Tensors = tuple[Tensor, ...]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kernel:
    """One op on one backend. In each mapping, the name of a tensor → the axis that vmap folds members into."""

    name: str
    inputs: Mapping[str, int]
    """Differentiable inputs, in order."""
    constants: Mapping[str, int]
    """Optional inputs after those, without gradient; None where absent."""
    outputs: Mapping[str, int]
    """What the caller gets."""
    saved: Mapping[str, int]
    """What the forward pass returns beside the outputs, for the backward pass."""
    needs: Sequence[str]
    """The inputs, constants and outputs that the backward pass wants besides `saved`."""
    forward: Callable[..., Tensors]
    """(*inputs, *constants, train, *options) → (*outputs, *saved), none an alias of another or of an input. With
    train = False the saved ones may be empty along any axis but their fold axis."""
    backward: Callable[..., Tensors]
    """(*needs, *saved, *gradients of the outputs or None, *options) → the gradient of each input."""
    forward_shapes: Callable[..., Tensors]
    """As `forward`, but the tensors only need the right shape, dtype and contiguity."""
    backward_shapes: Callable[..., Tensors]
    """As `backward` likewise."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further arguments, by their type in torch's schema language, such as {"chunk": "int"}."""


def register(kernel: Kernel) -> Callable[..., Tensors]:
    """Make `kernel` an operator xlstm_tune::<name>. Returns (*inputs, *constants, **options) → outputs."""
    forward_op = _forward_op(kernel)
    backward_op = _backward_op(kernel)
    count = len(kernel.inputs)
    names = (*kernel.inputs, *kernel.constants)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | Tensors) -> None:
        ctx.set_materialize_grads(False)
        output = _tuple(output)
        known = dict(zip((*names, *kernel.outputs), (*inputs[: len(names)], *output), strict=False))
        ctx.save_for_backward(*(known[name] for name in kernel.needs), *output[len(kernel.outputs) :])
        ctx.options = inputs[len(names) + 1 :]

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = _tuple(backward_op(*ctx.saved_tensors, *gradients[: len(kernel.outputs)], *ctx.options))
        return (*found, *[None] * (len(kernel.constants) + 1 + len(kernel.options)))

    torch.library.register_autograd(forward_op, backward, setup_context=setup_context)

    def backward_twice(ctx: Any, *gradients: Tensor | None) -> None:
        raise RuntimeError(
            f"{kernel.name} has no double backward: its gradients cannot be differentiated in turn; take them without "
            "create_graph"
        )

    torch.library.register_autograd(backward_op, backward_twice)

    def call(*tensors: Tensor | None, **options: Any) -> Tensors:
        if any(_transformed(tensor) for tensor in tensors[:count] if tensor is not None):
            raise RuntimeError(
                f"{kernel.name} takes no torch.func.grad, vjp, jvp or other derivative of torch.func, nor forward-mode "
                "tangents: use backward() or torch.autograd.grad, outside any vmap"
            )
        differentiable = (tensor for tensor in tensors[:count] if tensor is not None)
        train = torch.is_grad_enabled() and any(wants_gradient(tensor) for tensor in differentiable)
        found = _tuple(forward_op(*tensors, train, *(options[name] for name in kernel.options)))
        return found[: len(kernel.outputs)]

    return call


def constant_when_compiled(function: Function) -> Function:
    """Have torch.compile call `function` once and take its answer for a constant, instead of following it.

    As torch.compiler.assume_constant_result does, which imports torch's compiler first: four seconds of every start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def members(*tensors: Tensor) -> int:
    """How many members a vmap has put into these tensors, or into some of them; 1 without a vmap."""
    return max([1, *(_unwrapped(tensor).numel() // tensor.numel() for tensor in tensors if tensor.numel())])


def wants_gradient(tensor: Tensor) -> bool:
    """Whether a tensor requires a gradient, or what a vmap has wrapped in it does."""
    return _unwrapped(tensor).requires_grad


def _transformed(tensor: Tensor) -> bool:
    """Whether a derivative of torch.func or a forward-mode tangent is being taken of a tensor.

    torch would stop at the first with a message of its own inside, and would take the second for zero.
    """
    if torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _unwrapped(tensor: Tensor) -> Tensor:
    """A tensor with its members as a vmap holds it."""
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _forward_op(kernel: Kernel) -> Any:
    tensors = [*(f"Tensor {name}" for name in kernel.inputs), *(f"Tensor? {name}" for name in kernel.constants)]
    axes = [*kernel.inputs.values(), *kernel.constants.values()]
    returned = (*kernel.outputs.values(), *kernel.saved.values())
    return _operator(kernel.name, [*tensors, "bool train"], axes, returned, kernel, backward=False)


def _backward_op(kernel: Kernel) -> Any:
    known = {**kernel.inputs, **kernel.constants, **kernel.outputs}
    needed = [f"Tensor{'?' if name in kernel.constants else ''} {name}" for name in kernel.needs]
    saved = [f"Tensor {name}" for name in kernel.saved]
    gradients = [f"Tensor? grad_{name}" for name in kernel.outputs]
    axes = [*(known[name] for name in kernel.needs), *kernel.saved.values(), *kernel.outputs.values()]
    tensors = [*needed, *saved, *gradients]
    return _operator(f"{kernel.name}_backward", tensors, axes, tuple(kernel.inputs.values()), kernel, backward=True)


def _operator(
    name: str, arguments: list[str], axes: list[int], returned: tuple[int, ...], kernel: Kernel, backward: bool
) -> Any:
    arguments = arguments + [f"{kind} {option}" for option, kind in kernel.options.items()]
    schema = f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * len(returned))})"
    compute, shapes = (kernel.backward, kernel.backward_shapes) if backward else (kernel.forward, kernel.forward_shapes)
    compute = _where_they_lie(compute)
    alone = len(returned) == 1  # torch takes a schema of one result for that result by itself
    operator = torch.library.custom_op(
        f"xlstm_tune::{name}", _first_of(compute) if alone else compute, mutates_args=(), schema=schema
    )
    operator.register_fake(_first_of(shapes) if alone else shapes)

    def fold(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
        members = info.batch_size
        places = [*axes, *[0] * (len(values) - len(axes))]  # options stand after the tensors
        folded = [
            _fold(value, dim, axis, members) if isinstance(value, Tensor) else value
            for value, dim, axis in zip(values, in_dims, places, strict=True)
        ]
        found: Any = _tuple(operator(*folded))
        spread = tuple(one.unflatten(axis, (members, -1)) for one, axis in zip(found, returned, strict=True))
        return (spread[0], returned[0]) if alone else (spread, returned)

    operator.register_vmap(fold)
    return operator


def _tuple(found: Tensor | Tensors) -> Tensors:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _where_they_lie(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """`function` with its first tensor's GPU as the current one, since Triton starts kernels there."""

    def there(*arguments: Any) -> Tensors:
        if not arguments[0].is_cuda:
            return function(*arguments)
        with torch.cuda.device(arguments[0].device):
            return function(*arguments)

    return there


def _first_of(function: Callable[..., Tensors]) -> Callable[..., Tensor]:
    def first(*arguments: Any) -> Tensor:
        return function(*arguments)[0]

    return first


def _fold(tensor: Tensor, dim: int | None, axis: int, members: int) -> Tensor:
    """The members' axis `dim` of a tensor (None: all members share it) made part of its axis `axis`."""
    if dim is None:
        spread = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], members, *tensor.shape[axis:])
    else:
        spread = tensor.movedim(dim, axis)
    return spread.flatten(axis, axis + 1).contiguous()
