"""Compiles Triton's kernels for an H100 without a GPU: one process for many requests, since to import takes seconds.

Each line of standard input is [name of a function below, *its arguments]; each answer is a line too: {"kernels": what
it gives} or {"error": ...}.
"""

import json
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import triton
from addresses import overflows
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xlstm_tune.kernels import (
    dropout_triton,
    lstm_steps_triton,
    mlstm_parallel_triton,
    mlstm_states_triton,
    mlstm_step_triton,
    mlstm_triton,
    mlstm_walk_triton,
    mlstm_within_triton,
    slstm_steps_triton,
)
from xlstm_tune.kernels.mlstm_parts_triton import PRODUCTS
from xlstm_tune.kernels.parts_triton import INTERPRETED, STEP_UNITS, launch

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def spilled(cubin):
    """Bytes of a thread that found no place in registers."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", told).group(1))


def compiled(kernel, signature, constants, options, allowed, sizes, even=()):
    """(kernel, shared memory that it takes, how much it may, bytes outside of registers, what `overflows` finds for
    sizes); signature: argument → type; even: numbers that are multiples of 16, for which Triton compiles a kernel of
    its own."""
    signature = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    places = {(at,): constants[name] for at, name in enumerate(kernel.arg_names) if name in constants}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(kernel.arg_names)
        if signature[name][0] == "*" or name in even
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    name, outside = f"{kernel.__module__}.{kernel.__name__}", spilled(made.asm["cubin"])
    return name, made.metadata.shared, allowed, outside, overflows(made.asm["ttir"], sizes)


def gated(width, dtype, few=False):
    """LSTM's and sLSTM's kernels of heads of a width; few: for few programs."""
    size = getattr(torch, dtype).itemsize
    whole = ["batch", "steps", "count", "heads", "width", "begins", "ends", "t"]
    inputs = ["gates", "recurrent", "bias", "h_out", "d_gates", "grad_h", "h", "product"]
    cut = launch(width, size, INTERPRETED, few)
    flags = dict.fromkeys(["KEEP", "WRITE", "TRAIN", "SEEN", "STABILISED"], True)
    flags |= {"PRECISION": "ieee" if size == 4 else "tf32"}
    flags |= {"BLOCK": STEP_UNITS} if cut is None else {"STAGES": cut.stages} | cut.options(width)
    options = {name: flags.pop(name) for name in ("num_warps", "num_stages") if name in flags}
    kinds = dict.fromkeys(whole, "i32") | dict.fromkeys(inputs, "*" + NAMES[getattr(torch, dtype)])
    found = []
    for module in (lstm_steps_triton, slstm_steps_triton):
        for kernel in (module.step, module.step_back) if cut is None else (module.forward, module.backward):
            signature = dict.fromkeys(kernel.arg_names, "*fp32") | kinds
            allowed = INTERPRETED if cut is None else cut.memory
            even = () if width % 16 else ("width",)
            found.append(compiled(kernel, signature, flags, options, allowed, {"width": width}, even))
    return found


def mlstm(design, dtype, width, value_width, on):
    """The kernels of a design; on: with everything that can be left out."""
    dtype = getattr(torch, dtype)
    kinds = dict.fromkeys(["steps", "heads", "chunks", "tiles", "width", "value_width"], "i32")
    kinds |= dict.fromkeys(["q", "k", "v", "h", "grad_h", "d_q", "d_k", "d_v"], "*" + NAMES[dtype])
    kinds |= dict.fromkeys(["states", "d_states"], "*" + NAMES[PRODUCTS[dtype][0]])
    kinds |= {"scale": "fp32", "maxima": "*fp64", "ends": "*i32", "total_steps": "i64"}
    flags = dict.fromkeys(["WARM", "TRAIN", "SEEN", "EXACT"], on) | {"ENDED": not on, "PRECISION": PRODUCTS[dtype][1]}
    sizes = {"width": width, "value_width": value_width, "tiles": width}
    flags |= {name: 1 for name, size in sizes.items() if size == 1}
    if design == "walk":
        cut = mlstm_triton.launch(dtype, width, value_width, 1000)
        kernels = {mlstm_walk_triton.forward: cut, mlstm_walk_triton.backward: cut}
    else:
        cuts = mlstm_parallel_triton.launches(dtype, width, value_width, 1000)
        plain = {"CHUNK": 64, "VALUE_TILE": 64, "BLOCK": mlstm_parallel_triton.CHUNKS_AT_ONCE, "num_warps": 4}
        kernels = {
            mlstm_states_triton.forward: cuts["states"],
            mlstm_states_triton.backward: cuts["states"],
            mlstm_within_triton.forward: cuts["values"],
            mlstm_within_triton.shares_back: plain,
            mlstm_within_triton.values_back: cuts["values"],
            mlstm_within_triton.keys_back: cuts["keys"],
            mlstm_within_triton.gates_back: plain,
            mlstm_step_triton._step: {"TILE": 32, "VALUE_TILE": 64, "num_warps": 4},
        }
    found = []
    for kernel, cut in kernels.items():
        options = {name: number for name, number in cut.items() if name.startswith("num_")}
        constants = {name: (flags | cut)[name] for name in kernel.arg_names if name in flags or name in cut}
        signature = dict.fromkeys(kernel.arg_names, "*fp32") | kinds
        allowed = mlstm_parallel_triton.SHARED if design == "parallel" else INTERPRETED
        even = [name for name, number in (("width", width), ("value_width", value_width)) if number % 16 == 0]
        largest = {"width": width, "value_width": value_width, "y": -(-width // 16), "z": -(-value_width // 16)}
        found.append(compiled(kernel, signature, constants, options, allowed, largest, even))
    return found


def dropout(dtype, size):
    """Dropout's kernel; size: the type of its count of numbers, constexpr where that is 1, as Triton takes those."""
    x, y, rates, seeds, count, tiles, tile = dropout_triton._drop.arg_names
    signature = {x: "*" + dtype, y: "*" + dtype, rates: "*fp64", seeds: "*i64", count: size, tiles: "i32"}
    constants = {tile: dropout_triton.TILE} | ({count: 1, tiles: 1} if size == "constexpr" else {})
    return [compiled(dropout_triton._drop, signature, constants, {"num_warps": 4}, 0, {"tiles": 2**31 - 1})]


def main():
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"kernels": {"gated": gated, "mlstm": mlstm, "dropout": dropout}[name](*arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()[-3000:]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
