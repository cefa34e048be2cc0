#!/usr/bin/env python3
"""Compares what models compute under each allocator, bit by bit.

    pip install . diffusers transformers           # Tilework's wheel and the models' code, beside torch
    python3 bench/torch_outputs.py                 # every work under every allocator
    python3 bench/torch_outputs.py --work convnet  # one

The same seeds, and deterministic kernels where PyTorch has them. Each run is a process of its own and hashes its outputs:
images, or losses and at the end all parameters. PyTorch's own allocator runs twice: where these two differ the kernels are not
deterministic, and nothing can be said. Prints a line for each work and run, and exits with 1 when any differs or ends
otherwise, where something can be said. Needs a GPU.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys

from allocators import torch_under
from torch_workloads import images, llama

RUNS = ["default", "default again", "expandable", "tilework"]
WORKS = {}


def work(function):
    WORKS[function.__name__] = function
    return function


class Seen:
    """Takes the place of the measuring steps, and hashes what it is shown."""

    def __init__(self):
        self.hash, self.tensors = hashlib.sha256(), 0

    def __call__(self, count):
        return range(count)

    def see(self, tensor):
        self.hash.update(tensor.detach().cpu().contiguous().flatten().view(dtype=self.bytes).numpy())
        self.tensors += 1

    def look(self):
        pass


@work
def convnet(torch, seen):
    """four steps of a small convolutional net with dropout"""
    nn = torch.nn
    layers = []
    for before, after in [(3, 32), (32, 64), (64, 64)]:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.Dropout(0.1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16 * 16, 10)).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(4):
        x, y = torch.randn(8, 3, 16, 16, device="cuda"), torch.randint(0, 10, (8,), device="cuda")
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.see(loss)
    for parameter in net.parameters():
        seen.see(parameter)


@work
def sdxl(torch, seen):
    """SDXL's UNet and VAE: four images of three sizes"""
    images(torch, seen, [(512, 512), (768, 640), (1024, 1024), (512, 512)], denoising=3)


@work
def train(torch, seen):
    """eight steps of AdamW on a Llama of 1.0 B, checkpointed, batches of varying length"""
    # The other ways of computing attention add up gradients in whatever order comes.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    rng, model = random.Random(0), llama(torch, torch.bfloat16)
    model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _ in range(8):
        length = rng.choice([256, 512, 777, 1024, 2048])
        tokens = torch.randint(0, 32_000, (4096 // length, length), device="cuda")
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.see(loss)
    for parameter in model.parameters():
        seen.see(parameter)


def child(name, run):
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch = torch_under(run)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(0)
    seen = Seen()
    seen.bytes = torch.uint8
    WORKS[name](torch, seen)
    torch.cuda.synchronize()
    row = {"work": name, "run": run, "tensors": seen.tensors, "sha256": seen.hash.hexdigest()}
    row.update(torch=torch.__version__, gpu=torch.cuda.get_device_name())
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", action="append", choices=sorted(WORKS), help="may be given several times")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child)
    failed = False
    for name in options.work or WORKS:
        first, deterministic = None, True
        for run in RUNS:
            ended = subprocess.run([sys.executable, __file__, "--child", name, run], stdout=subprocess.PIPE, text=True)
            rows = [line for line in ended.stdout.splitlines() if line.startswith("{")]
            if ended.returncode or not rows:
                verdict, row = f"ended with {ended.returncode}", {"tensors": 0, "sha256": "-"}
            else:
                row = json.loads(rows[-1])
                first = first or row["sha256"]
                same = row["sha256"] == first
                deterministic &= same or run != "default again"
                verdict = "the same" if same else "DIFFERS" if deterministic else "not deterministic"
            failed |= verdict not in ("the same", "not deterministic")
            print(f"{name:8} {run:14} {row['tensors']:4} tensors  {row['sha256'][:32]}  {verdict}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
