"""A CUDA device for machines that have none: its memory is the host's, its kernels are torch's for the CPU.

What it shows is what goes on around kernels: that all tensors of an operator lie on the device, that a captured step
waits for nothing and gives the eager step's numbers when it is replayed, what happens when memory runs out. It has one
stream, says nothing of speed, and its graphs keep the memory that a real capture gives back. Triton's kernels run in
the interpreter where TRITON_INTERPRET is 1; else Triton finds no driver, and `auto` takes the reference.

With `environment()` every Python process gets one as soon as it imports torch (sitecustomize.py), Ray's workers as
well. EMULATED_GPU_BYTES is how much of its memory may be taken; more is torch.OutOfMemoryError.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("emulated_gpu.cpp")
MEMORY = 8 * 2**30
"""Bytes that the device says it has."""
PROPERTIES = {"max_shared_mem": 232_448, "multiprocessor_count": 132}
"""What kernels are fitted to: an H100's."""
_made: list[ctypes.CDLL] = []


def missing() -> str | None:
    """Why it cannot be made here; None when it can."""
    return None if shutil.which("g++") else "the emulated GPU needs a C++ compiler, g++"


def environment(**more: str) -> dict[str, str]:
    """This process's environment for one with an emulated GPU. more: variables besides."""
    paths = [str(SOURCE.parent), str(SOURCE.parent.parent.parent), os.environ.get("PYTHONPATH")]
    known = os.environ | {"EMULATED_GPU": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))} | more
    known.pop("CUDA_VISIBLE_DEVICES", None)
    return known


def made() -> ctypes.CDLL:
    """The device of this process: emulated_used, _peak, _reset_peak, _limit, in bytes."""
    return _made[0]


def load() -> ctypes.CDLL:
    """The device's library. To be called before torch is loaded, which asks once for what it defines."""
    library = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    for name in ("used", "peak"):
        getattr(library, f"emulated_{name}").restype = ctypes.c_int64
    library.emulated_is_capturing.restype = ctypes.c_bool
    library.emulated_limit.argtypes = [ctypes.c_int64]
    library.emulated_capturing.argtypes = library.emulated_replaying.argtypes = [ctypes.c_bool]
    _made.append(library)
    library.emulated_limit(int(os.environ.get("EMULATED_GPU_BYTES", MEMORY)))
    return library


def build() -> Path:
    """The library, compiled where that has not been done for this torch and source."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    known = hashlib.sha256(SOURCE.read_bytes() + (torch / "version.py").read_bytes() + str(torch).encode()).hexdigest()
    path = Path(tempfile.gettempdir()) / f"xlstm_tune-emulated-gpu-{os.getuid()}-{known[:16]}.so"
    if not path.exists():
        made = path.with_suffix(f".{os.getpid()}")
        command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}", str(SOURCE)]
        command += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}", "-o", str(made)]
        subprocess.run(command, check=True, env=os.environ | {"EMULATED_GPU": ""})
        made.replace(path)  # whole, whoever else makes it
    return path


def install(library: ctypes.CDLL) -> None:
    """Have torch.cuda, and Triton's interpreter, speak of the device."""
    import torch

    cuda: dict[str, Any] = _facts(library) | _streams() | _graphs(library)
    for name, value in cuda.items():
        setattr(torch.cuda, name, value)
    if os.environ.get("TRITON_INTERPRET") == "1":
        _let_the_interpreter_reach_it()


def _facts(library: ctypes.CDLL) -> dict[str, Any]:
    """What torch.cuda tells of devices, their memory and their random numbers. Each a function of its own: torch's
    compiler has a rule for each."""
    import torch

    class Generator:
        """Of numbers that nothing draws: on a GPU all seeds come from the CPU."""

        def manual_seed(self, seed: int) -> None: ...

        def clone_state(self) -> Generator:
            return self

        def graphsafe_set_state(self, state: Generator) -> None: ...

    known = SimpleNamespace(total_memory=MEMORY, name="emulated GPU", major=9, minor=0, multi_processor_count=132)
    state = torch.zeros(16, dtype=torch.uint8)
    return {
        "_lazy_init": lambda *_, **__: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_, **__: None,
        "device": lambda device: nullcontext(),
        "synchronize": lambda *_, **__: None,
        "empty_cache": lambda *_, **__: None,
        "get_device_name": lambda *_: known.name,
        "get_device_capability": lambda *_: (known.major, known.minor),
        "get_device_properties": lambda *_: known,
        "is_bf16_supported": lambda including_emulation=True: True,
        "utilization": lambda *_: 0,
        "mem_get_info": lambda *_: (MEMORY - int(library.emulated_used()), MEMORY),
        "memory_allocated": lambda *_: int(library.emulated_used()),
        "max_memory_allocated": lambda *_: int(library.emulated_peak()),
        "memory_reserved": lambda *_: int(library.emulated_used()),
        "set_per_process_memory_fraction": lambda share, *_: library.emulated_limit(int(share * MEMORY)),
        "reset_peak_memory_stats": lambda *_: library.emulated_reset_peak(),
        "default_generators": (Generator(),),
        "get_rng_state": lambda *_: state,
        "set_rng_state": lambda *_, **__: None,
    }


def _streams() -> dict[str, Any]:
    """Streams, of which there is one, and events."""

    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def wait_stream(self, other: Stream) -> None: ...

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.at = 0.0

        def record(self, *_: Any) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, later: Event) -> float:
            return (later.at - self.at) * 1e3

        def synchronize(self) -> None: ...

    only = Stream()
    return {
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda *_: only,
        "default_stream": lambda *_: only,
    }


def _graphs(library: ctypes.CDLL) -> dict[str, Any]:
    """CUDA graphs: every operator of a capture, done again at each replay, its outputs written where they were."""
    import torch
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def memory(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    def tensors(of: Any) -> list[Tensor]:
        return [one for one in tree_leaves(of) if isinstance(one, Tensor) and one.is_cuda]

    class CUDAGraph:
        captures = replays = broken = 0
        """Of all graphs of the process."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.calls: list[tuple[Any, Any, Any, Any]] = []
            self.ended = False

        def pool(self) -> tuple[int, int]:
            if not self.ended:
                raise RuntimeError("no capture of this graph ended in order")
            return (0, 1)

        @torch.no_grad()
        def replay(self) -> None:
            assert self.ended
            CUDAGraph.replays += 1
            library.emulated_replaying(True)  # which takes no memory
            for function, arguments, options, outputs in self.calls:
                again = function(*arguments, **options)
                for output, new in zip(tensors(outputs), tensors(again), strict=True):
                    if memory(output) != memory(new):
                        output.copy_(new)
            library.emulated_replaying(False)

    class Recorder(TorchDispatchMode):
        """Notes each operator, and what it writes to that lived before, since a capture computes nothing."""

        def __init__(self, graph: CUDAGraph) -> None:
            super().__init__()
            self.graph = graph
            self.fresh: set[int] = set()
            self.before: list[tuple[Tensor, Tensor]] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for declared, given in zip(function._schema.arguments, args, strict=False):
                if declared.alias_info is not None and declared.alias_info.is_write:
                    for one in tensors(given):
                        if memory(one) not in self.fresh:
                            self.before.append((one.detach(), one.detach().clone()))
            found = function(*args, **(kwargs or {}))
            lent = {memory(one) for one in tensors((args, kwargs))}
            self.fresh.update(memory(one) for one in tensors(found) if memory(one) not in lent)
            self.graph.calls.append((function, args, kwargs or {}, found))
            return found

        @torch.no_grad()
        def undo(self) -> None:
            for tensor, value in reversed(self.before):
                tensor.copy_(value)

    @contextmanager
    def graph(made: CUDAGraph, **_: Any) -> Iterator[None]:
        recorder = Recorder(made)
        library.emulated_capturing(True)
        try:
            with recorder:
                yield
        except BaseException:
            CUDAGraph.broken += 1
            made.calls.clear()
            raise
        else:
            CUDAGraph.captures += 1
            made.ended = True
        finally:
            library.emulated_capturing(False)
            recorder.undo()

    return {
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: bool(library.emulated_is_capturing()),
    }


def _let_the_interpreter_reach_it() -> None:
    """Triton's interpreter copies what it works on to the host and back; here both are the same memory."""
    import torch
    import triton

    cpu, copy = torch.UntypedStorage.cpu, torch.UntypedStorage.copy_

    def on_host(storage: Any) -> Any:
        if storage.device.type != "cuda":
            return cpu(storage)
        if not storage.nbytes():
            return torch.UntypedStorage()
        memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
        return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()

    def copy_there(storage: Any, other: Any, non_blocking: bool = False) -> Any:
        there, here = (one if one.device.type == "cpu" else on_host(one) for one in (storage, other))
        if there.data_ptr() != here.data_ptr():
            copy(there, here, non_blocking)
        return storage

    torch.UntypedStorage.cpu, torch.UntypedStorage.copy_ = on_host, copy_there
    triton.runtime.driver.set_active(
        SimpleNamespace(utils=SimpleNamespace(get_device_properties=lambda index: PROPERTIES))
    )
