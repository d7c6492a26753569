"""Which backend runs an op: decided here, with the reason. An explicit request is met or refused, never replaced."""

from __future__ import annotations

from dataclasses import dataclass

from xlstm_tune.errors import BackendUnavailable

OPS = ("slstm", "mlstm")
BACKENDS = ("auto", "reference", "triton")


@dataclass(frozen=True)
class Choice:
    """The backend that runs an op, and why."""

    op: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.backend} ({self.reason})"


def refusal(op: str) -> str | None:
    """Why the Triton backend cannot run `op` here; None when it can."""
    return f"this version has no Triton kernel for {op}"


def resolve(op: str, requested: str = "auto") -> Choice:
    """Choose the backend of `op`.

    `auto` takes the fastest that can run here. Raises BackendUnavailable when a backend that was asked for by name
    cannot run, ValueError for a name that is none of `BACKENDS` or `OPS`.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "reference":
        return Choice(op, "reference", "asked for by name")
    reason = refusal(op)
    if requested == "triton" and reason:
        raise BackendUnavailable(f"backend 'triton' was asked for, but {reason}; use 'auto' or 'reference'")
    if reason:
        return Choice(op, "reference", reason)
    return Choice(op, "triton", "asked for by name" if requested == "triton" else "the fastest here")
