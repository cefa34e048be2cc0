"""What the library logs, on Python's logger "tilework".

The library's lines wait in a queue of its own until they are taken: it never waits for Python's lock, which a thread may
have that waits for memory. A thread takes them, and waits in the library without Python's lock until one comes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import threading
import traceback
import warnings

from tilework._library import call

LOGGER = logging.getLogger("tilework")
# Whoever configures no logging sees nothing of it.
LOGGER.addHandler(logging.NullHandler())

# By the numbers of `tilework_level`.
_LEVELS = (logging.NOTSET, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
_OFF, _WARNING, _DEBUG = 0, 2, 4
# What lines are about that tell who serves.
_SERVING = b"tilework::serving"
# The longest wait for a line, milliseconds.
_WAIT = 60_000

_starting = threading.Lock()
_thread: threading.Thread | None = None
_process = 0
_ends = False


def start() -> None:
    """Passes on what is logged from now on, until the process ends."""
    global _thread, _process
    with _starting:
        # A child made by fork has no log, as its managers stay with the parent.
        if _thread is not None:
            return
        # Few things are logged, each of which takes far longer: Python's loggers choose among them at any time.
        call("tilework_set_log", _DEBUG)
        _process = os.getpid()
        _thread = threading.Thread(target=_pass_on, name="tilework-log", daemon=True)
        _thread.start()
        atexit.register(_stop)


def _stop() -> None:
    global _ends
    if _thread is None or os.getpid() != _process:
        return
    _ends = True
    with contextlib.suppress(RuntimeError):
        call("tilework_set_log", _OFF)
    # Not for ever: a handler of the program's may be stuck.
    _thread.join(timeout=5)


def _pass_on() -> None:
    level, topic, text = ctypes.c_int(), ctypes.c_char_p(), ctypes.c_char_p()
    places = ctypes.byref(level), ctypes.byref(topic), ctypes.byref(text)
    while True:
        call("tilework_take_log", _WAIT, *places)
        if text.value is not None:
            try:
                _tell(level.value, topic.value, text.value.decode(errors="replace"))
            except Exception:  # noqa: BLE001
                # A handler or a filter of the program's: the lines that follow are told all the same.
                traceback.print_exc()
        elif _ends:
            return


def _tell(level: int, topic: bytes | None, text: str) -> None:
    LOGGER.log(_LEVELS[level], "%s", text)
    if topic == _SERVING and level == _WARNING:
        # To be seen also where no logging is configured. Where warnings are errors there is nobody to raise it for.
        with contextlib.suppress(Warning):
            warnings.warn(f"tilework: {text}", RuntimeWarning, stacklevel=1)
