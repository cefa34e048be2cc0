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
import contextlib
import ctypes
import os
import threading
import warnings
import weakref
from collections import deque
from typing import Any, Iterator, Sequence

from tilework import _clock, _groups, _hooks, _log, _managers
from tilework._library import address, call, LIB, PATH
from tilework._groups import Group
from tilework._managers import Recording, Serving

__all__ = [
    "discard",
    "enable",
    "end_of_execution",
    "evict",
    "execution",
    "forget_stream",
    "group",
    "manage",
    "prefetch",
    "record",
    "restore",
    "serving",
    "set_hosting",
    "set_limit",
    "set_spill",
    "set_trap",
    "stats",
    "trim",
]

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
    manager: str = "auto",
    heap_age: int | None = None,
    mapping_age: int | None = None,
    steps: int | None = 100,
) -> None:
    """Makes Tilework PyTorch's allocator for CUDA, for the rest of the process.

    Call it before the first CUDA tensor; later it raises RuntimeError, since PyTorch does not change its
    allocator any more. Calling it again with the same arguments does nothing. Where there is no driver or no GPU a
    program that then stays on the CPU is none the worse: who asks for a CUDA tensor, or for `stats()`, is told.

    Args:
        device: whose memory. None: the GPU that PyTorch asks for. Another device of Tilework, such as
            "host", serves in place of every GPU, for tests without one.
        limit: the most physical memory each GPU's manager may hold, bytes.
        heap_size: physical memory that is created at once when a manager grows, bytes.
        record: where to write a trace of all requests, as `record()` does, until the process ends.
        manager: who serves: "auto" or "tiled", which are tiled where the GPU maps tiles, else placed; or "placed", which maps
            nothing elsewhere and has no groups.
        heap_age: executions after which physical memory that none of them used is given back; None: 5.
            `end_of_execution()` says what counts as one.
        mapping_age: executions that had to map memory after which a mapping that none of them used is undone; None: 5.
        steps: how many steps of an optimizer are an execution. None: steps are not counted.

    Raises:
        RuntimeError: PyTorch has no CUDA, has used it already, or has another allocator.
        ValueError: a number below 1, or too large.
    """
    global _enabled
    path = None if record is None else os.fspath(record)
    arguments = (device, limit, heap_size, path, manager, heap_age, mapping_age, steps)
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

    options = _managers.options(limit, heap_size, heap_age, mapping_age)
    options.device = None if device is None else device.encode()
    options.manager = manager.encode()
    counted = _managers.number("steps", steps)
    call("tilework_torch_configure", ctypes.byref(options))
    _log.start()
    plug = torch.cuda.memory.CUDAPluggableAllocator(str(PATH), "tilework_torch_alloc", "tilework_torch_free")
    for setter, function in _SETTERS.items():
        getattr(plug.allocator(), setter)(address(function))
    torch.cuda.memory.change_current_allocator(plug)
    _hooks.install(LIB.tilework_torch_patch())
    if counted:
        _clock.follow_optimizers(counted, _end_on)
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


def serving(device: Any = None) -> Serving:
    """Who serves a GPU's memory, "tiled" or, where the GPU cannot map tiles or that was asked for, "placed", and why, in one sentence."""
    return _managers.serving(_manager(device))


def trim(device: Any = None) -> int:
    """Gives everything unused back to a GPU, and returns how many bytes that was."""
    return _managers.trim(_manager(device))


def end_of_execution(device: Any = None) -> None:
    """Tells that a request, or an image, is done on a GPU; the current one if None.

    It is the clock by which memory grows old: what some executions did not use is given back, beside the program where
    it is much. It ticks here, at the end of `execution()`, and in training by itself, each time an optimizer has stepped
    `steps` times (`enable()`) since it ticked last. It does not tick by itself in inference, where PyTorch does not tell
    what belongs to one request: a call of a module, of one that `manage()` looks after too, may be any part of it.
    """
    _clock.begin()
    call("tilework_end_of_execution", _manager(device))


def _end_on(gpu: int) -> None:
    call("tilework_end_of_execution", _manager(gpu))


@contextlib.contextmanager
def execution() -> Iterator[None]:
    """A block, or what a function does, that is one execution: its end ticks as `end_of_execution()` does, on each GPU.

    Of blocks in each other only the outermost ticks. Nothing ticks while the current stream is being captured. Example::

        with tilework.torch.execution():
            image = pipe(prompt).images[0]

        @tilework.torch.execution()
        def answer(request): ...
    """
    _check()
    with _clock.execution(_end_on):
        yield


def _stream(device: Any) -> int:
    import torch

    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


_known: dict[str, Group] = {}
_naming = threading.Lock()
# Groups that `manage()` made; and of these, those whose module is gone.
_managed: weakref.WeakSet[Group] = weakref.WeakSet()
_left: deque[Group] = deque()


def group(name: str) -> Group:
    """The group of this name; what the thread allocates in its `with` block belongs to it. `Group.remove()` ends it.

    Allocations of other threads, those of a backward pass among them, do not. Example::

        with tilework.torch.group("unet"):
            unet = UNet().half().cuda()
        tilework.torch.evict("unet")
    """
    _check()
    _forget()
    with _naming:
        return _known.setdefault(name, Group(name, _manager, _stream, _hooks.in_use))


def _forget() -> None:
    """Lets names be used again of groups that were removed, and of modules that are gone."""
    _groups.remove_left(_left)
    with _naming:
        for name in [name for name, known in _known.items() if known.removed]:
            del _known[name]


def _named(group_or_name: Group | str) -> Group:
    if isinstance(group_or_name, Group):
        return group_or_name
    _forget()
    if group_or_name not in _known:
        raise KeyError(f"there is no group {group_or_name!r}: tilework.torch.group() and manage() make them")
    return _known[group_or_name]


def evict(group: Group | str, device: Any = None) -> int:
    """`Group.evict()` of a group, also by name."""
    return _named(group).evict(device)


def discard(group: Group | str, device: Any = None) -> int:
    """`Group.discard()` of a group, also by name."""
    return _named(group).discard(device)


def restore(group: Group | str, device: Any = None) -> int:
    """`Group.restore()` of a group, also by name."""
    return _named(group).restore(device)


def prefetch(group: Group | str, device: Any = None) -> None:
    """`Group.prefetch()` of a group, also by name."""
    _named(group).prefetch(device)


def manage(
    module: Any,
    name: str | None = None,
    device: Any = "cuda",
    methods: Sequence[str] = _groups.METHODS,
    constant: bool = False,
) -> Group:
    """Gives a module a group of its own that is on the GPU while the module runs, and leaves when memory lacks.

    Its parameters and buffers move to the GPU, in memory of the group; not if `group()` has made one of this name:
    then they were made in its `with` block. Each call of one of its `methods` first brings
    them back if they are gone, which may send other managed groups away under the limit, and keeps them until it
    returns. What the call allocates belongs to no group and stays. For inference: a call that would record gradients,
    or be captured in a CUDA graph, is refused. Outside of these methods nothing may touch the parameters, unless in
    `with group.resident():`, and what moves them, such as `.half()`, takes them out of the group.

    The group goes with the module: once that is collected, and nothing is live of what was in it, its name is free. Python
    collects a managed module like what refers to itself, in `gc.collect()` or before long. A group that `group()` made stays.

    Args:
        module: a torch.nn.Module.
        name: the group's name; None: the class's, with a number.
        device: which GPU.
        methods: by what the module is run; those it does not have do not matter.
        constant: its parameters and buffers do not change any more: their copy on the host is kept, and only the
            first eviction copies. See `Group.set_constant()`.

    Raises:
        ValueError: there is a managed module of this name, or something is live of one.
        RuntimeError: one of the methods is a coroutine.
    """
    _check()
    _forget()
    if name is None:
        kind = type(module).__name__
        name = next(n for n in (f"{kind}-{count}" for count in range(len(_known) + 1)) if n not in _known)
    # The same GPU in every thread, whatever is current there.
    gpu = _hooks.ordinal(device)
    is_there = name in _known
    if is_there and _known[name] in _managed:
        raise ValueError(f"there is a managed module {name!r} already, or something of one")
    member = group(name)
    try:
        if not is_there:
            _groups.move(module, member, f"cuda:{gpu}")
        member.set_constant(constant, gpu)
        _groups.watch(module, member, gpu, methods)
        member.release(gpu)
    except BaseException:
        if not is_there:
            # What moved already stays where it is, and the name is free.
            with _naming:
                _known.pop(name, None)
        raise
    if not is_there:
        _managed.add(member)
        weakref.finalize(module, _left.append, member).atexit = False
    return member


def set_hosting(pinned: int = 0, directory: str | os.PathLike[str] | None = None, device: Any = None) -> None:
    """Says where the contents of groups are kept that are evicted from now on.

    Args:
        pinned: bytes that may be kept in pinned memory, from which the GPU copies at full speed by itself. Once made
            it stays until no group is left that could fill it, or fewer are asked for here.
        directory: where what exceeds that is kept, in files without a name. None: in ordinary memory.
        device: whose groups; the current GPU if None.
    """
    where = None if directory is None else os.fsencode(directory)
    call("tilework_set_hosting", _manager(device), pinned, where)


def set_limit(limit: int | None, device: Any = None) -> None:
    """Limits the physical memory that a GPU's manager holds, bytes; None lifts the limit.

    Raises:
        RuntimeError: groups that are pinned hold more.
    """
    _managers.set_limit(_manager(device), limit)


def set_spill(spill: bool = True, device: Any = None) -> None:
    """Lets tensors lie in memory of the host when nothing else is left within the limit; or no longer.

    The GPU uses it in place, over the bus: slow, and better than running out. What is there shows as `spilled` in
    `stats()`, and is given back like other memory, when it was unused for some executions or by `trim()`.
    """
    call("tilework_set_spill", _manager(device), spill)


def set_trap(trap: bool = True, device: Any = None) -> None:
    """Finds kernels that use a group while it is away; or no longer.

    At the addresses of an evicted group there is nothing, and a kernel that uses them ends with an illegal memory access.
    With a trap that holds until `restore()`: a prefetch does nothing, where else a kernel that does not wait for the
    restore reads what is yet to come. The log says of each group that is evicted at which addresses it was.
    """
    call("tilework_set_trap", _manager(device), trap)


def forget_stream(stream: Any) -> None:
    """Tells that a stream of the program's own, a torch.cuda.ExternalStream, is about to be destroyed.

    Waits for the work queued on it. What is free of its memory serves other streams from then on, and what waited
    for it waits no longer. PyTorch's own streams live as long as the process and need no such call.
    """
    _check()
    call("tilework_forget_stream", _manager(stream.device), stream.cuda_stream)
