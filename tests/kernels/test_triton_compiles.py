"""Triton's kernels compile for an H100 without a GPU, and take no more shared memory than their table says.

In a process of its own, since this one may have asked for the interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xlstm_tune

pytest.importorskip("triton")

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xlstm_tune.kernels import lstm_steps_triton, slstm_steps_triton
from xlstm_tune.kernels.parts_triton import INTERPRETED, STEP_UNITS, launch

WHOLE = set("batch steps count heads width begins ends t total".split())
COUNTS = {"2": "fp16", "4": "fp32"}
IN_DTYPE = {"gates", "recurrent", "bias", "h_out", "d_gates", "grad_h", "h"}
width, size = int(sys.argv[1]), sys.argv[2]
cut = launch(width, int(size), INTERPRETED)
flags = dict(KEEP=True, WRITE=True, TRAIN=True, SEEN=True, STABILISED=True, PRECISION="ieee" if size == "4" else "tf32")
flags |= dict(BLOCK=STEP_UNITS) if cut is None else dict(BLOCK=cut.samples, WIDE=cut.width)
options = dict() if cut is None else dict(num_warps=cut.warps, num_stages=cut.stages)
for module in (lstm_steps_triton, slstm_steps_triton):
    for kernel in (module.step, module.step_back) if cut is None else (module.forward, module.backward):
        signature = {
            name: "constexpr" if name in flags else "i32" if name in WHOLE
            else "*" + (COUNTS[size] if name in IN_DTYPE else "fp32")
            for name in kernel.arg_names
        }
        places = {(at,): flags[name] for at, name in enumerate(kernel.arg_names) if name in flags}
        aligned = {
            (at,): [["tt.divisibility", 16]] for at, name in enumerate(kernel.arg_names) if signature[name][0] == "*"
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        allowed = INTERPRETED if cut is None else cut.memory
        print(module.__name__, kernel.__name__, made.metadata.shared, allowed)
"""


MLSTM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xlstm_tune.kernels import mlstm_chunks_triton
from xlstm_tune.kernels.parts_triton import INTERPRETED

flags = dict(WARM=True, TRAIN=True, SEEN=True, ENDED=False, PRECISION="tf32", CHUNK=32, WIDE=128, VALUE_WIDE=128)
kinds = dict.fromkeys("steps heads chunks width value_width".split(), "i32")
kinds |= dict.fromkeys("q k v h grad_h d_q d_k d_v".split(), "*bf16")
kinds |= dict(scale="fp32", maxima="*fp64", newest="*i32") | dict.fromkeys(flags, "constexpr")
for kernel in (mlstm_chunks_triton.forward, mlstm_chunks_triton.backward):
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    places = {(at,): flags[name] for at, name in enumerate(kernel.arg_names) if name in flags}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs={})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8, num_stages=1))
    print("mlstm", kernel.__name__, made.metadata.shared, INTERPRETED)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "size"), [(32, 4), (64, 2), (128, 2), (200, 4)])
def test_kernels_compile_for_a_gpu_and_fit(width: int, size: int, tmp_path: Path) -> None:
    assert len(compiled(tmp_path, COMPILE, str(width), str(size))) == 4


@pytest.mark.slow
def test_mlstm_compiles_for_a_gpu_and_fits(tmp_path: Path) -> None:
    assert len(compiled(tmp_path, MLSTM)) == 2


def compiled(tmp_path: Path, program: str, *arguments: str) -> list[str]:
    """Lines of the program: a module, a kernel, the shared memory that it takes, and how much it may."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(xlstm_tune.__file__).parent.parent)}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    for line in lines:
        module, kernel, taken, allowed = line.split()
        assert int(taken) <= int(allowed), (module, kernel)
    return lines
