"""When an execution of a PyTorch program is over: the clock by which unused memory grows old.

    optimizer.step(), so many times ──┐
                                      ├──► tilework_end_of_execution, on each GPU in use
    with execution(): ... ────────────┘

Nothing here raises: what cannot be given back now is tried again at the end of the next execution, and a device that
has failed says so where it is asked for something.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import Any, Callable, Iterator

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tilework import _hooks

# How often each optimizer, by its id, has stepped since the last execution ended. One that gets the id of one that is
# gone goes on with its count, which is as well.
_steps: dict[int, int] = {}
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("tilework-execution", default=False)


def begin() -> None:
    """Says that an execution has ended, so that what comes belongs to the next."""
    _steps.clear()


def end(end_on: Callable[[int], None]) -> None:
    """Ends an execution on each GPU in use, but for streams that are being captured."""
    begin()
    # See above.
    with contextlib.suppress(RuntimeError):
        if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
            for gpu in _hooks.in_use():
                # One that fails keeps none of the others.
                with contextlib.suppress(RuntimeError):
                    end_on(gpu)


def follow_optimizers(steps: int, end_on: Callable[[int], None]) -> None:
    """Ends an execution whenever an optimizer steps that has stepped `steps` times since one ended.

    Each optimizer is counted by itself: two that step by turns, as those of a GAN, or one for each parameter make no
    more executions than one.
    """

    def stepped(optimizer: Any, *_: Any) -> None:
        # What torch.compile makes of a step is without this.
        if torch.compiler.is_compiling():
            return
        count = _steps.get(id(optimizer), 0)
        if count >= steps:
            # Only now, so that others that step by turns with it have taken their last step as well.
            end(end_on)
            count = 0
        _steps[id(optimizer)] = count + 1

    register_optimizer_step_post_hook(stepped)


@contextlib.contextmanager
def execution(end_on: Callable[[int], None]) -> Iterator[None]:
    """Ends an execution at the end of the outermost of these blocks, also when that fails."""
    outermost = not _inside.get()
    _inside.set(True)
    try:
        yield
    finally:
        if outermost:
            _inside.set(False)
            end(end_on)
