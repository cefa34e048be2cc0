"""What several ONNX Runtime sessions of one model hold that run in turn on the CPU: with Tilework, and with the default arena.

  TILEWORK_LIBRARY=target/release/libtilework.so PYTHONPATH=python python3 bench/ort_sessions.py [--side N]

Needs the packages onnxruntime and numpy. Prints a table in Markdown; each row is a process of its own. The model is the
bundled decoder, written once in ONNX Runtime's own format, so that each row loads the same file. Memory is the kernel's
PSS, which counts a page once wherever it is mapped, above what it was before the first session; Tilework's own figures
are beside it.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "models/sdxl-vae-decoder.onnx"
PROVIDERS = ["CPUExecutionProvider"]
MIB = 1 << 20
SUBJECTS = {
    "default arena": {},
    "default arena, pattern off": {"enable_mem_pattern": False},
    "Tilework": None,
}


def convert(path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = path
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(MODEL, options, providers=PROVIDERS)


def pss():
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"Pss:\s+(\d+) kB", text)[1]) << 10


class Peak:
    """The most that PSS is while the block runs, as far as it is asked."""

    def __enter__(self):
        self.most, self._over = pss(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self):
        while not self._over.wait(0.05):
            self.most = max(self.most, pss())

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self.most = max(self.most, pss())


def measure(subject, path, side, count, rounds):
    import numpy as np
    import onnxruntime as ort

    changes = SUBJECTS[subject]
    if changes is None:
        import tilework.onnxruntime as tw

        tw.enable()
    before = pss()
    sessions = []
    for _ in range(count):
        if changes is None:
            sessions.append(tw.manage(path, providers=PROVIDERS))
            continue
        options = ort.SessionOptions()
        for name, value in changes.items():
            setattr(options, name, value)
        sessions.append(ort.InferenceSession(path, options, providers=PROVIDERS))
    row = {"loaded": pss() - before}
    if changes is None:
        row["weights"] = tw.stats()["live"]
    latent = {"latent": np.random.default_rng(0).standard_normal((1, 4, side, side)).astype(np.float32)}
    outputs = set()
    with Peak() as peak:
        for _ in range(rounds):
            for session in sessions:
                outputs.add(hashlib.sha256(session.run(None, latent)[0].tobytes()).hexdigest())
    row |= {"peak": peak.most - before, "after": pss() - before, "outputs": sorted(outputs)}
    if changes is None:
        figures = tw.stats()
        row |= {"live": figures["peak_live"], "held": figures["peak_held"]}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=32, help="of the latent; the picture's is eight times that")
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="how often each session runs")
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.subject:
        row = measure(
            arguments.subject, arguments.file, arguments.side, arguments.sessions, arguments.rounds
        )
        print(json.dumps(row))
        return
    if arguments.file:
        convert(arguments.file)
        return

    with tempfile.TemporaryDirectory() as folder:
        file = ["--file", os.path.join(folder, "decoder.ort")]
        subprocess.run([sys.executable, __file__, *file], check=True)
        rows = {}
        for subject in SUBJECTS:
            command = [sys.executable, __file__, *sys.argv[1:], *file, "--subject", subject]
            rows[subject] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    import onnxruntime as ort

    mib = lambda value: f"{value / MIB:.1f}"  # noqa: E731
    ours = rows["Tilework"]
    activations = ours["live"] - ours["weights"]
    print(f"ONNX Runtime {ort.__version__}, {arguments.sessions} sessions of {MODEL.name}, {arguments.rounds} rounds,", end=" ")
    print(f"{8 * arguments.side} x {8 * arguments.side} pixels, MiB\n")
    print("| memory of | PSS, loaded | PSS, most in the runs | PSS, after | held, by Tilework |")
    print("|---|---|---|---|---|")
    for subject, row in rows.items():
        held = mib(row["held"]) if "held" in row else "-"
        print(f"| {subject} | {mib(row['loaded'])} | {mib(row['peak'])} | {mib(row['after'])} | {held} |")
    agree = len({output for row in rows.values() for output in row["outputs"]}) == 1
    print(f"\nweights of all {mib(ours['weights'])}, activations of one {mib(activations)}, together {mib(ours['live'])}: ", end="")
    print(f"held / live {ours['held'] / ours['live']:.4f}; outputs {'the same to the bit' if agree else 'DIFFER'}")
    if not agree:
        sys.exit("outputs differ")


if __name__ == "__main__":
    main()
