#!/usr/bin/env python3
"""Counts the driver's calls in each image of SDXL, beside Tilework's own count of its calls.

    pip install . diffusers                        # Tilework's wheel and the models' code, beside torch
    cc -O2 -shared -fPIC bench/driver_calls.c -o libdriver_calls.so -I$CUDA/include -L$CUDA/lib -lcupti
    python3 bench/driver_calls.py ./libdriver_calls.so

`bench/driver_calls.c` says what `$CUDA` is. Four images at 1024 x 1024 as in `bench/torch_workloads.py`, under each
allocator in a process of its own. Prints how often each function of the driver that deals with memory was called while the
models and the first image were made, and in each later image: every one that begins with cuMem, but for copies and sets of
contents. Under Tilework the last line is what `tilework.torch.stats()` says. With `--all` every function. Needs a GPU.
"""

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys

from allocators import torch_under
from torch_workloads import WORKLOADS, Steps

IMAGES = 4
OWN = "Tilework's own count"


class Counted(Steps):
    """Asks at the end of each step what the driver was called for."""

    def __init__(self, torch, library):
        super().__init__(torch)
        self.library, self.functions, self.own = ctypes.CDLL(library), [], 0

    def __call__(self, count):
        for n in range(IMAGES):
            yield n
            self.torch.cuda.synchronize()
            text = ctypes.create_string_buffer(1 << 16)
            self.library.driver_calls_take(text, ctypes.c_size_t(len(text)))
            counts = {name: int(calls) for name, calls in map(str.split, text.value.decode().splitlines())}
            calls = self.driver_calls()
            if calls:
                counts[OWN], self.own = calls[0] - self.own, calls[0]
            self.functions.append(counts)

    def look(self):
        """Watches nothing: the question would be counted."""


def child(allocator, library):
    torch = torch_under(allocator)
    torch.manual_seed(0)
    steps = Counted(torch, library)
    WORKLOADS["sdxl"](torch, steps)
    print(json.dumps(steps.functions))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libdriver_calls.so")
    parser.add_argument("--all", action="store_true", help="every function of the driver")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.library)
    library = os.path.abspath(options.library)
    for allocator in ("default", "expandable", "tilework"):
        command = [sys.executable, __file__, library, "--child", allocator]
        environment = {**os.environ, "CUDA_INJECTION64_PATH": library}
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        images = json.loads(run.stdout.splitlines()[-1])
        if not images[0]:
            sys.exit("the driver did not load the library, or CUPTI counts nothing here")
        names = sorted({name for image in images for name in image} - {OWN})
        of_memory = [name for name in names if re.match("cuMem(?!cpy|set)", name)]
        rows = {name: [image.get(name, 0) for image in images] for name in (names if options.all else of_memory)}
        rows["all of memory"] = [sum(image.get(name, 0) for name in of_memory) for image in images]
        if allocator == "tilework":
            rows[OWN] = [image[OWN] for image in images]
        print(f"{allocator:54}", *(f"  image {n}" for n in range(1, IMAGES + 1)))
        for name, calls in rows.items():
            print(f"  {name:52}", *(f"{n:9}" for n in calls))
        print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
