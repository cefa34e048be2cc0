#!/usr/bin/env python3
"""Measures memory and time of whole models in PyTorch under one allocator after the other.

    pip install . diffusers transformers           # Tilework's wheel and the models' code, beside torch
    python3 bench/torch_workloads.py               # every workload under every allocator, three times each
    python3 bench/torch_workloads.py --workload train --allocator tilework --allocator expandable --repeats 5
    python3 bench/torch_workloads.py --together --steps 12 > rows.jsonl
    python3 bench/torch_workloads.py --table rows.jsonl

The models have public code and random weights. Every run is a process of its own and a line of JSON: peak live
and peak held bytes by the allocator's own counters (`live`, `held`; none for cudaMallocAsync's), by which the
GPU's free memory fell at the worst (`device`, sampled at the end of every step, with the context and libraries
of the process in it), the first step's time, and the median of the others with their spread. Under Tilework, too:
the driver's calls in each step, with those of making the model in the first, and the time in all of them. Runs of one
workload follow each other in turn. With `--together` they all live at once and take turns step by step, so that a slow
second of the machine falls on all alike; `device` is not measured then, and the GPU's memory must suffice for all. `--table`
makes a table of rows. Needs a GPU.
"""

import argparse
import json
import random
import statistics
import sys
import time

import turns
from allocators import torch_under

ALLOCATORS = ["default", "expandable", "async", "tilework"]
WORKLOADS = {}


def workload(function):
    WORKLOADS[function.__name__] = function
    return function


class Steps:
    """Times steps and watches the GPU's free memory at their ends."""

    def __init__(self, torch, steps=None, turn=lambda: None):
        self.torch, self.seconds, self.calls = torch, [], []
        # How many, if not as many as the workload has, and what waits before each.
        self.steps, self.turn = steps, turn
        torch.cuda.synchronize()
        self.free_before = self.lowest = torch.cuda.mem_get_info()[0]

    def __call__(self, count):
        for n in range(self.steps or count):
            self.turn()
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

    def see(self, result):
        """Does with a result what a program does: fetches it."""
        result.cpu()

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
            height, width = sizes[n % len(sizes)]
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
            steps.see(decoded)
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


def child(name, allocator, trace, count, together):
    torch = torch_under(allocator, record=trace)
    torch.manual_seed(0)
    torch.zeros(1, device="cuda")
    steps = Steps(torch, count, turns.wait if together else lambda: None)
    row = {"workload": name, "allocator": allocator, "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    try:
        WORKLOADS[name](torch, steps)
    except torch.OutOfMemoryError as error:
        row["failed"] = str(error).splitlines()[0]
    stats = torch.cuda.memory_stats()
    live, held = stats.get("allocated_bytes.all.peak"), stats.get("reserved_bytes.all.peak")
    row.update(live=live, held=held, held_to_live=round(held / live, 4) if live and held else None)
    # Requested, where an allocator rounds what it calls allocated.
    row.update(requested=stats.get("requested_bytes.all.peak"))
    if not together:
        row["device"] = steps.free_before - steps.lowest
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
    row["step_s"] = [round(s, 5) for s in steps.seconds]
    print(json.dumps(row), flush=True)


def table(rows):
    """Prints a table of rows, and how Tilework's steps compare with those of the others."""
    groups = {}
    for row in rows:
        if "failed" not in row and "step_s" in row:
            groups.setdefault((row["workload"], row["allocator"]), []).append(row)
    columns = ["workload", "allocator", "runs", "peak live MiB", "peak held MiB", "held/live", "first step, s"]
    columns += ["later steps, s: quartiles", "medians of the runs, s"]
    print("|", " | ".join(columns), "|")
    print("|" + "---|" * len(columns))
    later, mib = {}, 1 << 20
    for (workload, allocator), runs in groups.items():
        each = [run["step_s"][1:] for run in runs]
        later[workload, allocator] = {(run["repeat"], n): s for run, steps in zip(runs, each) for n, s in enumerate(steps)}
        held = max(run["held"] or 0 for run in runs)
        # Requested bytes are the same under all; what an allocator calls allocated may be rounded.
        live = max(run["requested"] or run["live"] or 0 for run in runs)
        medians = sorted(statistics.median(steps) for steps in each)
        firsts = sorted(run["first_s"] for run in runs)
        quartiles = statistics.quantiles([s for steps in each for s in steps], n=4)
        cells = [workload, allocator, len(runs), f"{live / mib:,.0f}", f"{held / mib:,.0f}" if held else "-"]
        cells += [f"{held / live:.4f}" if held and live else "-", ", ".join(f"{s:.3f}" for s in firsts)]
        cells += [" / ".join(f"{s:.4f}" for s in quartiles), ", ".join(f"{s:.4f}" for s in medians)]
        print("|", " | ".join(map(str, cells)), "|")
    print()
    for workload in dict.fromkeys(workload for workload, _ in groups):
        ours = later.get((workload, "tilework"))
        others = {a: steps for (w, a), steps in later.items() if w == workload and a != "tilework"}
        if not ours or not others:
            continue
        for name, theirs in others.items():
            ratio = statistics.median(ours.values()) / statistics.median(theirs.values())
            pairs = [ours[key] / theirs[key] for key in ours if key in theirs]
            quartiles = " / ".join(f"{q:.3f}" for q in statistics.quantiles(pairs, n=4))
            print(f"* {workload}: Tilework's median step is {ratio:.3f} of {name}'s; step by step {quartiles} (quartiles)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=sorted(WORKLOADS), help="may be given several times")
    parser.add_argument("--allocator", action="append", choices=ALLOCATORS, help="may be given several times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", metavar="TRACE", help="record the run, of one workload under tilework, once")
    parser.add_argument("--steps", type=int, help="steps of each run, in place of the workload's own number")
    parser.add_argument("--together", action="store_true", help="let all runs of a workload live at once and take turns")
    parser.add_argument("--table", metavar="ROWS", help="print what such a file of rows says, and run nothing")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child, options.record, options.steps, options.together)
    if options.table:
        with open(options.table) as lines:
            return table([json.loads(line) for line in lines if line.startswith("{")])
    allocators, names = options.allocator or ALLOCATORS, options.workload or list(WORKLOADS)
    if options.record and (allocators != ["tilework"] or len(names) != 1 or options.repeats != 1):
        parser.error("--record goes with one --workload, --allocator tilework and --repeats 1")
    failed = False
    for name in names:
        runs = {}
        for repeat in range(options.repeats):
            # Each round begins with another, so that none always comes after the same.
            for at in range(len(allocators)):
                allocator = allocators[(at + repeat) % len(allocators)]
                command = [sys.executable, __file__, "--child", name, allocator]
                command += ["--record", options.record] if options.record else []
                command += ["--steps", str(options.steps)] if options.steps else []
                command += ["--together"] if options.together else []
                runs[repeat, allocator] = command
        for (repeat, allocator), lines, code in (turns.together if options.together else turns.one_by_one)(runs):
            rows = [line for line in lines if line.startswith("{")]
            row = json.loads(rows[-1]) if rows else {"workload": name, "allocator": allocator}
            if code:
                row["failed"] = f"ended with {code}"
            failed |= "failed" in row
            print(json.dumps({**row, "repeat": repeat, "together": options.together}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
