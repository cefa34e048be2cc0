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
import tempfile
import threading
import warnings
import weakref
from collections import deque
from typing import Any, Callable, Iterable

from tilework import _groups, _log, _managers, _sessions
from tilework._library import Error, PATH, call
from tilework._managers import Recording, Serving
from tilework._sessions import SessionGroup

__all__ = [
    "configure",
    "enable",
    "end_of_execution",
    "evict",
    "group",
    "manage",
    "prefetch",
    "record",
    "restore",
    "serving",
    "session_options",
    "set_hosting",
    "set_limit",
    "set_spill",
    "stats",
    "trim",
]

# The first whose Python module has the environment of its C API, and that says on which stream memory is used.
OLDEST = (1, 23)
# Lets a session use the environment's allocators.
_ENTRY = "session.use_env_allocators"
# The library's number of the host.
_CPU = -1

_configured: tuple[Any, ...] | None = None
# Whether `enable()` manages sessions; None before it was called.
_enabled: bool | None = None
_devices: list[int] = []
# Managed sessions by the names of their groups, and groups whose session is gone.
_sessions_by_name: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_left: deque[SessionGroup] = deque()
# Held while a managed session is made.
_making = threading.Lock()
# Where something is being recorded.
_recorded: set[int] = set()


def configure(
    cuda: Iterable[int] | None = None,
    cpu: bool = True,
    limit: int | None = None,
    heap_size: int | None = None,
    heap_age: int | None = None,
    mapping_age: int | None = None,
) -> None:
    """Says what Tilework serves, for the rest of the process; sessions get it by `session_options()`.

    Calling it again with the same arguments does nothing.

    Args:
        cuda: the numbers of the GPUs. None: all there are, where ONNX Runtime has its CUDA provider.
        cpu: whether the host's memory is served.
        limit: the most physical memory that each device's manager may hold, bytes.
        heap_size: physical memory that is created at once when a manager grows, bytes.
        heap_age: executions after which physical memory that none of them used is given back; None: 5. Under
            `enable()` a run of any session is one.
        mapping_age: executions that had to map memory after which a mapping that none of them used is undone; None: 5.

    Raises:
        RuntimeError: ONNX Runtime is missing or too old, or was given other memory already.
        ValueError: a GPU that is not there for it; a number below 1, or too large.
    """
    global _configured
    ort = _onnxruntime()
    devices = _gpus(ort) if cuda is None else _checked(ort, cuda)
    if not devices and not cpu:
        raise RuntimeError("nothing is to be served: there is no GPU that ONNX Runtime uses, and cpu=False")
    settings = (limit, heap_size, heap_age, mapping_age)
    arguments = (devices, cpu, *settings)
    if _configured is not None:
        if _configured == arguments:
            return
        raise RuntimeError("tilework.onnxruntime has served with other arguments already")

    options = _managers.options(*settings)
    # Without any, GPUs are as tilework.torch has them.
    given = None if settings == (None,) * len(settings) else ctypes.byref(options)
    call("tilework_ort_configure", given, cpu, (ctypes.c_int * len(devices))(*devices), len(devices))
    _log.start()
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
    heap_age: int | None = None,
    mapping_age: int | None = None,
    manage: bool = False,
) -> None:
    """Lets every `onnxruntime.InferenceSession` made from now on allocate from Tilework.

    The arguments are those of `configure()`. `end_of_execution()` is told before each run, and what ONNX
    Runtime raises for a lack of memory has Tilework's figures in it. Sessions made before stay as they are.
    A session that captures CUDA graphs keeps its own memory, with a warning.

    Args:
        manage: whether each session's weights are a group, as `manage()` makes them: there while it runs, and leaving
            when memory lacks under the limit. `group(session)` is the group. The program must not call `run_async`, and its
            models have no operators that `manage()` takes `constant=False` for.

    Raises:
        RuntimeError, ValueError: as `configure()`.
    """
    global _enabled
    configure(cuda, cpu, limit, heap_size, heap_age, mapping_age)
    if _enabled is None:
        _wrap(_onnxruntime().InferenceSession, manage)
        _enabled = manage
    elif _enabled != manage:
        raise RuntimeError(f"tilework.onnxruntime.enable() was called before with manage={_enabled}")


def _wrap(session: Any, manages: bool) -> None:
    make = session.__init__
    signature = inspect.signature(make)
    # Whatever ONNX Runtime calls it.
    model = list(signature.parameters)[1]
    # Sessions from before have no part in it.
    mark = "_tilework_serves"

    @functools.wraps(make)
    def init(self: Any, *arguments: Any, **named: Any) -> None:
        bound = signature.bind(self, *arguments, **named)
        given = bound.arguments
        if _captures(given):
            warnings.warn(
                "a session with enable_cuda_graph keeps ONNX Runtime's own memory: a captured graph uses its "
                "memory after it was freed",
                stacklevel=2,
            )
            make(self, *arguments, **named)
            return

        def made(file: Any, options: Any) -> Any:
            given.update({model: file, "sess_options": options})
            _explained(make)(*bound.args, **bound.kwargs)
            setattr(self, mark, True)
            return self

        options = given.get("sess_options")
        providers = (given.get("providers"), given.get("provider_options"))
        # Of what Tilework does not serve, the program has what it had.
        served = _asked(*providers) in _devices
        if manages and served and not isinstance(self, _sessions.kind()):
            further = given.get("kwargs", {})
            with _making:
                _managed(given[model], options, *providers, None, True, further, made)
        else:
            made(given[model], session_options(options))

    def before(run: Callable[..., Any]) -> Callable[..., Any]:
        explained = _explained(run)

        @functools.wraps(run)
        def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
            if not getattr(self, mark, False):
                return run(self, *arguments, **named)
            # The outputs of the run before have been dropped by now, mostly.
            end_of_execution()
            with _sessions.resident(self, run.__name__):
                return explained(self, *arguments, **named)

        return wrapped

    session.__init__ = init
    for name in (*_sessions.RUNS, "run_async"):
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


def manage(
    model: Any,
    sess_options: Any = None,
    providers: Any = None,
    provider_options: Any = None,
    name: str | None = None,
    constant: bool = True,
    **named: Any,
) -> Any:
    """Makes an `onnxruntime.InferenceSession` whose weights are on the device while it runs, and leave when memory lacks.

    What is requested while it is made, its weights, is a group. Each run brings them back if they are gone, which may
    send those of other managed sessions away under the limit, and keeps them until it returns. What runs allocate, and
    their outputs, belong to no group and stay, and so does what is requested of a GPU in less than 64 KiB: kernels may
    write to it.

    The first time they leave, the weights are copied to the host. The copy is kept as long as the session lives, so that
    later they leave without one; it takes as much memory of the host.

    Runs with `disable_synchronize_execution_providers` are not for it, since they end before their work does.

    Calls `configure()` if nobody has. On the CPU the model is first written to a temporary folder in ONNX Runtime's own
    format, if its version demands it: otherwise the weights would stay with ONNX Runtime.

    Args:
        model, sess_options, providers, provider_options, and further ones: as for InferenceSession. `sess_options` are
            changed as by `session_options()`.
        name: the group's name; None: the file's, with a number.
        constant: runs do not write to what was requested while the session was made. False for operators of the
            program's own that request 64 KiB and more then and write to it in runs (on the CPU any size): each
            eviction copies, and no copy is kept while the weights are there.

    Raises:
        ValueError: there is a managed session of this name, or the session is to capture CUDA graphs.
        RuntimeError: as `configure()`, and what ONNX Runtime raises for a model or for a lack of memory.
    """
    if _captures({"providers": providers, "provider_options": provider_options}):
        raise ValueError(
            "a session with enable_cuda_graph cannot be managed: a captured graph uses its memory at any time"
        )
    if _configured is None:
        configure()

    def made(file: Any, options: Any) -> Any:
        return _explained(_sessions.kind())(file, options, providers, provider_options, **named)

    with _making:
        return _managed(model, sess_options, providers, provider_options, name, constant, named, made)


def _managed(
    model: Any,
    sess_options: Any,
    providers: Any,
    provider_options: Any,
    name: str | None,
    constant: bool,
    named: dict[str, Any],
    made: Callable[[Any, Any], Any],
) -> Any:
    """The session that `made` makes of a model and options, its weights a group. One at a time."""
    ort = _onnxruntime()
    _groups.remove_left(_left)
    if name is None:
        stem = "session" if isinstance(model, bytes) else os.path.basename(os.fspath(model))
        taken = {*_sessions_by_name, *(left.name for left in list(_left))}
        name = next(n for n in (f"{stem}-{count}" for count in range(len(taken) + 1)) if n not in taken)
    elif name in _sessions_by_name:
        raise ValueError(f"there is a managed session {name!r} already")
    asked = _asked(providers, provider_options)
    number = _served("cpu" if asked == _CPU else asked)
    member = SessionGroup(name, number, _number_manager)
    options = ort.SessionOptions() if sess_options is None else sess_options
    with tempfile.TemporaryDirectory(prefix="tilework-") as folder:
        file, reason = _sessions.converted(model, options, folder, named) if number == _CPU else (model, None)
        # Of a session of this name that has gone, it may be away.
        member.restore()
        try:
            with member:
                session = made(file, session_options(options))
        except BaseException:
            _left.append(member)
            raise
    if reason is not None:
        warnings.warn(reason, stacklevel=3)
    session.tilework_group = member
    _sessions_by_name[name] = session
    weakref.finalize(session, _left.append, member)
    # Making it leaves memory free that only the group could use.
    _managers.trim(_number_manager(number))
    member.set_constant(constant)
    member.release()
    return session


def _asked(providers: Any, provider_options: Any) -> int:
    """The number of the device that a session's weights will be on, served or not."""
    options = list(provider_options or [])
    for at, entry in enumerate(providers or []):
        named, given = entry if isinstance(entry, (tuple, list)) else (entry, options[at] if at < len(options) else {})
        if named == _CUDA:
            return int(given.get("device_id", 0))
    return _CPU


def group(session_or_name: Any) -> SessionGroup:
    """The group of a managed session, also by its name: `evict()`, `restore()`, `prefetch()`, `release()`, `stats()`."""
    session = _sessions_by_name.get(session_or_name) if isinstance(session_or_name, str) else session_or_name
    found = getattr(session, "tilework_group", None)
    if not isinstance(found, SessionGroup):
        raise ValueError(f"{session_or_name!r} is no managed session: tilework.onnxruntime.manage() makes one")
    return found


def evict(session_or_name: Any) -> int:
    """Sends a managed session's weights to the host; returns the bytes released. The next run brings them back.

    Raises:
        RuntimeError: it is running, or the host has no room. They stay, then.
    """
    return group(session_or_name).evict()


def restore(session_or_name: Any) -> int:
    """Brings a managed session's weights back; returns the bytes copied. They stay until `evict()`.

    Raises:
        MemoryError: they do not fit beside what cannot leave.
    """
    return group(session_or_name).restore()


def prefetch(session_or_name: Any) -> None:
    """Begins to bring a managed session's weights back while the program goes on."""
    group(session_or_name).prefetch()


def set_hosting(
    pinned: int = 0, directory: str | os.PathLike[str] | None = None, device: int | str | None = None
) -> None:
    """Says where weights are kept that leave a device from now on.

    Args:
        pinned: bytes that may be kept in pinned memory, from which a GPU copies at full speed by itself: best as many as
            all managed sessions' weights have, since the copies stay.
        directory: where what exceeds that is kept, in files without a name. None: in ordinary memory.
        device: as for `stats()`.
    """
    call("tilework_set_hosting", _manager(device), pinned, None if directory is None else os.fsencode(directory))


def set_limit(limit: int | None, device: int | str | None = None) -> None:
    """Limits the physical memory that a device's manager holds, bytes; None lifts the limit.

    Raises:
        RuntimeError: weights that are not to leave hold more.
    """
    _managers.set_limit(_manager(device), limit)


def set_spill(spill: bool = True, device: int | str | None = None) -> None:
    """Lets memory be the host's, used in place, when nothing else is left within the limit; or no longer."""
    call("tilework_set_spill", _manager(device), spill)


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


_CUDA = "CUDAExecutionProvider"


def _checked(ort: Any, cuda: Iterable[int]) -> list[int]:
    """The numbers of GPUs that a user gives."""
    numbers, there = sorted(set(cuda)), _gpus(ort)
    for number in numbers:
        if number in there:
            continue
        if _CUDA not in ort.get_available_providers():
            reason = "this package has no CUDA provider, as onnxruntime-gpu has"
        else:
            reason = f"the number of GPUs is {len(there)}" if there else "no NVIDIA driver with a GPU was found"
        raise ValueError(f"there is no GPU {number} for ONNX Runtime: {reason}")
    return numbers


def _gpus(ort: Any) -> list[int]:
    """The GPUs that there are for the CUDA provider."""
    if _CUDA not in ort.get_available_providers():
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
    return _number_manager(_served(device))


def _number_manager(number: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    call("tilework_ort_manager", number, ctypes.byref(handle))
    return handle


def stats(device: int | str | None = None) -> dict[str, int]:
    """A device's figures in Tilework's words, bytes: live, held, their peaks, mapped, reserved, and counts.

    `device` is "cpu", "cuda:0" or a GPU's number; None is the first GPU that is served, else the CPU.
    """
    return _managers.stats(_manager(device))


def serving(device: int | str | None = None) -> Serving:
    """Who serves a device's memory, "tiled" or, where it cannot map tiles, "placed", and why, in one sentence.

    `device` is as for `stats()`.
    """
    return _managers.serving(_manager(device))


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
