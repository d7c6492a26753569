"""The optimiser and its learning rate, from a TrainingConfig."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from xlstm_tune.training.config import TrainingConfig

MOMENTUM = 0.9
"""Of `sgd`."""


def build_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """adamw, adam or sgd (momentum 0.9) over two groups: weights, which decay, and the rest, which do not.

    adamw decays weights directly (Loshchilov & Hutter 2019); adam and sgd add the L2 gradient. The learning rate of
    the groups is set by the loop at each step from `learning_rate_at`, on a GPU as a tensor there.
    """
    decayed, spared = decay_groups(model)
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": list(spared.values()), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # Fused: one call a step for all parameters, on CPU and GPU alike; a loop over parameters costs several times more.
    # Capturable: on a GPU a step may be part of a CUDA graph; it computes the same.
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True, capturable=on_gpu)
    if config.optimiser == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, fused=True, capturable=on_gpu)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, fused=True)


def decay_groups(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """(decayed, spared) by name: biases, gains of norms and 1-d parameters are spared, whatever their shape.

    Pulling a gain or a gate's bias to zero changes what the layer can express rather than how smooth it is.
    """
    decayed: dict[str, nn.Parameter] = {}
    spared: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        of_a_norm = "norm" in type(model.get_submodule(path)).__name__.lower()
        kept = parameter.ndim < 2 or "bias" in leaf or "norm" in leaf or of_a_norm
        (spared if kept else decayed)[name] = parameter
    return decayed, spared


def learning_rate_at(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0, of `total_steps`.

    Warm-up takes `config.warmup` of all steps and ends at the full rate with its last step. Then the rate stays, or
    follows half a cosine that would reach zero one step after the last, so that no step is wasted on a rate of zero.
    Raises ValueError for a step outside the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in 0 .. total_steps - 1 = {total_steps - 1}, got {step}")
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return config.learning_rate * ((step + 1) / warmup)
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / (total_steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `largest` (0 = leave them).

    Returns the norm before clipping, a scalar left on the device: it is not finite where any gradient is not.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if largest > 0:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def clip_members(gradients: list[Tensor], largest: Tensor) -> Tensor:
    """`clip_gradients` of the members of a population, each by itself: gradients [M, ...] of their stacked parameters,
    largest [M]. Returns the members' norms before clipping, [M]."""
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    norm: Tensor = torch.linalg.vector_norm(norms, dim=0)
    # As torch clips: 1e-6 keeps a norm of zero apart.
    scale = torch.where(largest > 0, (largest / (norm + 1e-6)).clamp(max=1.0), 1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    return norm
