"""ONNX Runtime's memory on the CPU and on NVIDIA GPUs, served by Tilework.

Before the first session::

    import tilework.onnxruntime
    tilework.onnxruntime.enable()

From then on each `onnxruntime.InferenceSession` of the process allocates from Tilework, all sessions from one
manager for each device. `docs/onnxruntime.md` has the table of what goes through it.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import inspect
import os
import warnings
from typing import Any, Callable, Iterable

from tilework import _managers
from tilework._library import Error, Options, PATH, call
from tilework._managers import Recording

__all__ = ["configure", "enable", "end_of_execution", "record", "session_options", "stats", "trim"]

# The first whose Python module has the environment of its C API, and that says on which stream memory is used.
OLDEST = (1, 23)
# Lets a session use the environment's allocators.
_ENTRY = "session.use_env_allocators"
# The library's number of the host.
_CPU = -1

_configured: tuple[Any, ...] | None = None
_enabled = False
_devices: list[int] = []
# Where something is being recorded.
_recorded: set[int] = set()


def configure(
    cuda: Iterable[int] | None = None,
    cpu: bool = True,
    limit: int | None = None,
    heap_size: int | None = None,
) -> None:
    """Says what Tilework serves, for the rest of the process; sessions get it by `session_options()`.

    Calling it again with the same arguments does nothing.

    Args:
        cuda: the numbers of the GPUs. None: all there are, where ONNX Runtime has its CUDA provider.
        cpu: whether the host's memory is served.
        limit: the most physical memory that each device's manager may hold, bytes.
        heap_size: physical memory that is created at once when a manager grows, bytes.

    Raises:
        RuntimeError: ONNX Runtime is missing or too old, or was given other memory already.
    """
    global _configured
    ort = _onnxruntime()
    devices = _gpus(ort) if cuda is None else sorted(set(cuda))
    if not devices and not cpu:
        raise RuntimeError("nothing is to be served: there is no GPU that ONNX Runtime uses, and cpu=False")
    arguments = (devices, cpu, limit, heap_size)
    if _configured is not None:
        if _configured == arguments:
            return
        raise RuntimeError("tilework.onnxruntime has served with other arguments already")

    options = Options(size=ctypes.sizeof(Options), heap_bytes=heap_size or 0, limit_bytes=limit or 0)
    # Without any, GPUs are as tilework.torch has them.
    given = None if limit is None and heap_size is None else ctypes.byref(options)
    call("tilework_ort_configure", given, cpu, (ctypes.c_int * len(devices))(*devices), len(devices))
    _configured = arguments
    _devices[:] = devices + [_CPU] * cpu
    atexit.register(_at_exit)


def session_options(options: Any = None) -> Any:
    """Options for sessions that allocate from Tilework; `options` are changed and returned if given.

    Calls `configure()` if nobody has. Tell `end_of_execution()` before or after each run.
    """
    if _configured is None:
        configure()
    ort = _onnxruntime()
    if options is None:
        options = ort.SessionOptions()
    options.register_custom_ops_library(str(PATH))
    if not _has_entry(options):
        options.add_session_config_entry(_ENTRY, "1")
    # With it, ONNX Runtime asks for one block for a whole run, and there is nothing left to place.
    options.enable_mem_pattern = False
    return options


def _has_entry(options: Any) -> bool:
    # Setting it twice, on options that serve several sessions, would be logged as a warning.
    try:
        return bool(options.get_session_config_entry(_ENTRY) == "1")
    except RuntimeError:
        return False


def enable(
    cuda: Iterable[int] | None = None,
    cpu: bool = True,
    limit: int | None = None,
    heap_size: int | None = None,
) -> None:
    """Lets every `onnxruntime.InferenceSession` made from now on allocate from Tilework.

    The arguments are those of `configure()`. `end_of_execution()` is told before each run, and what ONNX
    Runtime raises for a lack of memory has Tilework's figures in it. Sessions made before stay as they are.
    A session that captures CUDA graphs keeps its own memory, with a warning.

    Raises:
        RuntimeError: as `configure()`.
    """
    global _enabled
    configure(cuda, cpu, limit, heap_size)
    if not _enabled:
        _wrap(_onnxruntime().InferenceSession)
        _enabled = True


def _wrap(session: Any) -> None:
    make = session.__init__
    signature = inspect.signature(make)
    # Sessions from before have no part in it.
    mark = "_tilework_serves"

    @functools.wraps(make)
    def init(self: Any, *arguments: Any, **named: Any) -> None:
        bound = signature.bind(self, *arguments, **named)
        if _captures(bound.arguments):
            warnings.warn(
                "a session with enable_cuda_graph keeps ONNX Runtime's own memory: a captured graph uses its "
                "memory after it was freed",
                stacklevel=2,
            )
            make(self, *arguments, **named)
            return
        bound.arguments["sess_options"] = session_options(bound.arguments.get("sess_options"))
        _explained(make)(*bound.args, **bound.kwargs)
        setattr(self, mark, True)

    def before(run: Callable[..., Any]) -> Callable[..., Any]:
        explained = _explained(run)

        @functools.wraps(run)
        def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
            if not getattr(self, mark, False):
                return run(self, *arguments, **named)
            # The outputs of the run before have been dropped by now, mostly.
            end_of_execution()
            return explained(self, *arguments, **named)

        return wrapped

    session.__init__ = init
    for name in ("run", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector", "run_async"):
        if hasattr(session, name):
            setattr(session, name, before(getattr(session, name)))


def _captures(arguments: dict[str, Any]) -> bool:
    """Whether a session is told to capture CUDA graphs."""
    options = list(arguments.get("provider_options") or [])
    options += [entry[1] for entry in arguments.get("providers") or [] if isinstance(entry, (tuple, list))]
    return any(str(o.get("enable_cuda_graph", "0")).lower() in ("1", "true") for o in options if o)


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds to an error what Tilework said, when it refused a request meanwhile."""

    def explained(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            try:
                call("tilework_ort_refused")
            except Error as refused:
                raise type(error)(f"{error} (Tilework: {refused})") from error
            raise

    return explained


def _onnxruntime() -> Any:
    try:
        # By name, since this module has the same.
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeError("onnxruntime is not installed: pip install onnxruntime or onnxruntime-gpu") from error
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < OLDEST:
        raise RuntimeError(
            f"onnxruntime {ort.__version__} is too old: its Python module lets nobody register an allocator. "
            f"{'.'.join(map(str, OLDEST))} or later does"
        )
    return ort


def _gpus(ort: Any) -> list[int]:
    """The GPUs that there are for the CUDA provider."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return []
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return list(range(count.value))


def _served(device: int | str | None) -> int:
    if _configured is None:
        raise RuntimeError("tilework.onnxruntime.enable() was not called")
    if device is None:
        return _devices[0]
    number = _CPU if device == "cpu" else device
    if isinstance(number, str) and number.startswith("cuda:") and number[5:].isdigit():
        number = int(number[5:])
    if number not in _devices:
        names = ", ".join("cpu" if n == _CPU else f"cuda:{n}" for n in _devices)
        raise ValueError(f"Tilework does not serve {device!r} for ONNX Runtime: it serves {names}")
    return int(number)


def _manager(device: int | str | None) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    call("tilework_ort_manager", _served(device), ctypes.byref(handle))
    return handle


def stats(device: int | str | None = None) -> dict[str, int]:
    """A device's figures in Tilework's words, bytes: live, held, their peaks, mapped, reserved, and counts.

    `device` is "cpu", "cuda:0" or a GPU's number; None is the first GPU that is served, else the CPU.
    """
    return _managers.stats(_manager(device))


def trim(device: int | str | None = None) -> int:
    """Gives everything unused back, and returns how many bytes that was. `device` is as for `stats()`."""
    return _managers.trim(_manager(device))


def end_of_execution() -> None:
    """Tells that a run is done, on every device: what was not used for some runs is given back.

    Under `enable()` it is told before each run.
    """
    _served(None)
    for device in _devices:
        call("tilework_end_of_execution", _manager(device))


def record(path: str | os.PathLike[str], device: int | str | None = None) -> Recording:
    """Begins to write every request and free of a device to a trace, for `tilework replay` and `compare`.

    Use it in a `with` statement, or call `stop()` on what it returns; what is still under way when the process
    ends is completed then. A device has one recording at a time: beginning another completes it.
    """
    number = _served(device)
    call("tilework_record_start", _manager(device), os.fsencode(path))
    _recorded.add(number)
    return Recording(lambda: _stop(number))


def _stop(device: int) -> None:
    _recorded.discard(device)
    call("tilework_record_stop", _manager(device))


def _at_exit() -> None:
    for device in list(_recorded):
        try:
            _stop(device)
        except RuntimeError as error:
            warnings.warn(f"tilework: {error}", stacklevel=1)
