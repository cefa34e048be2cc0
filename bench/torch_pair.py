#!/usr/bin/env python3
"""Times a warm allocation and free through PyTorch, under one allocator after the other.

    pip install .                     # Tilework's wheel, beside torch
    python3 bench/torch_pair.py       # default, expandable and tilework in turn, five rounds

Nanoseconds of `torch.empty(bytes)` and of dropping it, the best of many batches, with the same loop over a
tensor on the `meta` device taken off, which allocates nothing. Each allocator runs in processes of its own, in
turn; a line of JSON for each. Needs a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time

SIZES = {"512 B": 512, "1 MiB": 1 << 20, "100 MiB": 100 << 20}
BATCH, BATCHES = 2000, 60


def best(torch, bytes, device):
    empty, kind = torch.empty, torch.uint8
    least = float("inf")
    for _ in range(BATCHES):
        began = time.perf_counter_ns()
        for _ in range(BATCH):
            empty(bytes, dtype=kind, device=device)
        least = min(least, time.perf_counter_ns() - began)
    return least / BATCH


def child(allocator):
    if allocator == "expandable":
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    import torch

    if allocator == "tilework":
        import tilework.torch

        tilework.torch.enable()
    device, meta = torch.device("cuda"), torch.device("meta")
    row = {"allocator": allocator, "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    for name, bytes in SIZES.items():
        row[name] = round(best(torch, bytes, device) - best(torch, bytes, meta), 1)
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    for _ in range(options.rounds):
        for allocator in ("default", "expandable", "tilework"):
            subprocess.run([sys.executable, __file__, "--child", allocator], check=True)


if __name__ == "__main__":
    sys.exit(main())
