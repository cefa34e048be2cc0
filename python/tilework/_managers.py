"""What both runtimes' modules do with a manager: who it is, figures, trimming, traces."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Callable, NamedTuple

from tilework._library import FIGURES, Figures, call


def stats(manager: ctypes.c_void_p) -> dict[str, int]:
    """A manager's figures, bytes and counts."""
    figures = Figures(size=ctypes.sizeof(Figures))
    call("tilework_stats", manager, ctypes.byref(figures))
    return {name: getattr(figures, name) for name in FIGURES}


class Serving(NamedTuple):
    """Who serves on a device, and why."""

    manager: str
    """"tiled", or "placed" where the device cannot map tiles."""
    why: str
    """One sentence."""


def serving(manager: ctypes.c_void_p) -> Serving:
    """Who a manager is, and why."""
    kind, why = ctypes.c_char_p(), ctypes.c_char_p()
    call("tilework_serving", manager, ctypes.byref(kind), ctypes.byref(why))
    return Serving((kind.value or b"").decode(), (why.value or b"").decode())


def trim(manager: ctypes.c_void_p) -> int:
    """Gives everything unused back and returns how many bytes that was."""
    released = ctypes.c_uint64()
    call("tilework_trim", manager, ctypes.byref(released))
    return released.value


class Recording:
    """A recording under way; as a context manager it stops at the end of the block."""

    def __init__(self, stop: Callable[[], None]):
        self._stop = stop

    def stop(self) -> None:
        """Completes the trace and gives it its name."""
        self._stop()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
