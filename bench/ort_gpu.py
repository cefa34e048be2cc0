#!/usr/bin/env python3
"""What ONNX Runtime holds on a GPU with its own arenas and with Tilework, and how long a run takes.

    pip install . 'onnxruntime-gpu[cuda,cudnn]'
    python3 bench/ort_gpu.py                          # the bundled decoder at 768 x 768
    python3 bench/ort_gpu.py UNET.onnx models/sdxl-vae-decoder.onnx   # a pipeline: a session each, run one after the other
    python3 bench/ort_gpu.py --table RESULT.jsonl     # the tables of what was printed

Each configuration is a process of its own with its sessions, and a pass runs each of them once. The processes first
make their passes one after the other, while the memory is watched: bytes of the GPU that the process has taken after
the first pass and after all, with its context and libraries in them. Then the timed passes take turns, so that a slow
moment of the machine does not fall on one configuration. One line of JSON for each, with the seconds of each timed
pass, the sum and the SHA-256 of every output, and Tilework's own figures; the last line says whether all outputs are
the same to the bit. Other programs must leave the GPU alone meanwhile: the driver does not tell who took what.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DECODER = Path(__file__).resolve().parents[1] / "models" / "sdxl-vae-decoder.onnx"
# Options of the provider, and whether ONNX Runtime plans one block for all tensors of a run.
CONFIGURATIONS: dict[str, tuple[dict[str, str], bool]] = {
    "arena": ({}, True),
    "arena, kSameAsRequested": ({"arena_extend_strategy": "kSameAsRequested"}, True),
    "arena, pattern off": ({}, False),
    "tilework": ({}, True),
}
MIB = 1 << 20


def used() -> int:
    """Bytes of the GPU in use by all processes, asked from outside: a context of ours would count."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.check_output(query, text=True)) * MIB


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


class Pipeline:
    """The sessions of one configuration."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        import onnxruntime as ort

        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        self.before = used()
        self.tilework = None
        if name == "tilework":
            import tilework.onnxruntime as served

            served.enable()
            self.tilework = served
        provider, pattern = CONFIGURATIONS[name]
        provider = {"cudnn_conv_algo_search": options.search, **provider}
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.enable_mem_pattern = pattern
        # Where kernels may differ from run to run, outputs would in their last bits.
        settings.use_deterministic_compute = options.search != "EXHAUSTIVE"
        self.result: dict[str, Any] = {
            "configuration": name,
            "models": [model.name for model in options.models],
            "search": options.search,
            "onnxruntime": ort.__version__,
        }
        start = time.perf_counter()
        self.sessions = []
        for model in options.models:
            session = ort.InferenceSession(
                str(model), settings, providers=[("CUDAExecutionProvider", dict(provider))]
            )
            if session.get_providers()[0] != "CUDAExecutionProvider":
                raise SystemExit("ONNX Runtime could not use its CUDA provider")
            self.sessions.append((session, inputs(session, dict(options.shape))))
        self.result["create_s"] = round(time.perf_counter() - start, 3)
        self.result["bytes_created"] = used() - self.before

    def run(self) -> tuple[float, list[Any]]:
        """One pass: its seconds and its outputs."""
        start = time.perf_counter()
        outputs = [output for session, feed in self.sessions for output in session.run(None, feed)]
        return time.perf_counter() - start, outputs

    def watch(self, passes: int) -> dict[str, Any]:
        """Passes while nobody else uses the GPU."""
        import numpy as np

        result = self.result
        hashes = set()
        for number in range(passes):
            seconds, outputs = self.run()
            hashes.add(
                tuple(hashlib.sha256(np.ascontiguousarray(output).tobytes()).hexdigest() for output in outputs)
            )
            result["sums"] = [float(np.abs(output.astype(np.float64)).sum()) for output in outputs]
            del outputs
            if number == 0:
                result["first_s"] = round(seconds, 4)
                result["bytes_after_first"] = used() - self.before
                result["tilework_after_first"] = self.stats()
        result["bytes_after_all"] = used() - self.before
        result["passes"] = passes
        result["sha256"] = sorted(hashes)
        return result

    def stats(self) -> dict[str, int] | None:
        return self.tilework and self.tilework.stats("cuda:0")


def serve(options: argparse.Namespace) -> None:
    """A configuration's process: does what each line asks for, and answers with a line."""
    pipeline = Pipeline(options.configuration, options)
    for line in sys.stdin:
        answer: Any = None
        if line == "watch\n":
            answer = pipeline.watch(options.passes)
        elif line == "run\n":
            answer = round(pipeline.run()[0], 5)
        elif line == "stats\n":
            answer = pipeline.stats()
        print(json.dumps(answer), flush=True)


class Process:
    """A configuration's process, as this one sees it."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--configuration", name]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> Any:
        assert self.child.stdin and self.child.stdout
        try:
            self.child.stdin.write(what + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.child.wait()}: its reason is above")
        return json.loads(line)

    def end(self) -> None:
        if self.child.stdin:
            self.child.stdin.close()
        self.child.wait()


def measure(options: argparse.Namespace) -> None:
    processes, results = {}, {}
    for name in options.only or CONFIGURATIONS:
        process = Process(name)
        try:
            results[name] = process.ask("watch")
            processes[name] = process
        except RuntimeError as error:
            print(json.dumps({"configuration": name, "failed": str(error)}), flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    warm = {name: process.ask("stats") for name, process in processes.items()}
    for _ in range(options.rounds):
        for name, process in processes.items():
            seconds[name].append(process.ask("run"))
    for name, process in processes.items():
        result = results[name]
        result["seconds"] = seconds[name]
        result["median_s"] = round(statistics.median(seconds[name]), 5) if seconds[name] else None
        result["tilework"] = process.ask("stats")
        if warm[name]:
            result["device_calls_timed"] = result["tilework"]["device_calls"] - warm[name]["device_calls"]
        print(json.dumps(result), flush=True)
        process.end()
    outputs = {tuple(map(tuple, result["sha256"])) for result in results.values()}
    print(json.dumps({"models": [m.name for m in options.models], "outputs_same_to_the_bit": len(outputs) == 1}))


def table(path: Path) -> None:
    """The results as Markdown, one table for each list of models."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for line in lines:
        groups.setdefault((tuple(line.get("models", ())), line.get("search")), []).append(line)
    summary = []
    for (models, search), rows in groups.items():
        rows = [row for row in rows if "seconds" in row]
        if not rows:
            continue
        taken = {row["configuration"]: row["bytes_after_all"] / MIB for row in rows}
        before, after = taken.get("arena"), taken.get("tilework")
        if before and after:
            name = f"{' then '.join(models)}, {search}"
            summary.append(f"| {name} | {before:.0f} MiB | {after:.0f} MiB | {100 * (1 - after / before):.0f} % |")
        print(f"\n{' then '.join(models)}, cuDNN's algorithms by {search}:\n")
        print("| configuration | GPU memory, first pass | all passes | live | held | s/pass, median (min to max) | to arena |")
        print("|---|---|---|---|---|---|---|")
        arena = next((row["seconds"] for row in rows if row["configuration"] == "arena"), None)
        for row in rows:
            seconds, own = row["seconds"], row["tilework"]
            ratio = statistics.median(a / b for a, b in zip(seconds, arena)) if arena else None
            cells = [
                row["configuration"],
                *(f"{row[key] / MIB:.0f} MiB" for key in ("bytes_after_first", "bytes_after_all")),
                *(f"{own[key] / MIB:.0f} MiB" if own else "" for key in ("peak_live", "peak_held")),
                f"{statistics.median(seconds):.4f} ({min(seconds):.4f} to {max(seconds):.4f})",
                f"{ratio:.3f}" if ratio else "",
            ]
            print(f"| {' | '.join(cells)} |")
        outputs = {json.dumps(one) for row in rows for one in row["sha256"]}
        print(f"\nOutputs the same to the bit in all passes of all configurations: {'yes' if len(outputs) == 1 else 'no'}.")
    print("\nGPU memory of the process after all passes:\n\n| models | default arena | Tilework | saved |\n|---|---|---|---|")
    print("\n".join(summary))


def shape(text: str) -> tuple[str, list[int]]:
    name, sizes = text.split("=")
    return name, [int(size) for size in sizes.split("x")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[DECODER])
    parser.add_argument("--passes", type=int, default=10, help="of each process alone, while memory is watched")
    parser.add_argument("--rounds", type=int, default=20, help="timed passes, by turns")
    parser.add_argument("--shape", type=shape, action="append", help="an input's, such as latent=1x4x96x96")
    parser.add_argument("--search", default="HEURISTIC", help="the provider's cudnn_conv_algo_search")
    parser.add_argument("--only", action="append", choices=CONFIGURATIONS, help="this configuration; may be repeated")
    parser.add_argument("--configuration", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help="print the tables of a file of results, and do nothing else")
    options = parser.parse_args()
    options.shape = options.shape or [("latent", [1, 4, 96, 96])]
    if options.table:
        table(options.table)
    elif options.configuration:
        serve(options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
