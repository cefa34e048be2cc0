"""PyTorch's memory on NVIDIA GPUs, served by Tilework.

Before the first tensor on a GPU::

    import tilework.torch
    tilework.torch.enable()

From then on every CUDA tensor of the process lies in Tilework's memory, and `torch.cuda.memory_allocated()`
and its kin answer with Tilework's figures. What PyTorch lets no allocator do but its own refuses with a
sentence. `docs/pytorch.md` has the table.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import warnings
from typing import Any

from tilework import _hooks, _managers
from tilework._library import Options, address, call, LIB, PATH
from tilework._managers import Recording

__all__ = ["enable", "end_of_execution", "forget_stream", "record", "stats", "trim"]

_enabled: tuple[Any, ...] | None = None

# The setters of torch._C._CUDAPluggableAllocator; their names follow no rule.
_SETTERS = {
    "set_init_fn": "tilework_torch_init",
    "set_reset_fn": "tilework_torch_reset",
    "set_memory_fraction_fn": "tilework_torch_memory_fraction",
    "set_base_alloc_fn": "tilework_torch_base_alloc",
    "set_record_stream_fn": "tilework_torch_record_stream",
    "set_begin_allocate_to_pool": "tilework_torch_begin_allocate_to_pool",
    "set_end_allocate_to_pool_fn": "tilework_torch_end_allocate_to_pool",
    "set_release_pool": "tilework_torch_release_pool",
}


def enable(
    device: str | None = None,
    limit: int | None = None,
    heap_size: int | None = None,
    record: str | os.PathLike[str] | None = None,
    manager: str = "tiled",
) -> None:
    """Makes Tilework PyTorch's allocator for CUDA, for the rest of the process.

    Call it before the first CUDA tensor; later it raises RuntimeError, since PyTorch does not change its
    allocator any more. Calling it again with the same arguments does nothing.

    Args:
        device: whose memory. None: the GPU that PyTorch asks for. Another device of Tilework, such as
            "host", serves in place of every GPU, for tests without one.
        limit: the most physical memory each GPU's manager may hold, bytes.
        heap_size: physical memory that is created at once when a manager grows, bytes.
        record: where to write a trace of all requests, as `record()` does, until the process ends.
        manager: who serves: "tiled".

    Raises:
        RuntimeError: PyTorch has no CUDA, has used it already, or has another allocator.
    """
    global _enabled
    arguments = (device, limit, heap_size, None if record is None else os.fspath(record), manager)
    if _enabled is not None:
        if _enabled == arguments:
            return
        raise RuntimeError("tilework.torch.enable() was called before with other arguments")

    import torch

    if not hasattr(torch._C, "_cuda_customAllocator"):
        raise RuntimeError("this build of PyTorch has no CUDA: tilework.torch serves CUDA tensors only")
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "PyTorch has used CUDA already and keeps the allocator it began with: call "
            "tilework.torch.enable() before the first CUDA tensor"
        )
    if torch.cuda.get_allocator_backend() == "pluggable":
        raise RuntimeError("PyTorch has another pluggable allocator already, and takes only one")

    options = Options(
        size=ctypes.sizeof(Options),
        device=None if device is None else device.encode(),
        manager=manager.encode(),
        heap_bytes=heap_size or 0,
        limit_bytes=limit or 0,
    )
    call("tilework_torch_configure", ctypes.byref(options))
    plug = torch.cuda.memory.CUDAPluggableAllocator(str(PATH), "tilework_torch_alloc", "tilework_torch_free")
    for setter, function in _SETTERS.items():
        getattr(plug.allocator(), setter)(address(function))
    torch.cuda.memory.change_current_allocator(plug)
    _hooks.install(LIB.tilework_torch_patch())
    _enabled = arguments

    atexit.register(_at_exit)
    if record is not None:
        _start(record)


def _at_exit() -> None:
    try:
        call("tilework_torch_record_stop")
    except RuntimeError as error:
        warnings.warn(f"tilework: {error}", stacklevel=1)


def _start(path: str | os.PathLike[str]) -> None:
    call("tilework_torch_record_start", os.fsencode(path))


def record(path: str | os.PathLike[str]) -> Recording:
    """Begins to write every request and free to a trace, for `tilework replay` and `tilework compare`.

    Use it in a `with` statement, or call `stop()` on what it returns; what is still under way when the
    process ends is completed then. A second GPU's trace has ".gpu1" in its name, and so on.

    Example::

        with tilework.torch.record("step.csv.gz"):
            model(batch).sum().backward()
    """
    _check()
    _start(path)
    return Recording(lambda: call("tilework_torch_record_stop"))


def _check() -> None:
    if _enabled is None:
        raise RuntimeError("tilework.torch.enable() was not called")


def _manager(device: Any) -> ctypes.c_void_p:
    _check()
    handle = ctypes.c_void_p()
    call("tilework_torch_manager", _hooks.ordinal(device), ctypes.byref(handle))
    return handle


def stats(device: Any = None) -> dict[str, int]:
    """A GPU's figures in Tilework's words, bytes: live, held, their peaks, mapped, reserved, and counts.

    `device` is as in torch.cuda.memory_allocated(); the current GPU if None.
    """
    return _managers.stats(_manager(device))


def trim(device: Any = None) -> int:
    """Gives everything unused back to a GPU, and returns how many bytes that was."""
    return _managers.trim(_manager(device))


def end_of_execution(device: Any = None) -> None:
    """Tells that a step or a request is done: what was not used for some of them is given back."""
    call("tilework_end_of_execution", _manager(device))


def forget_stream(stream: Any) -> None:
    """Tells that a stream of the program's own, a torch.cuda.ExternalStream, is about to be destroyed.

    Waits for the work queued on it. What is free of its memory serves other streams from then on, and what waited
    for it waits no longer. PyTorch's own streams live as long as the process and need no such call.
    """
    _check()
    call("tilework_forget_stream", _manager(stream.device), stream.cuda_stream)
