"""Weights and states of xLSTMBlockStack, of the official package xlstm 2.0.6, in and out.

Legend: B batch, E width, N heads, D head width, P inner width of mLSTM, K convolution kernel.

What differs between the two, besides names:

- sLSTM's `fgate.weight` feeds the input gate there and `igate.weight` the forget gate, each [N, D out, D in];
- its recurrent weights are [N, 4 · D out, D in] for the backend `vanilla` and [N, D in, 4 · D out] for `cuda`; its bias
  is [4, N, D] for the one and [N, 4, D] for the other, flattened, so that its shape does not show which;
- the convolution is [E, 1, K] there, [K, E] here; its state in step mode holds the last K inputs, here K - 1;
- mLSTM's two gates are layers of their own there; its steps start from m = 0 there, from -inf here, a difference of the
  order of the cell's ε, 1e-6;
- heads of width 1 are normalised there, to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from xlstm_tune.errors import SpecError
from xlstm_tune.kernels import MLSTMState, SLSTMState
from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.config import Activation, ModelConfig
from xlstm_tune.models.mlstm import MLSTMLayerState
from xlstm_tune.models.slstm import SLSTMLayerState
from xlstm_tune.models.stack import StackState, XLSTMStack

Layout = Literal["vanilla", "cuda"]

_SLSTM_GATES = ("fgate", "igate", "zgate", "ogate")
"""The official names of the weights that feed the gates i, f, z, o."""

_SAME = {
    "xlstm_norm.weight": "norm.weight",
    "xlstm.conv1d.conv.bias": "layer.conv.bias",
    "xlstm.proj_up.weight": "layer.up.weight",
    "xlstm.q_proj.weight": "layer.q.weight",
    "xlstm.k_proj.weight": "layer.k.weight",
    "xlstm.v_proj.weight": "layer.v.weight",
    "xlstm.learnable_skip": "layer.skip",
    "xlstm.proj_down.weight": "layer.down.weight",
    "ffn_norm.weight": "feed_forward_norm.weight",
    "ffn.proj_up.weight": "feed_forward.up.weight",
    "ffn.proj_down.weight": "feed_forward.down.weight",
}
"""Weights of a block that are the same but for their names: official, here."""


def load_official(
    state_dict: Mapping[str, Tensor], *, dropout: float = 0.0, activation: Activation = "gelu", backend: str = "auto"
) -> XLSTMStack:
    """The stack with the weights of an xLSTMBlockStack, in their dtype and on their device.

    Pattern, widths, heads, kernel, feed-forward and the layout of R and bias are read from the weights; `dropout` and
    the feed-forward's `activation` are not in them. Raises ValueError for weights that are no such stack's, or those of
    one that XLSTMStack cannot be, TypeError for what is no mapping.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            "load_official: state_dict must be a mapping of names to tensors, such as model.state_dict(), "
            f"got {type(state_dict).__name__}"
        )
    config = _config(state_dict, dropout, activation)
    with torch.device("meta"):
        stack = XLSTMStack(config, backend)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in state_dict.values()))
    stack = stack.to(dtype).to_empty(device=next(iter(state_dict.values())).device)
    views = _official_views(stack, _layout(state_dict))
    lacking, extra = sorted(views.keys() - state_dict.keys()), sorted(state_dict.keys() - views.keys())
    if lacking or extra:
        parts = [f"lacks {_some(lacking)}"] if lacking else []
        parts += [f"has {_some(extra)}, which XLSTMStack has no place for"] if extra else []
        raise ValueError(f"load_official: the state_dict, read as a stack '{config.pattern}', {' and '.join(parts)}")
    with torch.no_grad():
        for name, view in views.items():
            given, wanted = state_dict[name], _official_shape(name, view)
            if tuple(given.shape) != wanted:
                raise ValueError(f"load_official: {name} must be {list(wanted)}, got {list(given.shape)}")
            view.copy_(given.view(view.shape))
    return stack


def to_official(stack: XLSTMStack, layout: Layout = "vanilla") -> dict[str, Tensor]:
    """The state_dict of the xLSTMBlockStack that computes the same, for the sLSTM backend `layout`; all copies.

    Raises ValueError for a stack that the official package has no counterpart of.
    """
    if layout not in ("vanilla", "cuda"):
        raise ValueError(f"to_official: layout must be 'vanilla' or 'cuda', got {layout!r}")
    if reason := _no_counterpart(stack.config):
        raise ValueError(f"to_official: the official package has {reason}")
    with torch.no_grad():
        views = _official_views(stack, layout)
        return {name: view.clone().reshape(_official_shape(name, view)).contiguous() for name, view in views.items()}


def load_official_state(stack: XLSTMStack, state: Mapping[str, Mapping[str, Any]]) -> StackState:
    """A state of xLSTMBlockStack.step, or of its sLSTM layers' forward (K - 1 inputs), as a state of `stack`."""
    config = stack.config
    layers: list[SLSTMLayerState | MLSTMLayerState] = []
    for at, kind in enumerate(config.blocks):
        if f"block_{at}" not in state:
            raise ValueError(f"load_official_state: the state lacks block_{at}, of {len(config.blocks)} blocks")
        block = state[f"block_{at}"]
        conv = block["conv_state"]
        if isinstance(conv, tuple):
            (conv,) = conv
        if kind == "s":
            cell = block["slstm_state"]
            expect_shape(cell, f"load_official_state: block_{at} slstm_state", hcnm=4, B=None, E=stack.width)
            conv = _last_inputs(conv, config.conv_kernel, cell[0])
            layers.append(SLSTMLayerState(conv, SLSTMState(*cell.unflatten(-1, (config.heads, -1)).unbind(0))))
        else:
            c, n, m = block["mlstm_state"]
            conv = _last_inputs(conv, config.conv_kernel, n.flatten(1))
            layers.append(MLSTMLayerState(conv, MLSTMState(c, n.squeeze(-1), m.flatten(1))))
    return tuple(layers)


def to_official_state(stack: XLSTMStack, state: StackState) -> dict[str, dict[str, Any]]:
    """A state of `stack` as xLSTMBlockStack.step takes it: copies, since it writes into its convolutions' state."""
    official: dict[str, dict[str, Any]] = {}
    for at, layer in enumerate(state):
        if not isinstance(layer, SLSTMLayerState | MLSTMLayerState):
            raise ValueError("to_official_state: the official package has no stack that runs both ways")
        conv = None
        if stack.config.conv_kernel:
            batch, _, width = layer.conv.shape
            # The oldest of its K inputs leaves before it is used.
            conv = (torch.cat([layer.conv.new_zeros(batch, 1, width), layer.conv], 1),)
        if isinstance(layer, SLSTMLayerState):
            cell = torch.stack([tensor.flatten(1) for tensor in layer.cell])
            official[f"block_{at}"] = {"conv_state": conv, "slstm_state": cell}
        else:
            c, n, m = (tensor.clone() for tensor in layer.cell)
            official[f"block_{at}"] = {"conv_state": conv, "mlstm_state": (c, n[..., None], m[..., None, None])}
    return official


def _official_views(stack: XLSTMStack, layout: Layout) -> dict[str, Tensor]:
    """The stack's own parameters under their official names and axes, in the memory of the stack."""
    ours: dict[str, Tensor] = dict(stack.named_parameters())
    views: dict[str, Tensor] = {}
    for at, kind in enumerate(stack.config.blocks):
        prefix = f"blocks.{at}."
        own = {name.removeprefix(prefix): tensor for name, tensor in ours.items() if name.startswith(prefix)}
        names: dict[str, Tensor] = {theirs: own[name] for theirs, name in _SAME.items() if name in own}
        if stack.config.conv_kernel:
            names["xlstm.conv1d.conv.weight"] = own["layer.conv.weight"].t().unsqueeze(1)
        if kind == "s":
            for gate, name in enumerate(_SLSTM_GATES):
                names[f"xlstm.{name}.weight"] = own["layer.input_weight"][:, gate]
            recurrent, bias = own["layer.recurrent_weight"].flatten(1, 2), own["layer.bias"]
            names["xlstm.slstm_cell._recurrent_kernel_"] = recurrent if layout == "vanilla" else recurrent.mT
            names["xlstm.slstm_cell._bias_"] = bias.transpose(0, 1) if layout == "vanilla" else bias
            names["xlstm.group_norm.weight"] = own["layer.norm.weight"]
        else:
            for part in ("weight", "bias"):
                i, f = own[f"layer.gates.{part}"].chunk(2)
                names |= {f"xlstm.mlstm_cell.igate.{part}": i, f"xlstm.mlstm_cell.fgate.{part}": f}
            names["xlstm.mlstm_cell.outnorm.weight"] = own["layer.norm.weight"]
        views |= {prefix + name: tensor for name, tensor in names.items()}
    return views | {"post_blocks_norm.weight": ours["norm.weight"]}


def _official_shape(name: str, view: Tensor) -> tuple[int, ...]:
    return (view.numel(),) if name.endswith("._bias_") else tuple(view.shape)


def _layout(state_dict: Mapping[str, Tensor]) -> Layout:
    """Which of the two layouts the recurrent weights have; they tell by their shape, the biases go with them."""
    kernels = [tensor for name, tensor in state_dict.items() if name.endswith("._recurrent_kernel_")]
    wide = {tensor.dim() == 3 and tensor.shape[2] == 4 * tensor.shape[1] for tensor in kernels}
    if len(wide) > 1:
        raise ValueError("load_official: some recurrent weights have the layout of 'vanilla', others that of 'cuda'")
    return "cuda" if True in wide else "vanilla"


def _config(state_dict: Mapping[str, Tensor], dropout: float, activation: Activation) -> ModelConfig:
    """The configuration that the shapes of an official state_dict tell."""

    def size(name: str, axis: int = 0) -> set[int]:
        """The sizes that the blocks give to an axis of this weight."""
        found = [tensor for key, tensor in state_dict.items() if key.endswith(f".{name}")]
        return {tensor.shape[axis] for tensor in found if tensor.dim() > axis}

    def only(what: str, sizes: set[int], default: int) -> int:
        if len(sizes) > 1:
            raise ValueError(f"load_official: {what} must be the same in all blocks, got {sorted(sizes)}")
        return sizes.pop() if sizes else default

    blocks = {name.split(".")[1] for name in state_dict if name.startswith("blocks.") and name.count(".") > 2}
    pattern = "".join(
        "s" if f"blocks.{at}.xlstm.slstm_cell._recurrent_kernel_" in state_dict else "m" for at in range(len(blocks))
    )
    if not pattern or blocks != {str(at) for at in range(len(pattern))}:
        raise ValueError(
            "load_official: the state_dict must hold blocks.0 to blocks.N of an xLSTMBlockStack, "
            f"got {_some(sorted(state_dict)) if state_dict else 'nothing'}"
        )
    width = only("the width", size("xlstm_norm.weight"), 0)
    heads = only("heads", size("slstm_cell._recurrent_kernel_") | size("mlstm_cell.igate.bias"), 1)
    inner = only("the inner width of mLSTM", size("learnable_skip"), 0)
    forward = only("the width of the feed-forward", size("ffn.proj_down.weight", 1), 0)
    try:
        config = ModelConfig.parse(
            {
                "family": "xlstm",
                "pattern": pattern,
                "hidden_size": width,
                "heads": heads,
                "conv_kernel": only("the convolution's kernel", size("conv1d.conv.weight", 2), 0),
                "qkv_block": only("the blocks of q, k and v", size("q_proj.weight", 1), 4),
                "feed_forward": "gated" if forward else "none",
                "activation": activation,
                "dropout": dropout,
                **({"proj_factor": _factor("mLSTM's inner width", inner, width, 2.0)} if inner else {}),
                **({"ff_factor": _factor("the feed-forward's width", forward, width, 1.3)} if forward else {}),
            },
            "model",
        )
    except SpecError as error:
        raise ValueError(f"load_official: XLSTMStack cannot be this stack: {error}") from None
    if reason := _no_counterpart(config):
        raise ValueError(f"load_official: XLSTMStack cannot be this stack: the official package has {reason}")
    return config


def _factor(what: str, inner: int, width: int, usual: float) -> float:
    """A factor that makes this inner width of this width."""
    for factor in (usual, inner / width, (inner - 32) / width):
        if 64 * -(-width * factor // 64) == inner:
            return factor
    raise ValueError(f"load_official: {what} must be a multiple of 64 for XLSTMStack, got {inner}")


def _no_counterpart(config: ModelConfig) -> str | None:
    """Why the official package has no stack like this one; None if it has."""
    slstm, mlstm = "s" in config.blocks, "m" in config.blocks
    if config.direction != "forward":
        return f"no direction '{config.direction}'"
    if config.norm != "layer" or not config.head_norm:
        return "no stack without layer norms and head norms"
    if slstm and config.feed_forward == "plain":
        return "no feed-forward without a gate"
    if mlstm and "m" in config.feed_forward_after:
        return "no mLSTM block with a feed-forward"
    if mlstm and not config.conv_kernel:
        return "no mLSTM block without a convolution"
    if (slstm and config.heads == config.hidden_size) or (mlstm and config.heads == config.inner_size):
        return "a head norm that makes zeros of heads of width 1, which are only scaled here"
    return None


def _last_inputs(conv: Tensor | None, kernel: int, like: Tensor) -> Tensor:
    """The last K - 1 inputs of the last K, or K - 1, that an official layer holds; `like` is [B, width]."""
    if conv is None:
        return like.new_zeros(like.shape[0], 0, like.shape[1])
    return conv[:, conv.shape[1] - kernel + 1 :].clone()


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
