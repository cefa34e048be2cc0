"""What ONNX Runtime holds on a GPU with its own arena and with Tilework, for one model.

  python bench/ort_gpu.py [--runs 10] [--shape latent=1x4x96x96] [MODEL.onnx]

Needs onnxruntime-gpu 1.23 or later and the package tilework. Each configuration is a process of its own and
prints one line of JSON: bytes of the GPU that the process took, after one run and after all (what the driver
says is used, less what was used before CUDA began: leave the GPU to this program); seconds of each run; sum and
SHA-256 of every output. With Tilework its figures come, too. The last line says whether outputs are the same.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parents[1] / "models" / "sdxl-vae-decoder.onnx"
CONFIGURATIONS: dict[str, dict[str, str]] = {
    "arena": {},
    "arena, kSameAsRequested": {"arena_extend_strategy": "kSameAsRequested"},
    "tilework": {},
}


def used(device: int) -> int:
    """Bytes of a GPU in use by all processes, asked from outside: a context of ours would count."""
    query = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.check_output(query, text=True)) << 20


def driver_used() -> int:
    """The same by the driver's count, exact to the byte; needs the provider's context."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    codes = [
        driver.cuInit(0),
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        driver.cuCtxPushCurrent_v2(context),
        driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
        driver.cuCtxPopCurrent_v2(ctypes.byref(context)),
    ]
    if any(codes):
        raise RuntimeError(f"the driver refused: {codes}")
    return total.value - free.value


def inputs(session: Any, shapes: dict[str, list[int]]) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    made = {}
    for wanted in session.get_inputs():
        shape = shapes.get(wanted.name, wanted.shape)
        if not all(isinstance(size, int) for size in shape):
            raise SystemExit(f"the shape of {wanted.name} is open ({shape}): give it with --shape")
        values = rng.standard_normal(shape) * 0.3
        made[wanted.name] = values.astype(kinds.get(wanted.type, np.int64))
    return made


def measure(name: str, arguments: argparse.Namespace) -> None:
    import numpy as np
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    before = used(0)
    served = None
    if name == "tilework":
        import tilework.onnxruntime as served

        served.enable(cuda=[0])
    # By default cuDNN times algorithms and may choose another each time: outputs would differ in their last bits.
    provider = {"cudnn_conv_algo_search": "HEURISTIC", **CONFIGURATIONS[name]}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    start = time.perf_counter()
    session = ort.InferenceSession(arguments.model, options, providers=[("CUDAExecutionProvider", provider)])
    result: dict[str, Any] = {"configuration": name, "onnxruntime": ort.__version__, "model": arguments.model.name}
    result["create_s"] = round(time.perf_counter() - start, 3)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("ONNX Runtime could not use its CUDA provider")
    feed = inputs(session, dict(arguments.shape))
    seconds, outputs = [], []
    for number in range(arguments.runs):
        outputs = []
        start = time.perf_counter()
        outputs = session.run(None, feed)
        seconds.append(round(time.perf_counter() - start, 4))
        if number == 0:
            result["bytes_after_first"] = driver_used() - before
            result["tilework_after_first"] = served and served.stats("cuda:0")
    result["bytes_after_all"] = driver_used() - before
    result["seconds"] = seconds
    result["seconds_median_later"] = sorted(seconds[1:] or seconds)[len(seconds[1:] or seconds) // 2]
    result["sums"] = [float(np.abs(output.astype(np.float64)).sum()) for output in outputs]
    result["sha256"] = [hashlib.sha256(np.ascontiguousarray(output).tobytes()).hexdigest() for output in outputs]
    result["tilework"] = served and served.stats("cuda:0")
    print(json.dumps(result), flush=True)


def shape(text: str) -> tuple[str, list[int]]:
    name, sizes = text.split("=")
    return name, [int(size) for size in sizes.split("x")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--shape", type=shape, action="append", help="an input's, such as latent=1x4x96x96")
    parser.add_argument("--configuration", choices=CONFIGURATIONS, help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.shape is None:
        arguments.shape = [("latent", [1, 4, 96, 96])] if arguments.model == MODEL else []
    if arguments.configuration:
        measure(arguments.configuration, arguments)
        return
    hashes = set()
    for name in CONFIGURATIONS:
        command = [sys.executable, __file__, *sys.argv[1:], "--configuration", name]
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        if not lines:
            print(json.dumps({"configuration": name, "failed": True}), flush=True)
            continue
        print(lines[-1], flush=True)
        hashes.add(tuple(json.loads(lines[-1])["sha256"]))
    print(json.dumps({"outputs_same_to_the_bit": len(hashes) == 1}))


if __name__ == "__main__":
    main()
