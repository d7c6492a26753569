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
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xlstm_tune.kernels import mlstm_parallel_triton, mlstm_states_triton, mlstm_step_triton, mlstm_triton
from xlstm_tune.kernels import mlstm_walk_triton, mlstm_within_triton
from xlstm_tune.kernels.mlstm_parallel_triton import SHARED
from xlstm_tune.kernels.mlstm_parts_triton import PRODUCTS
from xlstm_tune.kernels.parts_triton import INTERPRETED

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
design, dtype, width, value_width = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
kinds = dict.fromkeys("steps heads chunks tiles width value_width".split(), "i32")
kinds |= dict.fromkeys("q k v h grad_h d_q d_k d_v".split(), "*" + NAMES[dtype])
kinds |= dict.fromkeys("states d_states".split(), "*" + NAMES[PRODUCTS[dtype][0]])
kinds |= dict(scale="fp32", maxima="*fp64", ends="*i32", total_steps="i64")
on = sys.argv[5] == "all"
flags = dict(WARM=on, TRAIN=on, SEEN=on, ENDED=not on, EXACT=on, PRECISION=PRODUCTS[dtype][1])
flags |= {name: 1 for name, size in dict(width=width, value_width=value_width, tiles=width).items() if size == 1}
allowed = SHARED if design == "parallel" else INTERPRETED
if design == "walk":
    launch = mlstm_triton.launch(dtype, width, value_width, 1000)
    kernels = {mlstm_walk_triton.forward: launch, mlstm_walk_triton.backward: launch}
else:
    launches = mlstm_parallel_triton.launches(dtype, width, value_width, 1000)
    plain = dict(CHUNK=64, VALUE_TILE=64, BLOCK=mlstm_parallel_triton.CHUNKS_AT_ONCE, num_warps=4)
    kernels = {
        mlstm_states_triton.forward: launches["states"],
        mlstm_states_triton.backward: launches["states"],
        mlstm_within_triton.forward: launches["values"],
        mlstm_within_triton.shares_back: plain,
        mlstm_within_triton.values_back: launches["values"],
        mlstm_within_triton.keys_back: launches["keys"],
        mlstm_within_triton.gates_back: plain,
        mlstm_step_triton._step: dict(TILE=32, VALUE_TILE=64, num_warps=4),
    }
for kernel, launch in kernels.items():
    options = {name: number for name, number in launch.items() if name.startswith("num_")}
    constants = {name: (flags | launch)[name] for name in kernel.arg_names if name in flags or name in launch}
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names
    }
    places = {(at,): constants[name] for at, name in enumerate(kernel.arg_names) if name in constants}
    aligned = {
        (at,): [["tt.divisibility", 16]] for at, name in enumerate(kernel.arg_names) if signature[name][0] == "*"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(design, kernel.__name__, made.metadata.shared, allowed)
"""


DROPOUT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xlstm_tune.kernels import dropout_triton

signature = dict.fromkeys(["x", "y"], "*" + sys.argv[1]) | dict(rates="*fp64", seeds="*i64", size=sys.argv[2])
signature |= dict(tiles="i32", TILE="constexpr")
aligned = {(at,): [["tt.divisibility", 16]] for at in range(4)}
constants = {(6,): dropout_triton.TILE}
if sys.argv[2] == "constexpr":  # as Triton takes arguments that are 1
    signature |= dict(tiles="constexpr")
    constants |= {(4,): 1, (5,): 1}
source = ASTSource(fn=dropout_triton._drop, signature=signature, constexprs=constants, attrs=aligned)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4))
print("dropout", "_drop", made.metadata.shared, 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "size"), [(32, 4), (64, 2), (128, 2), (200, 4)])
def test_kernels_compile_for_a_gpu_and_fit(width: int, size: int, tmp_path: Path) -> None:
    assert len(compiled(tmp_path, COMPILE, str(width), str(size))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "dtype", "width", "value_width", "flags"),
    [
        ("walk", "bfloat16", 64, 32, "all"),
        ("walk", "float32", 32, 32, "all"),
        ("walk", "float16", 128, 128, "all"),
        ("walk", "bfloat16", 1, 1, "none"),
        ("parallel", "bfloat16", 128, 256, "all"),
        ("parallel", "float16", 130, 64, "all"),
        ("parallel", "float32", 512, 512, "all"),
        ("parallel", "bfloat16", 1, 1, "none"),
    ],
)
def test_mlstm_compiles_for_a_gpu_and_fits(
    design: str, dtype: str, width: int, value_width: int, flags: str, tmp_path: Path
) -> None:
    lines = compiled(tmp_path, MLSTM, design, dtype, str(width), str(value_width), flags)
    assert len(lines) == (2 if design == "walk" else 8)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "size"), [("fp32", "i32"), ("bf16", "i64"), ("fp16", "constexpr")])
def test_dropout_compiles_for_a_gpu(dtype: str, size: str, tmp_path: Path) -> None:
    assert len(compiled(tmp_path, DROPOUT, dtype, size)) == 1


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
