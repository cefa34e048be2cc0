"""What both runtimes' modules do with a manager: who it is, options, figures, trimming, traces."""

from __future__ import annotations

import ctypes
import operator
from types import TracebackType
from typing import Callable, NamedTuple

from tilework._library import FIGURES, Figures, Options, call


def number(name: str, value: int | None, most: int = (1 << 64) - 1) -> int:
    """A number that an option says, from 1 on; 0, the library's word for what is not said, for None."""
    if value is None:
        return 0
    found = operator.index(value)
    if not 1 <= found <= most:
        raise ValueError(f"{name} is to be from 1 to {most}, or None, not {value}")
    return found


def options(limit: int | None, heap_size: int | None, heap_age: int | None, mapping_age: int | None) -> Options:
    """The options that both runtimes' modules take, for the library."""
    ages = {"heap_age": heap_age, "mapping_age": mapping_age}
    return Options(
        size=ctypes.sizeof(Options),
        heap_bytes=number("heap_size", heap_size),
        limit_bytes=number("limit", limit),
        **{name: number(name, age, (1 << 32) - 1) for name, age in ages.items()},
    )


def set_limit(manager: ctypes.c_void_p, limit: int | None) -> None:
    """Limits what a manager holds, bytes; None lifts the limit."""
    call("tilework_set_limit", manager, number("limit", limit))


def stats(manager: ctypes.c_void_p) -> dict[str, int]:
    """A manager's figures, bytes and counts."""
    figures = Figures(size=ctypes.sizeof(Figures))
    call("tilework_stats", manager, ctypes.byref(figures))
    return {name: getattr(figures, name) for name in FIGURES}


class Serving(NamedTuple):
    """Who serves on a device, and why."""

    manager: str
    """"tiled", or "placed" where the device cannot map tiles or that was asked for."""
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
