import pytest
import torch

from xlstm_tune.errors import BackendUnavailable
from xlstm_tune.kernels import dispatch, slstm
from xlstm_tune.kernels.dispatch import KERNELS, OPS, mlstm_design, resolve
from xlstm_tune.kernels.launcher_triton import refusal


@pytest.mark.parametrize("op", OPS)
def test_resolve_auto_takes_the_fastest_that_can_run_and_says_why(op):
    choice = resolve(op)
    assert choice.backend == KERNELS[0]
    assert op in str(choice) and "float32 on 'cpu'" in choice.reason
    assert resolve(op, dtype=torch.float64).backend == "reference"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_resolve_explicit_request_is_met(op, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve(op, backend) == dispatch.Choice(op, backend, "asked for by name")


def test_numba_is_refused_where_it_cannot_run():
    with pytest.raises(BackendUnavailable, match="runs on a CPU, and the tensors are on 'cuda'"):
        resolve("slstm", "numba", "cuda")
    gates = torch.zeros(1, 2, 1, 4, 1, dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match="computes in float32, and the tensors are float64"):
        slstm(gates, torch.zeros(1, 4, 1, 1, dtype=torch.float64), backend="numba")


def test_triton_says_what_it_needs_and_how_it_runs(monkeypatch):
    assert resolve("slstm", "triton", "cuda", width=64).reason.endswith("one kernel for all steps")
    assert "in float32 two a step" in resolve("slstm", "triton", "cuda", width=128).reason
    assert "wider than 128" in resolve("lstm", "auto", "cuda", width=129).reason
    assert resolve("lstm", "auto", "cuda").backend == "triton"
    assert resolve("lstm", "auto", "cuda", projected=True).backend == "reference"
    assert resolve("lstm", "auto", "cuda", torch.float64).backend == "reference"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="it runs on a GPU, and the tensors are on 'cpu'"):
        resolve("slstm", "triton")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="the package triton is not installed"):
        resolve("slstm", "triton", "cuda")
    assert resolve("slstm", "auto", "cuda").backend == "reference"


def test_mlstm_walks_where_that_fills_a_device_and_is_parallel_over_chunks_elsewhere():
    for programs, steps, width, design in [
        (1024, 96, 32, "walk"),
        (1, 256, 64, "walk"),
        (256, 512, 64, "parallel"),
        (2048, 512, 64, "walk"),
        (2048, 16, 65, "parallel"),
        (1, 1, 512, "parallel"),
    ]:
        assert mlstm_design(programs, steps, width) == design
        assert mlstm_design(programs, steps, width, "parallel") == "parallel"
    assert mlstm_design(1, 10_000, 128, "walk") == "walk"
    with pytest.raises(ValueError, match="design must be one of auto, walk, parallel, got 'triton'"):
        mlstm_design(1, 1, 1, "triton")
    with pytest.raises(ValueError, match="design 'auto' takes heads of up to 512, and these are 513 wide"):
        mlstm_design(1, 1, 513)
    assert (
        "by chunk where fewer than 2048 heads of samples are longer than 256"
        in resolve("mlstm", device="cuda", width=64).reason
    )
    assert resolve("mlstm", device="cuda", width=512).reason.endswith("by chunk, since heads are wider than 64")
    assert resolve("mlstm", device="cuda", width=513).backend == "reference"


def test_resolve_unknown_names():
    with pytest.raises(ValueError, match="backend must be one of auto, reference, numba, triton, got 'cuda'"):
        resolve("slstm", "cuda")
    with pytest.raises(ValueError, match="op must be one of"):
        resolve("gru")


def test_a_machine_on_which_triton_cannot_start_kernels_is_told_why(monkeypatch, caplog):
    """Stands for a GPU without a C compiler: here Triton finds no driver when it is to make its launcher."""
    pytest.importorskip("triton")
    refusal.cache_clear()
    dispatch._warn_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        with pytest.raises(
            BackendUnavailable, match=r"Triton cannot start kernels .*libcuda.so, a C compiler and Python's"
        ):
            resolve("slstm", "triton", "cuda")
        chosen = [resolve(op, "auto", "cuda") for op in ("slstm", "lstm")]
        assert all(choice.backend == "reference" and "gcc and python3-dev" in choice.reason for choice in chosen)
        assert len(caplog.records) == 1
    finally:
        refusal.cache_clear()
        dispatch._warn_once.cache_clear()
