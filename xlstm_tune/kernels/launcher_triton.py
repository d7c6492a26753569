"""Whether Triton can start kernels on the GPU here: its launcher is a small C program, compiled once a machine."""

from __future__ import annotations

from functools import cache
from subprocess import CalledProcessError

from xlstm_tune.kernels.library import constant_when_compiled


@constant_when_compiled
def launcher_refusal() -> str | None:
    """Why it cannot, found by having Triton make its launcher; None when it can. Needs a GPU.

    torch.compile takes the answer for a constant: it would follow Triton as that looks for a driver, and give up.
    """
    return refusal()


@cache
def refusal() -> str | None:
    """`launcher_refusal`, looked at once."""
    try:
        from triton.runtime import driver

        driver.active.utils  # noqa: B018, makes it
    except (ImportError, RuntimeError, OSError, CalledProcessError, AssertionError) as error:  # it asserts libcuda.so
        why = str(error).partition("\n")[0]
        return (
            f"Triton cannot start kernels on this machine ({type(error).__name__}: {why}); its launcher needs the "
            "driver's libcuda.so, a C compiler and Python's headers, on Ubuntu the packages gcc and python3-dev"
        )
    return None
