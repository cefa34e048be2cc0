"""Tilework keeps the memory a model's runtime holds close to the memory its model has live.

In PyTorch, before the first tensor on a GPU::

    import tilework.torch
    tilework.torch.enable()

With ONNX Runtime, before the first session::

    import tilework.onnxruntime
    tilework.onnxruntime.enable()
"""

from tilework._library import Error, version

__all__ = ["Error", "version"]
__version__ = version()
