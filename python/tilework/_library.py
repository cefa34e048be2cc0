"""The library, and what its functions take: the C side of `include/tilework.h`."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

OK, OUT_OF_MEMORY = 0, 2


class Error(RuntimeError):
    """What the library could not do; `status` is a `tilework_status` of `tilework.h`."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Options(ctypes.Structure):
    """`tilework_options`."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("device", ctypes.c_char_p),
        ("manager", ctypes.c_char_p),
        ("heap_bytes", ctypes.c_uint64),
        ("limit_bytes", ctypes.c_uint64),
        ("mapping_age", ctypes.c_uint32),
        ("heap_age", ctypes.c_uint32),
    ]


FIGURES = (
    "live",
    "peak_live",
    "held",
    "peak_held",
    "mapped",
    "reserved",
    "stock",
    "pending",
    "leftover",
    "blocks",
    "allocations",
    "frees",
    "ooms",
    "retries",
    "device_calls",
    "device_ns",
    "kept",
    "spilled",
    "evictions",
    "give_backs",
    "spills",
)


class Figures(ctypes.Structure):
    """`tilework_figures`."""

    _fields_ = [("size", ctypes.c_size_t)] + [(name, ctypes.c_uint64) for name in FIGURES]


GROUP_FIGURES = ("pins", "live", "held", "kept", "evictions", "restores", "bytes_out", "bytes_in")

# The names of `tilework_residence`.
RESIDENCES = ("resident", "evicted", "arriving")


class GroupFigures(ctypes.Structure):
    """`tilework_group_figures`."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("residence", ctypes.c_int),
        ("pins", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in GROUP_FIGURES[1:]),
    ]


def _path() -> Path:
    # For work on Tilework itself: a library that was just built.
    override = os.environ.get("TILEWORK_LIBRARY")
    if override:
        return Path(override).resolve()
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    return Path(__file__).resolve().parent / "_native" / f"lib_native{suffix}"


PATH = _path()
# Its functions let go of Python's lock while they run, and are never waited for under a lock of ours.
LIB = ctypes.CDLL(str(PATH))

_status = ctypes.c_int
_handle = ctypes.c_void_p
for _name, _result, _arguments in [
    ("tilework_version", ctypes.c_char_p, []),
    ("tilework_last_error", ctypes.c_char_p, []),
    ("tilework_end_of_execution", _status, [_handle]),
    ("tilework_forget_stream", _status, [_handle, ctypes.c_void_p]),
    ("tilework_trim", _status, [_handle, ctypes.POINTER(ctypes.c_uint64)]),
    ("tilework_stats", _status, [_handle, ctypes.POINTER(Figures)]),
    ("tilework_serving", _status, [_handle, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_char_p)]),
    ("tilework_set_log", _status, [ctypes.c_uint32]),
    (
        "tilework_take_log",
        _status,
        [
            ctypes.c_uint32,
            ctypes.POINTER(ctypes.c_int),
            ctypes.POINTER(ctypes.c_char_p),
            ctypes.POINTER(ctypes.c_char_p),
        ],
    ),
    ("tilework_record_start", _status, [_handle, ctypes.c_char_p]),
    ("tilework_record_stop", _status, [_handle]),
    ("tilework_group", _status, [_handle, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32)]),
    ("tilework_group_used_on", _status, [_handle, ctypes.c_uint32, ctypes.c_void_p]),
    ("tilework_evict", _status, [_handle, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint64)]),
    ("tilework_discard", _status, [_handle, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint64)]),
    (
        "tilework_restore",
        _status,
        [_handle, ctypes.c_uint32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)],
    ),
    ("tilework_set_constant", _status, [_handle, ctypes.c_uint32, ctypes.c_bool]),
    ("tilework_prefetch", _status, [_handle, ctypes.c_uint32]),
    ("tilework_pin", _status, [_handle, ctypes.c_uint32]),
    ("tilework_unpin", _status, [_handle, ctypes.c_uint32]),
    ("tilework_remove_group", _status, [_handle, ctypes.c_uint32]),
    ("tilework_group_stats", _status, [_handle, ctypes.c_uint32, ctypes.POINTER(GroupFigures)]),
    ("tilework_set_hosting", _status, [_handle, ctypes.c_uint64, ctypes.c_char_p]),
    ("tilework_set_limit", _status, [_handle, ctypes.c_uint64]),
    ("tilework_set_spill", _status, [_handle, ctypes.c_bool]),
    ("tilework_set_trap", _status, [_handle, ctypes.c_bool]),
    (
        "tilework_ort_configure",
        _status,
        [ctypes.POINTER(Options), ctypes.c_bool, ctypes.POINTER(ctypes.c_int), ctypes.c_size_t],
    ),
    ("tilework_ort_manager", _status, [ctypes.c_int, ctypes.POINTER(_handle)]),
    ("tilework_ort_refused", _status, []),
    ("tilework_ort_enter_group", _status, [ctypes.c_int, ctypes.c_char_p]),
    ("tilework_ort_leave_group", _status, [ctypes.c_int]),
    ("tilework_ort_restore", _status, [ctypes.c_int, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint64)]),
    ("tilework_torch_configure", _status, [ctypes.POINTER(Options)]),
    ("tilework_torch_manager", _status, [ctypes.c_int, ctypes.POINTER(_handle)]),
    ("tilework_torch_record_start", _status, [ctypes.c_char_p]),
    ("tilework_torch_record_stop", _status, []),
    ("tilework_torch_enter_group", _status, [ctypes.c_char_p]),
    ("tilework_torch_leave_group", _status, []),
    ("tilework_torch_throws_out_of_memory", ctypes.c_bool, []),
    ("tilework_torch_stats", _status, [ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_size_t]),
    ("tilework_torch_reset_peaks", _status, [ctypes.c_int]),
    ("tilework_torch_reset_accumulated", _status, [ctypes.c_int]),
    ("tilework_torch_fraction", _status, [ctypes.c_int, ctypes.POINTER(ctypes.c_double)]),
    ("tilework_torch_patch", ctypes.c_uint32, []),
]:
    _function = getattr(LIB, _name)
    _function.restype, _function.argtypes = _result, _arguments


def call(name: str, *arguments: Any) -> None:
    """Calls a function that returns a status, and raises what it says."""
    status = getattr(LIB, name)(*arguments)
    if status != OK:
        raise Error(status, (LIB.tilework_last_error() or b"").decode())


def address(name: str) -> int:
    """The address of a function, for those that are told where to call."""
    pointer = ctypes.cast(getattr(LIB, name), ctypes.c_void_p).value
    assert pointer is not None
    return pointer


def version() -> str:
    """The library's version."""
    text: bytes = LIB.tilework_version()
    return text.decode()
