"""Runs Python with the CUDA runtime of `fake_cudart.c` and a driver that does nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def missing() -> str | None:
    """Why PyTorch cannot be tested here, if so."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    if torch.version.cuda is None:
        return "PyTorch was built without CUDA"
    if torch.cuda.is_available():
        return "there is a GPU: bench/torch_features.py tests with it"
    return None


def build(folder: Path) -> dict[str, str]:
    """Compiles both libraries and returns the environment to run with."""
    import torch

    # PyTorch looks every one of these names up when it loads the driver.
    libraries = Path(torch.__file__).parent / "lib"
    text = b"".join((libraries / name).read_bytes() for name in ("libtorch_cuda.so", "libc10_cuda.so"))
    names = sorted({name.decode() for name in re.findall(rb"\0(cu[A-Z][A-Za-z0-9]+(?:_v[0-9])?)(?=\0)", text)})
    driver = folder / "driver.c"
    # Every GPU has been used, for whoever asks.
    context = "cuDevicePrimaryCtxGetState"
    used = f"int {context}(int device, unsigned *flags, int *active) {{ *flags = 0; *active = 1; return 0; }}\n"
    driver.write_text(used + "".join(f"int {name}(void) {{ return 0; }}\n" for name in names if name != context))
    compile = ["cc", "-w", "-shared", "-fPIC", "-o"]
    subprocess.run([*compile, str(folder / "libcuda.so.1"), str(driver)], check=True)
    runtime = folder / "libfakecudart.so"
    subprocess.run([*compile, str(runtime), str(HERE / "fake_cudart.c")], check=True)
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": ":".join(filter(None, paths))}


def run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a program of its own: what is enabled stays for the process."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
