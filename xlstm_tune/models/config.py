"""What a model is made of. Imports no torch, so that a search file is checked in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from xlstm_tune.errors import SpecError
from xlstm_tune.strict import Spec

Family = Literal["lstm", "lstm_torch", "lstm_scratch", "slstm", "mlstm", "xlstm"]
FAMILIES: tuple[Family, ...] = ("lstm", "lstm_torch", "lstm_scratch", "slstm", "mlstm", "xlstm")
Direction = Literal["forward", "reverse", "both"]

BlockNorm = Literal["layer", "rms", "none"]
Activation = Literal["gelu", "silu", "relu"]

_COMMON = ("family", "hidden_size", "dropout", "channels", "pooling", "instance_norm", "decomposition")
_LSTM = ("layers", "bias", "projection", "direction")
_XLSTM = ("heads", "conv_kernel", "direction", "norm", "head_norm")


class ModelSettings(Spec):
    """The settings of a model by themselves, some of which a search may replace; `ModelConfig` is a model."""

    family: Family = "xlstm"
    """The README says what each is."""
    pattern: Annotated[str, Field(pattern=r"^[sm]+$", max_length=64)] = "ms"
    """Blocks of an `xlstm` stack from input to output: s = sLSTM, m = mLSTM."""
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    """Layers of an LSTM, blocks of `slstm` and `mlstm`."""
    hidden_size: Annotated[int, Field(ge=1, le=16384)] = 64
    """D, the width of the residual stream (xLSTM) or of the hidden state (LSTM)."""
    heads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Of each block; they divide `hidden_size` (sLSTM) and the inner width (mLSTM)."""
    bias: bool = True
    """Bias of the LSTM gates."""
    projection: Annotated[int, Field(ge=0, le=16384)] = 0
    """Width that an LSTM's output is projected to, before it goes on and back (torch's proj_size); 0 = none."""
    forget_bias: Annotated[float, Field(ge=-20, le=20)] = 1.0
    """Added to the initial bias of the LSTM's forget gate: remember from the start (Jozefowicz et al. 2015)."""
    conv_kernel: Annotated[int, Field(ge=0, le=64)] = 4
    """Steps of the causal convolution before the gates of an xLSTM block; 0 = none."""
    direction: Direction = "forward"
    """The way through the steps: from the first, from the last, or both with weights of their own: outputs added in an
    xLSTM block, side by side in an LSTM."""
    norm: BlockNorm = "layer"
    """Norm of the residual stream of an xLSTM stack, before each layer and feed-forward and at the end."""
    head_norm: bool = True
    """Layer norm over each head's output, in every xLSTM layer."""
    qkv_block: Annotated[int, Field(ge=1, le=16384)] = 4
    """Width of the independent blocks in which an mLSTM layer projects q, k and v; must divide its inner width."""
    proj_factor: Annotated[float, Field(ge=0.25, le=8)] = 2.0
    """Inner width of an mLSTM block over `hidden_size`, rounded up to a multiple of 64."""
    feed_forward: Literal["gated", "plain", "none"] = "gated"
    """Feed-forward of an xLSTM block: down(act(gate) · up), down(act(up)), or none."""
    ff_after: Literal["s", "all"] = "s"
    """Which xLSTM blocks have the feed-forward: those of sLSTM (official), or all."""
    ff_factor: Annotated[float, Field(ge=0.25, le=8)] = 1.3
    """Width of the feed-forward over `hidden_size`, rounded up to a multiple of 64."""
    activation: Activation = "gelu"
    """Activation of the feed-forward."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the numbers set to 0 in training: between LSTM layers, at the end of an xLSTM block's parts."""
    patch_length: Annotated[int, Field(ge=0, le=4096)] = 0
    """Steps that enter the recurrent body as one (PatchTST, Nie et al. 2023); 0 and 1 = every step by itself."""
    patch_stride: Annotated[int, Field(ge=0, le=4096)] = 0
    """Steps from one patch to the next; 0 = half a patch, rounded up. The last patch repeats the last step where the
    window ends before it, so that the newest steps are always seen."""
    channels: Literal["joint", "independent"] = "joint"
    """Forecasts only. `independent`: each target is forecast by itself by one shared model, from its own history and
    the inputs that are no target."""
    instance_norm: Literal["none", "last", "reversible"] = "none"
    """Forecasts only. `last`: each window minus its last value, added back after the head (NLinear's way).
    `reversible`: each window by its own mean and deviation, undone after the head (RevIN, Kim et al. 2022). Both treat
    inputs like targets, so that of one that never changes within a window nothing is left: name it in `data.static`."""
    decomposition: Literal["none", "trend"] = "none"
    """Forecasts only. `trend`: each target's window is split into a moving average and what remains; a linear map of
    each, shared by the targets, is added to the forecast (DLinear, Zeng et al. 2023, beside the recurrent body)."""
    trend_kernel: Annotated[int, Field(ge=3, le=4095)] = 25
    """Steps of the moving average of `decomposition`; odd, so that it has a middle."""
    pooling: Literal["last", "mean", "attention", "flatten"] = "last"
    """What the head sees of the body's states: that at the end of the running direction (both ends of `both`), their
    mean, their mean by learnt weights, or all of them side by side (fixed lookbacks only)."""

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> Self:
        if self.trend_kernel % 2 == 0:
            raise ValueError(f"model.trend_kernel must be odd, got {self.trend_kernel}")
        return self

    def check_fit(self, replaced: Collection[str] = ()) -> None:
        """Raise SpecError when settings do not fit each other.

        replaced: those that no model takes from here; what hangs on one of them is left to the models themselves.
        """

        def kept(*settings: str) -> bool:
            return not any(setting in replaced for setting in settings)

        if self.patched and self.patch_stride > self.patch_length and kept("patch_length", "patch_stride"):
            raise SpecError(
                f"model.patch_stride must be at most model.patch_length, or steps between patches would never be seen, "
                f"got {self.patch_stride} and {self.patch_length}"
            )
        if not kept("family", "pattern", "hidden_size"):  # which all widths hang on
            return
        blocks = self.blocks
        if "s" in blocks and self.hidden_size % self.heads and kept("heads"):
            raise SpecError(
                f"model.heads must divide model.hidden_size in an sLSTM block, "
                f"got {self.heads} heads and hidden_size {self.hidden_size}"
            )
        if "m" in blocks and self.inner_size % self.heads and kept("proj_factor", "heads"):
            raise SpecError(
                f"model.heads must divide the inner width of an mLSTM block ({self.inner_size} = model.hidden_size × "
                f"model.proj_factor, rounded up to 64), got {self.heads} heads"
            )
        if "m" in blocks and self.inner_size % self.qkv_block and kept("proj_factor", "qkv_block"):
            raise SpecError(
                f"model.qkv_block must divide the inner width of an mLSTM block ({self.inner_size} = "
                f"model.hidden_size × model.proj_factor, rounded up to 64), got {self.qkv_block}"
            )
        if blocks and self.hidden_size == 1 and self.norm == "layer" and kept("norm"):
            raise SpecError(
                f"model.norm: layer makes every number 0 where model.hidden_size is 1, so that {self.family} would "
                f"forecast a constant; use model.norm: rms or a larger model.hidden_size"
            )
        if not blocks and self.projection >= self.hidden_size and kept("projection"):
            raise SpecError(
                f"model.projection must be smaller than model.hidden_size ({self.hidden_size}), or 0 for none, "
                f"got {self.projection}"
            )

    @property
    def blocks(self) -> str:
        """The xLSTM blocks from input to output; empty for the LSTM families."""
        if self.family == "xlstm":
            return self.pattern
        return {"slstm": "s", "mlstm": "m"}.get(self.family, "") * self.layers

    @property
    def inner_size(self) -> int:
        """P, the inner width of an mLSTM block: `hidden_size × proj_factor` rounded up to 64."""
        return round_up_64(self.hidden_size * self.proj_factor)

    @property
    def feed_forward_size(self) -> int:
        """Inner width of a feed-forward: `hidden_size × ff_factor` rounded up to 64."""
        return round_up_64(self.hidden_size * self.ff_factor)

    @property
    def feed_forward_after(self) -> str:
        """The kinds of block that have a feed-forward: some of "s" and "m"."""
        return "" if self.feed_forward == "none" else "sm" if self.ff_after == "all" else "s"

    @property
    def patched(self) -> bool:
        """Several steps enter the body as one."""
        return self.patch_length > 1

    @property
    def stride(self) -> int:
        """Steps from one patch to the next; 1 without patches."""
        return (self.patch_stride or -(-self.patch_length // 2)) if self.patched else 1

    def tokens(self, steps: int) -> int:
        """How many steps the body runs for a window of `steps`: its patches."""
        return 1 + max(0, -(-(steps - max(self.patch_length, 1)) // self.stride))

    def check_problem(self, forecast: bool, lookback: int | None, varying: bool = False) -> None:
        """Raise SpecError when this model cannot serve a problem, with the remedy.

        lookback: L, of a regression the longest sequence; None = not known yet. varying: some sequences are shorter.
        """
        for key in ("instance_norm", "decomposition") if not forecast else ():
            if getattr(self, key) != "none":
                raise SpecError(
                    f"model.{key} is '{getattr(self, key)}', but a regression has no target among its inputs "
                    f"to apply it to; set it to 'none'"
                )
        if not forecast and self.channels == "independent":
            raise SpecError(
                "model.channels is 'independent', but a regression has no target among its inputs to split by; "
                "set it to 'joint'"
            )
        if lookback is not None and self.patched and self.patch_length > lookback:
            raise SpecError(
                f"model.patch_length must be at most the lookback of {lookback} steps, got {self.patch_length}; "
                f"use shorter patches or a longer lookback"
            )
        if varying and self.pooling == "flatten":
            raise SpecError(
                "model.pooling is 'flatten', but the sequences differ in length; use 'last', 'mean' or 'attention', or "
                "a data.lookback that every sequence fills"
            )

    def relevant(self) -> dict[str, Any]:
        """Only the keys that this family reads: two configs that agree here are the same model."""
        if not self.blocks:
            keys: tuple[str, ...] = (*_COMMON, *_LSTM)
            keys += ("forget_bias",) if self.bias else ()
            if self.layers == 1:  # dropout stands between layers
                keys = tuple(key for key in keys if key != "dropout")
        else:
            keys = (*_COMMON, *_XLSTM, "pattern" if self.family == "xlstm" else "layers")
            keys += ("proj_factor", "qkv_block") if "m" in self.blocks else ()
            keys += self._feed_forward_keys()
        keys += ("trend_kernel",) if self.decomposition == "trend" else ()
        settings = {key: getattr(self, key) for key in keys}
        return settings | ({"patch_length": self.patch_length, "patch_stride": self.stride} if self.patched else {})

    def _feed_forward_keys(self) -> tuple[str, ...]:
        if not set(self.feed_forward_after) & set(self.blocks):
            # Nothing to choose in a stack of mLSTM blocks alone: without a feed-forward it is the same by either key.
            return ("feed_forward",) if "s" in self.blocks else ()
        keys = ("feed_forward", "ff_factor", "activation")
        return (*keys, "ff_after") if "m" in self.blocks else keys


class ModelConfig(ModelSettings):
    """One model of the family. Keys that a family does not read are ignored by it (see `relevant`)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.check_fit()
        return self


def round_up_64(width: float) -> int:
    """The next multiple of 64 at or above `width`, as the official xLSTM package rounds."""
    return 64 * math.ceil(width / 64)
