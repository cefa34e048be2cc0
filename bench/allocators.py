"""PyTorch under one of the allocators that are compared."""

import os

SETTINGS = {"expandable": "expandable_segments:True", "async": "backend:cudaMallocAsync"}


def torch_under(allocator, **options):
    """Imports PyTorch, which nobody may have done before: `tilework` with these options of enable(), or its own, with a setting
    where SETTINGS has one of that name."""
    if allocator in SETTINGS:
        # The second is the name since PyTorch 2.9.
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = SETTINGS[allocator]
    import torch

    if allocator == "tilework":
        import tilework.torch

        tilework.torch.enable(**options)
    return torch
