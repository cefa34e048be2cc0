#!/usr/bin/env python3
"""Times a warm allocation and free through PyTorch, under one allocator after the other.

    pip install .                                  # Tilework's wheel, beside torch
    python3 bench/torch_pair.py                    # default, expandable and tilework in turn, 20 rounds
    python3 bench/torch_pair.py --core 4           # all on one core of the processor

Nanoseconds of `torch.empty(bytes)` and of dropping it, with the same loop over a tensor on the `meta` device taken
off, which allocates nothing. Each allocator has a process of its own; all live at once and take turns, and in its turn each
takes the best of some batches for each size. A line of JSON for each allocator and size: the least and the median of
the rounds, and their quartiles. Needs a GPU.
"""

import argparse
import json
import os
import statistics
import sys
import time

import turns
from allocators import torch_under

SIZES = {"512 B": 512, "1 MiB": 1 << 20, "100 MiB": 100 << 20}
ALLOCATORS = ("default", "expandable", "tilework")
BATCH, BATCHES = 2000, 15


def best(torch, bytes, device):
    empty, kind = torch.empty, torch.uint8
    least = float("inf")
    for _ in range(BATCHES):
        began = time.perf_counter_ns()
        for _ in range(BATCH):
            empty(bytes, dtype=kind, device=device)
        least = min(least, time.perf_counter_ns() - began)
    return least / BATCH


def child(allocator, rounds, core):
    torch = torch_under(allocator)
    device, meta = torch.device("cuda"), torch.device("meta")
    warm = [torch.empty(bytes, dtype=torch.uint8, device=device) for bytes in SIZES.values()]
    del warm
    if core is not None:
        os.sched_setaffinity(0, {core})
    taken = {name: [] for name in SIZES}
    for _ in range(rounds):
        turns.wait()
        for name, bytes in SIZES.items():
            taken[name].append(best(torch, bytes, device) - best(torch, bytes, meta))
    for name, nanoseconds in taken.items():
        quarter, median, three_quarters = statistics.quantiles(nanoseconds, n=4)
        row = {"allocator": allocator, "bytes": name, "rounds": rounds, "least_ns": min(nanoseconds)}
        row.update(quarter_ns=quarter, median_ns=median, three_quarters_ns=three_quarters)
        row = {key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()}
        print(json.dumps({**row, "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--core", type=int)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.rounds, options.core)
    command = [sys.executable, __file__, "--rounds", str(options.rounds)]
    command += [] if options.core is None else ["--core", str(options.core)]
    command += ["--child"]
    failed = False
    for _, said in turns.take({allocator: [*command, allocator] for allocator in ALLOCATORS}):
        if isinstance(said, str):
            print(said, flush=True)
        else:
            failed |= said != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
