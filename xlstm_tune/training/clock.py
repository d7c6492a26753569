"""The clock of training, for those who time trials."""

from xlstm_tune.kernels.compiling import clock, compile_seconds, nothing_compiled

__all__ = ["clock", "compile_seconds", "nothing_compiled"]
