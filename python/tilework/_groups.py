"""Groups of tensors that leave the GPU and come back together."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from typing import Any, Callable, Iterator, Sequence

from tilework._library import GROUP_FIGURES, OUT_OF_MEMORY, RESIDENCES, Error, GroupFigures, call

# Methods of models that run them, wrapped where a module has them.
METHODS = ("forward", "encode", "decode", "generate")


class Group:
    """Tensors that go to the host and come back together: what the thread allocates in the `with` block.

    Made by `tilework.torch.group()`. It stays on the GPU until `evict()` is called, or, once `manage()` looks after
    it, until memory lacks.
    """

    def __init__(self, name: str, manager: Callable[[Any], ctypes.c_void_p], stream: Callable[[Any], int]):
        self.name = name
        self._manager = manager
        self._stream = stream
        self._lock = threading.Lock()
        # By manager: whether the pin that the group was made with is still there.
        self._kept: dict[int, bool] = {}

    def __repr__(self) -> str:
        return f"tilework.torch.group({self.name!r})"

    def __enter__(self) -> Group:
        call("tilework_torch_enter_group", self.name.encode())
        return self

    def __exit__(self, *_: Any) -> None:
        call("tilework_torch_leave_group")

    def _member(self, device: Any) -> tuple[ctypes.c_void_p, int]:
        """A GPU's manager, and the group's number there."""
        manager = self._manager(device)
        number = ctypes.c_uint32()
        call("tilework_group", manager, self.name.encode(), ctypes.byref(number))
        return manager, number.value

    def _keep(self, manager: ctypes.c_void_p, number: int, keep: bool) -> None:
        """Takes or gives back the pin that the group was made with."""
        with self._lock:
            key = manager.value or 0
            if self._kept.get(key, True) != keep:
                call("tilework_pin" if keep else "tilework_unpin", manager, number)
                self._kept[key] = keep

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
        self._keep(manager, number, False)
        released = ctypes.c_uint64()
        try:
            call(function, manager, number, ctypes.byref(released))
        except RuntimeError:
            if self.stats(device)["residence"] == "resident":
                self._keep(manager, number, True)
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
        self._keep(manager, number, True)
        try:
            return self._restore(manager, number, device)
        except BaseException:
            self._keep(manager, number, False)
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
            # Work may have been queued on another stream than the one at the beginning.
            call("tilework_group_used_on", manager, number, self._stream(device))
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

    def stats(self, device: Any = None) -> dict[str, Any]:
        """Its figures: residence, pins, live, held, kept, evictions, restores, bytes_out, bytes_in."""
        figures = GroupFigures(size=ctypes.sizeof(GroupFigures))
        call("tilework_group_stats", *self._member(device), ctypes.byref(figures))
        found = {name: getattr(figures, name) for name in GROUP_FIGURES}
        return {"residence": RESIDENCES[figures.residence], **found}


def move(module: Any, group: Group, device: Any) -> None:
    """Gives a module's parameters and buffers memory of the group, on the GPU."""

    def moved(tensor: Any) -> Any:
        # Also what lies there already, but in other memory.
        return tensor.detach().to(device, copy=True).requires_grad_(tensor.requires_grad)

    with group:
        # Parameters stay the objects they are, so that whoever has them sees them move.
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = moved(tensor).data


def watch(module: Any, group: Group, device: Any, methods: Sequence[str]) -> None:
    """Makes the group resident while one of the module's methods runs."""
    import torch

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def run(*arguments: Any, **options: Any) -> Any:
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in module.parameters()):
                raise RuntimeError(
                    f"{group!r} is managed and may be evicted before a backward pass: run it under "
                    "torch.no_grad(), or leave it unmanaged and call evict() and restore() yourself"
                )
            with group.resident(device):
                return original(*arguments, **options)

        return run

    for name in methods:
        if callable(getattr(module, name, None)):
            setattr(module, name, wrapped(getattr(module, name)))
