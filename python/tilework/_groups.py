"""Groups of tensors that leave the GPU and come back together."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import threading
import types
from collections import deque
from typing import Any, Callable, Iterable, Iterator, Sequence

from tilework._library import GROUP_FIGURES, OUT_OF_MEMORY, RESIDENCES, Error, GroupFigures, call

# Methods of models that run them, wrapped where a module has them.
METHODS = ("forward", "encode", "decode", "generate")


class Group:
    """Tensors that go to the host and come back together: what the thread allocates in the `with` block.

    Made by `tilework.torch.group()`. It stays on the GPU until `evict()` is called, or, once `manage()` looks after
    it, until memory lacks.
    """

    def __init__(
        self,
        name: str,
        manager: Callable[[Any], ctypes.c_void_p],
        stream: Callable[[Any], int],
        devices: Callable[[], Iterable[Any]],
    ):
        self.name = name
        self.removed = False
        self._manager = manager
        self._stream = stream
        # Where it may be.
        self._devices = devices
        self._lock = threading.Lock()
        # By manager: whether the pin that the group was made with is still there.
        self._kept: dict[int, bool] = {}

    def __repr__(self) -> str:
        return f"tilework.torch.group({self.name!r})"

    def __enter__(self) -> Group:
        self._check()
        call("tilework_torch_enter_group", self.name.encode())
        return self

    def __exit__(self, *_: Any) -> None:
        call("tilework_torch_leave_group")

    def _check(self) -> None:
        if self.removed:
            raise RuntimeError(f"{self!r} was removed")

    def _member(self, device: Any) -> tuple[ctypes.c_void_p, int]:
        """A GPU's manager, and the group's number there."""
        self._check()
        manager = self._manager(device)
        number = ctypes.c_uint32()
        call("tilework_group", manager, self.name.encode(), ctypes.byref(number))
        return manager, number.value

    def _keep(self, manager: ctypes.c_void_p, number: int, keep: bool) -> bool:
        """Takes or gives back the pin that the group was made with. Returns whether it was there before."""
        with self._lock:
            key = manager.value or 0
            kept = self._kept.get(key, True)
            if kept != keep:
                call("tilework_pin" if keep else "tilework_unpin", manager, number)
                self._kept[key] = keep
            return kept

    def evict(self, device: Any = None) -> int:
        """Copies its contents to the host and gives its memory to others. Returns the bytes of GPU memory released.

        Waits for the work queued on the streams that use the group: those its tensors were allocated on or recorded
        for, those it was restored on, and the current one. Until `restore()` no kernel may use its tensors.

        Raises:
            RuntimeError: the group is in use, or the host has no room. It is on the GPU then, as it was.
        """
        return self._leave("tilework_evict", device)

    def discard(self, device: Any = None) -> int:
        """As `evict()`, without keeping the contents: they are undefined when the group is restored."""
        return self._leave("tilework_discard", device)

    def _leave(self, function: str, device: Any) -> int:
        manager, number = self._member(device)
        call("tilework_group_used_on", manager, number, self._stream(device))
        kept = self._keep(manager, number, False)
        released = ctypes.c_uint64()
        try:
            call(function, manager, number, ctypes.byref(released))
        except RuntimeError:
            if self.stats(device)["residence"] == "resident":
                self._keep(manager, number, kept)
            raise
        return released.value

    def restore(self, device: Any = None) -> int:
        """Brings it back to its addresses, with its contents; returns the bytes copied. It stays until `evict()`.

        The current stream and those of its tensors wait for the contents; the host does not, if they are kept in
        pinned memory (`set_hosting()`).

        Raises:
            torch.OutOfMemoryError: it does not fit beside what cannot be evicted. It stays on the host.
        """
        manager, number = self._member(device)
        kept = self._keep(manager, number, True)
        try:
            return self._restore(manager, number, device)
        except BaseException:
            self._keep(manager, number, kept)
            raise

    def _restore(self, manager: ctypes.c_void_p, number: int, device: Any) -> int:
        copied = ctypes.c_uint64()
        try:
            call("tilework_restore", manager, number, self._stream(device), ctypes.byref(copied))
        except Error as error:
            if error.status != OUT_OF_MEMORY:
                raise
            import torch

            raise torch.OutOfMemoryError(str(error)) from None
        return copied.value

    def prefetch(self, device: Any = None) -> None:
        """Begins to bring it back while the program goes on; to be ended by `restore()`, or by using it."""
        call("tilework_prefetch", *self._member(device))

    @contextlib.contextmanager
    def resident(self, device: Any = None) -> Iterator[Group]:
        """Sees to it that the group is on the GPU in the `with` block, and not evicted in it."""
        manager, number = self._member(device)
        call("tilework_pin", manager, number)
        try:
            self._restore(manager, number, device)
            yield self
        finally:
            try:
                # Work may have been queued on another stream than the one at the beginning.
                call("tilework_group_used_on", manager, number, self._stream(device))
            finally:
                call("tilework_unpin", manager, number)

    def set_constant(self, constant: bool = True, device: Any = None) -> None:
        """Says that its contents do not change any more once they are on the host, as weights that are only used.

        What is kept on the host then stays there while the group is on the GPU, and the next eviction copies nothing.
        A change after the first eviction is lost with the second.
        """
        call("tilework_set_constant", *self._member(device), constant)

    def release(self, device: Any = None) -> None:
        """Lets the group be evicted when memory lacks, from now on. Whoever uses it then does so in `resident()`."""
        self._keep(*self._member(device), False)

    def remove(self) -> None:
        """Ends the group, on every GPU. Its name is free then, and this object is refused. Does nothing the second time.

        Raises:
            RuntimeError: tensors of it are live, or freed and waiting for a stream, or it is in `resident()`. It stays.
        """
        if self.removed:
            return
        for device in self._devices():
            manager, number = self._member(device)
            # With this pin one of somebody else's is seen.
            kept = self._keep(manager, number, True)
            try:
                call("tilework_remove_group", manager, number)
            except BaseException:
                self._keep(manager, number, kept)
                raise
            with self._lock:
                # Made again there, it is as at first.
                self._kept.pop(manager.value or 0, None)
        self.removed = True

    def stats(self, device: Any = None) -> dict[str, Any]:
        """Its figures: residence, pins, live, held, kept, evictions, restores, bytes_out, bytes_in."""
        figures = GroupFigures(size=ctypes.sizeof(GroupFigures))
        call("tilework_group_stats", *self._member(device), ctypes.byref(figures))
        found = {name: getattr(figures, name) for name in GROUP_FIGURES}
        return {"residence": RESIDENCES[figures.residence], **found}


def remove_left(left: deque[Any]) -> None:
    """Ends groups of what is gone. Those of which something is there yet, such as an output, are left for the next time.

    Whoever collects may add to them meanwhile, on any thread.
    """
    for _ in range(len(left)):
        try:
            group = left.popleft()
        except IndexError:
            # Another thread had it.
            return
        try:
            group.remove()
        except RuntimeError:
            left.append(group)


def move(module: Any, group: Group, device: Any) -> None:
    """Gives a module's parameters and buffers memory of the group, on the GPU."""
    with group:
        # Parameters stay the objects they are, so that whoever has them sees them move.
        for tensor in (*module.parameters(), *module.buffers()):
            # Also what lies there already, but in other memory.
            tensor.data = tensor.data.to(device, copy=True)


def watch(module: Any, group: Group, device: Any, methods: Sequence[str]) -> None:
    """Makes the group resident while one of the module's methods runs."""
    found = [name for name in methods if callable(getattr(module, name, None))]
    for name in found:
        if inspect.iscoroutinefunction(getattr(module, name)):
            raise RuntimeError(f"{type(module).__name__}.{name} is a coroutine: use group.resident() in it instead")
    for name in found:
        # Not the module's, which a copy would keep alive.
        original = getattr(type(module), name)
        run = _generator(name, group, device) if inspect.isgeneratorfunction(original) else _run(name, group, device)
        # A method of the instance: a copy of the module runs with its own parameters.
        setattr(module, name, types.MethodType(functools.wraps(original)(run), module))


def _run(name: str, group: Group, device: Any) -> Callable[..., Any]:
    def run(module: Any, *arguments: Any, **options: Any) -> Any:
        with _resident(module, group, device, arguments, options):
            return getattr(type(module), name)(module, *arguments, **options)

    return run


def _generator(name: str, group: Group, device: Any) -> Callable[..., Any]:
    def run(module: Any, *arguments: Any, **options: Any) -> Any:
        with _resident(module, group, device, arguments, options):
            yield from getattr(type(module), name)(module, *arguments, **options)

    return run


def _resident(
    module: Any, group: Group, device: Any, arguments: Any, options: Any
) -> contextlib.AbstractContextManager[Any]:
    """What a call of a managed module runs in."""
    if group.removed:
        # The module is a copy of one that is gone: its parameters are elsewhere.
        return contextlib.nullcontext()
    _check(module, group, arguments, options)
    return group.resident(device)


def _check(module: Any, group: Group, arguments: Any, options: Any) -> None:
    """Refuses what would use the weights when the call is over."""
    import torch
    from torch.utils import _pytree

    if torch.is_grad_enabled():
        leaves = (*module.parameters(), *_pytree.tree_leaves((arguments, options)))
        if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves):
            raise RuntimeError(
                f"{group!r} is managed and may be evicted before a backward pass: run it under "
                "torch.no_grad(), or leave it unmanaged and call evict() and restore() yourself"
            )
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{group!r} is managed and may be evicted before the graph that is being captured is replayed: leave "
            "it unmanaged, and restore() it before each replay"
        )
