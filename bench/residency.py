#!/usr/bin/env python3
"""Measures what it takes to send models away from the GPU and to bring them back, beside what others do.

    pip install . diffusers transformers accelerate torch_memory_saver    # beside torch
    python3 bench/residency.py weights             # 8 GiB of fp16 weights, out and back, in each way there is
    python3 bench/residency.py images              # SDXL's parts under budgets
    python3 bench/residency.py burst               # one large image among small ones
    python3 bench/residency.py weights --way tilework --way pinned

Every run is a process of its own and a line of JSON. Models have public code and random weights. Needs a GPU.

`weights`, bytes over the seconds until the device is idle: `pinned` copies between tensors and pinned memory that is
there already, what the bus can do; `tilework` evicts and restores a group, kept in pinned memory, and `tilework-memory`
in ordinary memory; `to` is module.to("cpu") and back; `saver` is torch_memory_saver's pause and resume.
`images`: text encoders, UNet and VAE by turns, each managed. `excess` is an image's time beyond the median without a
budget, over the time that its bytes take on a bus of 55 GB/s. `constant` keeps copies on the host. `offload` is accelerate's cpu_offload_with_hook, as diffusers'
enable_model_cpu_offload does it.
`burst`: 512-pixel images with one of 2048 among them, under PyTorch's own allocators too, which take turns image by image so
that a slow minute of the machine falls on all alike; with Tilework `end_of_execution()` after each, timed by itself. Two
figures are of the small images before the large one and of those after it: `medians`, and `to_default`, the median of their times over those of
the default allocator's in the same turns.
"""

import argparse
import json
import statistics
import sys
import time

import turns
from allocators import torch_under

GIB = 1 << 30
BUS = 55e9
WEIGHTS = ["pinned", "tilework", "tilework-memory", "to", "saver"]
IMAGES = ["free", "budget", "constant", "spill", "offload"]


def timed(torch, body):
    torch.cuda.synchronize()
    began = time.perf_counter()
    body()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def used(torch):
    free, total = torch.cuda.mem_get_info()
    return total - free


def weights(way, rounds):
    if way.startswith("tilework"):
        import tilework.torch

        tilework.torch.enable()
    import torch

    torch.manual_seed(0)
    size = 8 * GIB

    def layers():
        make = lambda: torch.nn.Linear(8192, 8192, bias=False, dtype=torch.float16, device="cuda")  # noqa: E731
        return torch.nn.ModuleList([make() for _ in range(64)])

    if way == "pinned":
        module = layers()
        there = [weight.data for weight in module.parameters()]
        here = [torch.empty(weight.shape, dtype=weight.dtype, pin_memory=True) for weight in there]
        out = lambda: [a.copy_(b, non_blocking=True) for a, b in zip(here, there)]  # noqa: E731
        back = lambda: [b.copy_(a, non_blocking=True) for a, b in zip(here, there)]  # noqa: E731
    elif way.startswith("tilework"):
        tilework.torch.set_hosting(pinned=size + GIB if way == "tilework" else 0)
        group = tilework.torch.group("weights")
        with group:
            module = layers()
        out, back = group.evict, group.restore
    elif way == "to":
        module = layers()
        out = lambda: (module.to("cpu"), torch.cuda.empty_cache())  # noqa: E731
        back = lambda: module.to("cuda")  # noqa: E731
    else:
        from torch_memory_saver import torch_memory_saver as saver

        saver.hook_mode = "torch"
        with saver.region(tag="weights", enable_cpu_backup=True):
            module = layers()
        out, back = lambda: saver.pause("weights"), lambda: saver.resume("weights")

    def contents():
        return [weight.view(torch.int16).sum(dtype=torch.int64).item() for weight in module.parameters()]

    before = contents()
    held = used(torch)
    outs, backs, gone, right = [], [], [], []
    for _ in range(rounds):
        outs.append(timed(torch, out))
        gone.append(held - used(torch))
        backs.append(timed(torch, back))
        right.append(contents() == before)
    return {
        "way": way,
        "out_s": [round(s, 4) for s in outs],
        "back_s": [round(s, 4) for s in backs],
        "out_gb_per_s": [round(size / s / 1e9, 1) for s in outs],
        "back_gb_per_s": [round(size / s / 1e9, 1) for s in backs],
        "left_the_gpu_gib": [round(bytes / GIB, 2) for bytes in gone],
        "contents_right": all(right),
    }


def parts(torch):
    """SDXL's parts: for each what makes it on the GPU."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch_workloads import SDXL_UNET, built
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shapes = {
        CLIPTextModel: {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        CLIPTextModelWithProjection: {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "projection_dim": 1280,
        },
    }
    for kind, shape in shapes.items():
        yield lambda: built(torch, torch.float16, lambda: kind(CLIPTextConfig(vocab_size=49408, **shape)).eval())
    yield lambda: built(torch, torch.float16, lambda: UNet2DConditionModel(**SDXL_UNET).eval())
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 1024,
    }
    yield lambda: built(torch, torch.float32, lambda: AutoencoderKL(**vae).eval())


def image(torch, first, second, unet, vae, pixels, denoising, noise):
    """One image; `noise` seeds it."""
    random = torch.Generator("cuda").manual_seed(noise)
    tokens = torch.randint(0, 49408, (2, 77), device="cuda", generator=random)
    one = first(tokens, output_hidden_states=True).hidden_states[-2]
    two = second(tokens, output_hidden_states=True)
    prompt = torch.cat([one, two.hidden_states[-2]], dim=-1)
    times = torch.zeros(2, 6, device="cuda", dtype=torch.float16)
    extra = {"text_embeds": two.text_embeds, "time_ids": times}
    latent = torch.randn(1, 4, pixels // 8, pixels // 8, device="cuda", dtype=torch.float16, generator=random)
    for _ in range(denoising):
        both = torch.cat([latent, latent])
        without, towards = unet(both, 500, encoder_hidden_states=prompt, added_cond_kwargs=extra).sample.chunk(2)
        latent = latent + 0.01 * (without + 7 * (towards - without))
    del both, without, towards
    return vae.decode(latent.float()).sample.cpu()


def images(way, count):
    import tilework.torch

    if way != "offload":
        tilework.torch.enable()
    import torch

    torch.manual_seed(0)
    limits = {"budget": 6 * GIB, "constant": 6 * GIB, "spill": 4 * GIB}
    groups = []

    def managed(n, make):
        if way == "offload":
            return make().to("cpu")
        name = f"part {n}"
        with tilework.torch.group(name):
            module = make()
        groups.append(tilework.torch.manage(module, name, constant=way == "constant"))
        return module

    if way in limits:
        tilework.torch.set_hosting(pinned=8 * GIB)
        tilework.torch.set_limit(limits[way])
        tilework.torch.set_spill(way == "spill")
    with torch.inference_mode():
        made = [managed(n, make) for n, make in enumerate(parts(torch))]
        if way == "offload":
            from accelerate import cpu_offload_with_hook

            hook = None
            for module in made:
                module, hook = cpu_offload_with_hook(module, "cuda", prev_module_hook=hook)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds, moved, sums, spilled = [], [], [], 0
        for n in range(count):
            before = sum(group.stats()["bytes_in"] + group.stats()["bytes_out"] for group in groups)
            result = []
            seconds.append(timed(torch, lambda: result.append(image(torch, *made, 1024, 3, n))))
            after = sum(group.stats()["bytes_in"] + group.stats()["bytes_out"] for group in groups)
            moved.append(after - before)
            sums.append(result[0].double().sum().item())
            if groups:
                spilled = max(spilled, tilework.torch.stats()["spilled"])
    row = {"way": way, "seconds": [round(s, 3) for s in seconds], "sums": sums}
    if groups:
        figures = tilework.torch.stats()
        row.update(moved_gib=[round(bytes / GIB, 2) for bytes in moved], spilled_gib=round(spilled / GIB, 2))
        row.update(peak_held_gib=round(figures["peak_held"] / GIB, 3), peak_live_gib=round(figures["peak_live"] / GIB, 3))
        row.update(limit_gib=limits.get(way, 0) // GIB or None)
    else:
        row.update(peak_held_gib=round(torch.cuda.max_memory_reserved() / GIB, 3))
    return row


def burst(way, count):
    torch = torch_under(way)
    if way == "tilework":
        import tilework.torch
    torch.manual_seed(0)
    held, calls, ends, seconds = [], [], [], []
    with torch.inference_mode():
        made = [make() for make in parts(torch)]
        for n in range(count):
            turns.wait()
            pixels = 2048 if n == count // 3 else 512
            seconds.append(timed(torch, lambda: image(torch, *made, pixels, 2, n)))
            held.append(torch.cuda.memory_reserved())
            if way == "tilework":
                calls.append(tilework.torch.stats()["device_calls"])
                ends.append(timed(torch, tilework.torch.end_of_execution))
    row = {"way": way, "held_gib": [round(bytes / GIB, 3) for bytes in held], "seconds": [round(s, 4) for s in seconds]}
    row["end_to_before"] = round(held[-1] / held[count // 3 - 1], 4)
    if calls:
        row["end_of_execution_s"] = [round(s, 4) for s in ends]
        row["driver_calls"] = [calls[0], *(after - before for before, after in zip(calls, calls[1:]))]
    return row


def compared(rows):
    """What small images took after the large one and before it, beside the default allocator's of the same turns."""
    default = next((row["seconds"] for row in rows if row["way"] == "default" and "seconds" in row), None)
    for row in rows:
        if "seconds" not in row:
            continue
        seconds, at = row["seconds"], len(row["seconds"]) // 3
        before, after = seconds[3:at], seconds[at + 1 :]
        row["medians"] = [round(statistics.median(part), 4) for part in (before, after)]
        row["slowest_after_to_median"] = round(max(after) / statistics.median(before + after), 3)
        if default:
            to_default = [own / other for own, other in zip(seconds, default)]
            parts_of_it = to_default[3:at], to_default[at + 1 :]
            row["to_default"] = [round(statistics.median(part), 3) for part in parts_of_it]


WAYS = {"weights": WEIGHTS, "images": IMAGES, "burst": ["default", "expandable", "tilework"]}
COUNTS = {"weights": 4, "images": 5, "burst": 30}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--way", action="append", help="may be given several times")
    parser.add_argument("--count", type=int, help="rounds or images of each run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = options.count or COUNTS[options.what]
    if options.child:
        print(json.dumps({"what": options.what, **globals()[options.what](options.child, count)}))
        return 0
    ways = options.way or WAYS[options.what]
    if unknown := set(ways) - set(WAYS[options.what]):
        parser.error(f"unknown way {', '.join(sorted(unknown))}: {options.what} has {', '.join(WAYS[options.what])}")
    rows, failed = [], False
    commands = {way: [sys.executable, __file__, options.what, "--child", way, "--count", str(count)] for way in ways}
    run = turns.together if options.what == "burst" else turns.one_by_one
    for way, lines, code in run(commands):
        lines = [line for line in lines if line.startswith("{")]
        row = json.loads(lines[-1]) if lines else {"what": options.what, "way": way}
        if code:
            row["failed"] = f"ended with {code}"
        failed |= "failed" in row
        free = next((row for row in rows if row["way"] == "free" and "seconds" in row), None)
        if free and row.get("moved_gib"):
            base = statistics.median(free["seconds"][1:])
            excess = [(s - base) / (gib * GIB / BUS) for s, gib in zip(row["seconds"], row["moved_gib"]) if gib]
            row.update(excess=[round(e, 2) for e in excess], same_as_free=row["sums"] == free["sums"])
        rows.append(row)
        if options.what != "burst":
            print(json.dumps(row), flush=True)
    if options.what == "burst":
        compared(rows)
        print(*map(json.dumps, rows), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
