"""What of PyTorch's Python side must know that the allocator is Tilework's.

Functions of `torch._C` are replaced, which torch.cuda and torch.accelerator look up at each call, and not
those of torch.cuda, which many modules have copies of. Statistics need it only where the library could not
make PyTorch's C++ ask it directly.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any, Callable, Sequence

import torch

from tilework._library import call

# What tilework_torch_patch() answers.
STATISTICS, CACHE_INFO, POOLS, ACCELERATOR = 1, 2, 4, 8

_STATS = (
    "allocation",
    "segment",
    "active",
    "inactive_split",
    "allocated_bytes",
    "reserved_bytes",
    "active_bytes",
    "inactive_split_bytes",
    "requested_bytes",
)
_POOLS = ("all", "small_pool", "large_pool")
_FIELDS = ("current", "peak", "allocated", "freed")
_COUNT = len(_STATS) * len(_POOLS) * len(_FIELDS) + 2 + 2 * len(_FIELDS) + 4


def ordinal(device: Any) -> int:
    """The number of a GPU as users name it; the current one for None."""
    if device is None:
        return torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    if isinstance(device, torch.cuda.device):
        device = device.idx
    if isinstance(device, int):
        count = torch.cuda.device_count()
        # Where there is none at all, the library knows why.
        if count and not 0 <= device < count:
            raise ValueError(f"there is no cuda:{device}: the number of GPUs that PyTorch sees is {count}")
        return device
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f"expected a cuda device, not {device}")
    return ordinal(device.index)


def in_use() -> list[int]:
    """The GPUs that the process has a context on; none before PyTorch has begun with CUDA, and in a forked child."""
    if not torch.cuda.is_initialized():
        return []
    C: Any = torch._C
    return [gpu for gpu in range(torch.cuda.device_count()) if C._cuda_hasPrimaryContext(gpu)]


def memory_stats(device: int) -> dict[str, Any]:
    """The nested dictionary of torch._C._cuda_memoryStats()."""
    figures = (ctypes.c_int64 * _COUNT)()
    call("tilework_torch_stats", device, figures, _COUNT)
    numbers = iter(figures)

    def stat() -> dict[str, int]:
        return {field: next(numbers) for field in _FIELDS}

    result: dict[str, Any] = {name: {pool: stat() for pool in _POOLS} for name in _STATS}
    result["num_alloc_retries"] = next(numbers)
    result["num_ooms"] = next(numbers)
    result["oversize_allocations"] = stat()
    result["oversize_segments"] = stat()
    for name in ("num_sync_all_streams", "num_device_alloc", "num_device_free", "max_split_size"):
        result[name] = next(numbers)
    return result


def install(done: int) -> None:
    """Replaces what the library could not make PyTorch ask it, and what must refuse."""
    C: Any = torch._C
    if hasattr(C, "_accelerator_isAllocatorInitialized"):
        # To PyTorch a plug-in is initialised once it is made, before there is a GPU whose figures could be asked.
        C._accelerator_isAllocatorInitialized = torch.cuda.is_initialized
    if not done & STATISTICS:
        _statistics()
        _accelerator()
    elif not done & ACCELERATOR:
        _accelerator()
    if not done & CACHE_INFO:
        _refuse_benchmark()
    _pools(bool(done & POOLS))
    _refuse_history()
    _after_import("torch._inductor.compile_fx", _without_trees)


def _statistics() -> None:
    def fraction(device: int) -> float:
        value = ctypes.c_double()
        call("tilework_torch_fraction", device, ctypes.byref(value))
        return value.value

    C: Any = torch._C
    C._cuda_memoryStats = memory_stats
    C._cuda_resetPeakMemoryStats = lambda device: call("tilework_torch_reset_peaks", device)
    C._cuda_resetAccumulatedMemoryStats = lambda device: call("tilework_torch_reset_accumulated", device)
    C._cuda_getMemoryFraction = fraction
    C._cuda_isHistoryEnabled = lambda: False


def _accelerator() -> None:
    C: Any = torch._C
    if not hasattr(C, "_accelerator_getDeviceStats"):
        return
    C._accelerator_getDeviceStats = memory_stats
    C._accelerator_resetPeakStats = lambda device: call("tilework_torch_reset_peaks", device)
    C._accelerator_resetAccumulatedStats = lambda device: call("tilework_torch_reset_accumulated", device)
    C._accelerator_emptyCache = torch._C._cuda_emptyCache


def _refusal(sentence: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(sentence)

    return refuse


def _refuse_history() -> None:
    instead = "use tilework.torch.record(path) for a trace of every request and free"
    C: Any = torch._C
    C._cuda_memorySnapshot = _refusal(f"Tilework keeps no snapshots of PyTorch's form: {instead}")
    for name in ("_cuda_record_memory_history", "_cuda_record_memory_history_legacy"):
        refuse = _refusal(f"Tilework keeps no history of PyTorch's form: {instead}")
        # Switching it off is what programs do at their end.
        switch = lambda enabled=None, *rest, refuse=refuse, **more: refuse() if enabled else None  # noqa: E731
        setattr(C, name, switch)
    C._cuda_attach_out_of_memory_observer = _refusal(
        "Tilework calls no observers when memory runs out: catch torch.OutOfMemoryError"
    )


def _refuse_benchmark() -> None:
    sentence = (
        "torch.backends.cudnn.benchmark asks PyTorch's allocator how much is free, which this version of "
        "PyTorch lets no other allocator answer: leave it off under Tilework"
    )
    original = torch._C._set_cudnn_benchmark

    def set_benchmark(enabled: bool) -> None:
        if enabled:
            raise RuntimeError(sentence)
        original(enabled)

    if torch.backends.cudnn.benchmark:
        original(False)
        warnings.warn(f"tilework switched it off: {sentence}", stacklevel=4)
    C: Any = torch._C
    C._set_cudnn_benchmark = set_benchmark
    # `torch.backends.cudnn.benchmark = True` goes through a property that has a copy.
    vars(type(torch.backends.cudnn))["benchmark"].setter = set_benchmark


def _pools(served: bool) -> None:
    """Pools with an allocator of their own would get our memory, and none at all where they cannot be had."""
    original = torch.cuda.memory.MemPool.__init__

    @functools.wraps(original)
    def init(self: Any, allocator: Any = None, *arguments: Any, **options: Any) -> None:
        if not served:
            raise RuntimeError("torch.cuda.MemPool: this version of PyTorch lets only its own allocator make pools")
        if allocator is not None:
            raise RuntimeError("torch.cuda.MemPool: under Tilework a pool has no allocator of its own")
        original(self, None, *arguments, **options)

    torch.cuda.memory.MemPool.__init__ = init  # type: ignore[method-assign]


def _without_trees(compile_fx: Any) -> None:
    """Lets torch.compile(mode="reduce-overhead") capture one graph after the other, not trees of them."""
    compile_fx.config.triton.cudagraph_trees = False
    original = compile_fx.cudagraphify_impl
    warned = False

    def cudagraphify_impl(*arguments: Any, **options: Any) -> Any:
        nonlocal warned
        if not warned:
            warned = True
            warnings.warn(
                "torch.compile uses CUDA graphs without graph trees under Tilework: trees need checkpoints of "
                "the allocator, which PyTorch lets no other allocator make (pytorch/pytorch#163257). Outputs "
                "stay in the graph's buffers: clone what is to outlive the next call",
                stacklevel=2,
            )
        return original(*arguments, **options)

    compile_fx.cudagraphify_impl = cudagraphify_impl


def _after_import(name: str, then: Callable[[Any], None]) -> None:
    """Calls `then` with a module once it is imported, now if it is already."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module where it is, and looks at it once it is executed."""

    def __init__(self, name: str, then: Callable[[Any], None]):
        self.name, self.then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            original = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                original(module)
                self.then(module)

            loader.exec_module = exec_module
        return spec
