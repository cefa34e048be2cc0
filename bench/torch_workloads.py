#!/usr/bin/env python3
"""Measures memory and time of whole models in PyTorch under one allocator after the other.

    pip install . diffusers transformers           # Tilework's wheel and the models' code, beside torch
    python3 bench/torch_workloads.py               # every workload under every allocator, three times each
    python3 bench/torch_workloads.py --workload train --allocator tilework --allocator expandable --repeats 5

The models have public code and random weights. Every run is a process of its own and a line of JSON: peak live
and peak held bytes by the allocator's own counters (`live`, `held`; none for cudaMallocAsync's), by which the
GPU's free memory fell at the worst (`device`, sampled at the end of every step, with the context and libraries
of the process in it), the first step's time, and the median of the others with their spread. Under Tilework, too:
the driver's calls in each step, with those of making the model in the first, and the time in all of them. Runs of one
workload take turns, so that a slow minute of the machine does not fall on one allocator. Needs a GPU.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

ALLOCATORS = ["default", "expandable", "async", "tilework"]
WORKLOADS = {}


def workload(function):
    WORKLOADS[function.__name__] = function
    return function


class Steps:
    """Times steps and watches the GPU's free memory at their ends."""

    def __init__(self, torch):
        self.torch, self.seconds, self.calls = torch, [], []
        torch.cuda.synchronize()
        self.free_before = self.lowest = torch.cuda.mem_get_info()[0]

    def __call__(self, count):
        for n in range(count):
            self.torch.cuda.synchronize()
            began = time.perf_counter()
            yield n
            self.torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - began)
            self.calls.append(self.driver_calls())
            self.look()

    def driver_calls(self):
        """Calls to the driver so far, and the seconds in them, where the allocator is Tilework."""
        if "tilework.torch" not in sys.modules:
            return None
        stats = sys.modules["tilework.torch"].stats()
        return stats["device_calls"], stats["device_ns"] / 1e9

    def look(self):
        self.lowest = min(self.lowest, self.torch.cuda.mem_get_info()[0])


def built(torch, dtype, make):
    """A module with random weights of this type, made on the GPU."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            return make()
    finally:
        torch.set_default_dtype(torch.float32)


# The UNet of SDXL.
SDXL_UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def images(torch, steps, sizes, denoising):
    """SDXL's UNet with guidance, then its VAE's decoder, for images of these sizes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = built(torch, torch.float16, lambda: UNet2DConditionModel(**SDXL_UNET).eval())
    vae = built(
        torch,
        torch.float32,
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=1024,
        ).eval(),
    )

    def half(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.float16)

    with torch.inference_mode():
        for n in steps(len(sizes)):
            height, width = sizes[n]
            latent, prompt = half(1, 4, height // 8, width // 8), half(2, 77, 2048)
            extra = {"text_embeds": half(2, 1280), "time_ids": half(2, 6)}
            for _ in range(denoising):
                both = torch.cat([latent, latent])
                noise = unet(both, 500, encoder_hidden_states=prompt, added_cond_kwargs=extra).sample
                without, towards = noise.chunk(2)
                latent = latent + 0.01 * (without + 7 * (towards - without))
                steps.look()
            del both, noise, without, towards
            decoded = vae.decode(latent.float()).sample
            steps.look()
            decoded.cpu()
            del decoded


@workload
def sdxl(torch, steps):
    """three images at 1024 x 1024"""
    images(torch, steps, [(1024, 1024)] * 3, denoising=3)


@workload
def sdxl_mixed(torch, steps):
    """eight images of seven sizes"""
    sizes = [(1024, 1024), (768, 768), (1216, 832), (640, 1536), (896, 1152), (512, 512), (1344, 768), (1024, 1024)]
    images(torch, steps, sizes, denoising=2)


def llama(torch, dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=8192,
    )
    return built(torch, dtype, lambda: LlamaForCausalLM(config))


@workload
def train(torch, steps):
    """24 steps of AdamW on a Llama of 1.0 B, checkpointed, batches of varying length"""
    rng, model = random.Random(0), llama(torch, torch.bfloat16)
    model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _ in steps(24):
        length = rng.choice([256, 512, 777, 1024, 1536, 2048, 3001, 4096])
        batch = max(1, min(16, 16_384 // length - rng.randrange(3)))
        tokens = torch.randint(0, 32_000, (batch, length), device="cuda")
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        steps.look()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del loss, tokens


@workload
def serve(torch, steps):
    """60 requests to a Llama of 1.0 B: a prompt, then six tokens, with a cache"""
    rng, model = random.Random(1), llama(torch, torch.float16).eval()
    with torch.inference_mode():
        for _ in steps(60):
            tokens = torch.randint(0, 32_000, (rng.choice([1, 2, 4, 8]), rng.randrange(64, 4000)), device="cuda")
            answer = model(input_ids=tokens, use_cache=True)
            for _ in range(6):
                last = answer.logits[:, -1:].argmax(-1)
                answer = model(input_ids=last, past_key_values=answer.past_key_values, use_cache=True)
            steps.look()
            del answer, last, tokens


def child(name, allocator, trace):
    settings = {"expandable": "expandable_segments:True", "async": "backend:cudaMallocAsync"}
    if allocator in settings:
        # The second is the name since PyTorch 2.9.
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = settings[allocator]
    import torch

    if allocator == "tilework":
        import tilework.torch

        tilework.torch.enable(record=trace)
    torch.manual_seed(0)
    torch.zeros(1, device="cuda")
    steps = Steps(torch)
    row = {"workload": name, "allocator": allocator, "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    try:
        WORKLOADS[name](torch, steps)
    except torch.OutOfMemoryError as error:
        row["failed"] = str(error).splitlines()[0]
    stats = torch.cuda.memory_stats()
    live, held = stats.get("allocated_bytes.all.peak"), stats.get("reserved_bytes.all.peak")
    row.update(live=live, held=held, held_to_live=round(held / live, 4) if live and held else None)
    # Requested, where an allocator rounds what it calls allocated.
    row.update(requested=stats.get("requested_bytes.all.peak"), device=steps.free_before - steps.lowest)
    row["allocations"] = stats.get("allocation.all.allocated")
    if allocator == "tilework":
        counts = [count for count, _ in steps.calls]
        row["driver_calls_by_step"] = [b - a for a, b in zip([0, *counts], counts)]
        row["driver_s"] = steps.calls[-1][1]
    first, *later = steps.seconds or [None]
    row["first_s"] = first
    if later:
        row.update(median_s=statistics.median(later), total_s=sum(later))
        row.update(fastest_s=min(later), slowest_s=max(later))
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=sorted(WORKLOADS), help="may be given several times")
    parser.add_argument("--allocator", action="append", choices=ALLOCATORS, help="may be given several times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", metavar="TRACE", help="record the run, of one workload under tilework, once")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child, options.record)
    allocators, names = options.allocator or ALLOCATORS, options.workload or list(WORKLOADS)
    if options.record and (allocators != ["tilework"] or len(names) != 1 or options.repeats != 1):
        parser.error("--record goes with one --workload, --allocator tilework and --repeats 1")
    failed = False
    for name in names:
        for repeat in range(options.repeats):
            # Each round begins with another, so that none always comes after the same.
            for at in range(len(allocators)):
                allocator = allocators[(at + repeat) % len(allocators)]
                command = [sys.executable, __file__, "--child", name, allocator]
                command += ["--record", options.record] if options.record else []
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                rows = [line for line in run.stdout.splitlines() if line.startswith("{")]
                row = json.loads(rows[-1]) if rows else {"workload": name, "allocator": allocator}
                if run.returncode:
                    row["failed"] = f"ended with {run.returncode}"
                failed |= "failed" in row
                print(json.dumps({**row, "repeat": repeat}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
