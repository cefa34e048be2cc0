"""Sessions of ONNX Runtime whose weights are groups."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
from pathlib import Path
from typing import Any, Callable

from tilework._groups import Group
from tilework._library import OUT_OF_MEMORY, Error, call

# What runs a session.
RUNS = ("run", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")

# Since then, weights on the CPU come through an allocator only from ONNX Runtime's own format.
_KEPT_SINCE = (1, 24)


class SessionGroup(Group):
    """The weights of one session, which leave the device and come back together. `manage()` makes it.

    As `tilework.torch.Group`; a `device` need not be named, since a session has one.
    """

    def __init__(self, name: str, number: int, manager: Callable[[int], ctypes.c_void_p]):
        super().__init__(name, lambda _: manager(number), lambda _: 0, lambda: (None,))
        self._number = number

    def __repr__(self) -> str:
        return f"tilework.onnxruntime.group({self.name!r})"

    def __enter__(self) -> SessionGroup:
        self._check()
        call("tilework_ort_enter_group", self._number, self.name.encode())
        return self

    def __exit__(self, *_: Any) -> None:
        call("tilework_ort_leave_group", self._number)

    def _restore(self, manager: ctypes.c_void_p, number: int, device: Any) -> int:
        copied = ctypes.c_uint64()
        try:
            # The stream of a run is ONNX Runtime's own, so the host waits.
            call("tilework_ort_restore", self._number, number, ctypes.byref(copied))
        except Error as error:
            if error.status != OUT_OF_MEMORY:
                raise
            raise MemoryError(f"the weights of {self.name!r} do not fit: {error}") from None
        return copied.value


@functools.cache
def kind() -> Any:
    """The class of managed sessions: an InferenceSession that is resident while it runs."""
    ort = importlib.import_module("onnxruntime")

    class ManagedSession(ort.InferenceSession):  # type: ignore[misc, name-defined]
        """A session whose weights may be elsewhere while it does not run."""

        tilework_group: SessionGroup

        def run_async(self, *arguments: Any, **named: Any) -> None:
            _refuse_async()

    def in_residence(name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(ort.InferenceSession, name))
        def run(self: Any, *arguments: Any, **named: Any) -> Any:
            with self.tilework_group.resident():
                # Found when it runs: `enable()` may have wrapped it since.
                return getattr(super(ManagedSession, self), name)(*arguments, **named)

        return run

    for name in RUNS:
        if hasattr(ort.InferenceSession, name):
            setattr(ManagedSession, name, in_residence(name))
    return ManagedSession


def _refuse_async() -> None:
    raise RuntimeError("a managed session does not run_async: its weights could leave before it is done")


def resident(session: Any, run: str) -> contextlib.AbstractContextManager[Any]:
    """What a session runs in by its method `run`, where the class does not see to it itself."""
    group = getattr(session, "tilework_group", None)
    if group is None or isinstance(session, kind()):
        return contextlib.nullcontext()
    if run not in RUNS:
        _refuse_async()
    within: contextlib.AbstractContextManager[Any] = group.resident()
    return within


def converted(model: Any, options: Any, folder: str, named: dict[str, Any]) -> tuple[Any, str | None]:
    """What to load on the CPU so that the weights come through an allocator: the model itself, or a file in `folder`.

    Also why some do not, if so.
    """
    ort = importlib.import_module("onnxruntime")
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < _KEPT_SINCE or (not isinstance(model, bytes) and str(model).endswith(".ort")):
        return model, None
    if options.optimized_model_filepath:
        return model, "ONNX Runtime keeps some of the weights itself, and they stay, where an optimized model is asked for"
    path = str(Path(folder) / "model.ort")
    # It stays in the options: ONNX Runtime takes none out, and warns of one that changes.
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = path
    severity, options.log_severity_level = options.log_severity_level, 3
    session = ort.InferenceSession.__new__(ort.InferenceSession)
    try:
        # As it was before `enable()`: nothing of this is served by Tilework.
        make = getattr(ort.InferenceSession.__init__, "__wrapped__", ort.InferenceSession.__init__)
        make(session, model, options, providers=["CPUExecutionProvider"], **named)
    except Exception as error:
        return model, f"ONNX Runtime keeps some of the weights itself, and they stay: {error}"
    finally:
        options.optimized_model_filepath, options.log_severity_level = "", severity
    return path, None
