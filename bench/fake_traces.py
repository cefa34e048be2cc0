#!/usr/bin/env python3
"""Writes traces of PyTorch programs that no one has to run: what each would allocate, from fake tensors.

    pip install torch torchvision transformers diffusers   # all but torch only for the programs that name them
    python3 bench/fake_traces.py --list
    python3 bench/fake_traces.py unseen/                   # every program, one NAME.csv.gz each
    python3 bench/fake_traces.py unseen/ dit mamba         # these two
    python3 bench/replays.py unseen/*.csv.gz

A program runs under PyTorch's FakeTensorMode: tensors have shapes and no memory, so that no GPU and little memory is
needed. A storage is an allocation when an operator first returns it, and freed when its last owner lets go of it.
What an operator allocates and frees inside itself, such as a library's workspace, is not seen. Sizes are rounded up to
512 bytes, as PyTorch rounds them. Batches are drawn from --seed: the same seed and the same versions of the
libraries give the same trace.
"""
import argparse, gc, gzip, pathlib, random, sys, weakref

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

PROGRAMS = {}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


class Recorder(TorchDispatchMode):
    """Notes when the storages that operators return begin and end."""

    def __init__(self):
        super().__init__()
        self.events = []
        self.live = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        returned = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf.untyped_storage())
        return returned

    def note(self, storage):
        key, size = storage._cdata, (storage.nbytes() + 511) // 512 * 512
        if size == 0 or key in self.live:
            return
        self.live.add(key)
        block = len(self.events), size
        self.events.append(("alloc", *block))
        weakref.finalize(storage, self.end, key, block).atexit = False

    def end(self, key, block):
        self.live.remove(key)
        self.events.append(("free", *block))


def record(program, seed):
    """The events of a program, and its peak of live bytes."""
    recorder = Recorder()
    # What the program still holds at its end stays live in the trace, as in a process that goes on.
    with FakeTensorMode(allow_non_fake_inputs=True), recorder:
        held = program(random.Random(seed))
        gc.collect()
        events = list(recorder.events)
    live = peak = 0
    for op, _, size in events:
        live += size if op == "alloc" else -size
        peak = max(peak, live)
    del held
    return events, peak


def write(path, events):
    with gzip.open(path, "wt") as out:
        out.write("time_us,op,id,bytes,stream\n")
        for time, (op, block, size) in enumerate(events):
            out.write(f"{time},{op},{block},{size},0\n")


def typed(make, dtype=torch.bfloat16):
    """A model whose parameters are made in `dtype`."""
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


def train(model, loss, batches, optimizer=torch.optim.AdamW, **settings):
    """Steps of an optimizer; returns what stays live."""
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=1e-4, **settings)
    for batch in batches:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del batch
    return model, optimizer


def tokens(batch, length):
    return torch.zeros(batch, length, dtype=torch.long)


def next_token(model, ids):
    """The loss of a language model of `transformers`."""
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def classify(model, images):
    return F.cross_entropy(model(images).float(), torch.zeros(len(images), dtype=torch.long))


def squared(model, inputs):
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return getattr(out, "sample", out).float().square().mean()


# Programs of model code that others published.


@program
def convnext(draw):
    """torchvision ConvNeXt-B, training, batches of 24 to 48 images"""
    from torchvision.models import convnext_base

    return train(convnext_base(), classify, (torch.randn(draw.choice([24, 32, 48]), 3, 224, 224) for _ in range(6)))


@program
def swin(draw):
    """torchvision Swin-S, training, batches of 24 to 48 images"""
    from torchvision.models import swin_s

    return train(swin_s(), classify, (torch.randn(draw.choice([24, 37, 48]), 3, 224, 224) for _ in range(5)))


@program
def densenet(draw):
    """torchvision DenseNet-161, training with SGD, image heights of 224 to 320"""
    from torchvision.models import densenet161

    images = (torch.randn(draw.choice([16, 21, 32]), 3, draw.choice([224, 256, 320]), 224) for _ in range(4))
    return train(densenet161(), classify, images, torch.optim.SGD, momentum=0.9)


@program
def resnet(draw):
    """torchvision ResNet-152, inference, batches of 1 to 128 images of three sizes"""
    from torchvision.models import resnet152

    model = resnet152().eval()
    with torch.inference_mode():
        for _ in range(12):
            model(torch.randn(draw.choice([1, 8, 33, 64, 128]), 3, 224, draw.choice([224, 288, 384])))
    return model


@program
def vit(draw):
    """torchvision ViT-L/16 in half precision, inference, batches of 1 to 192 images"""
    from torchvision.models import vit_l_16

    model = typed(vit_l_16, torch.float16).eval()
    with torch.no_grad():
        for _ in range(24):
            model(torch.randn(draw.choice([1, 7, 32, 50, 96, 128, 192]), 3, 224, 224, dtype=torch.float16))
    return model


@program
def segment(draw):
    """torchvision DeepLabV3 with ResNet-101, training with SGD, images of many sizes"""
    from torchvision.models.segmentation import deeplabv3_resnet101

    def loss(model, images):
        labels = torch.zeros(len(images), *images.shape[2:], dtype=torch.long)
        return F.cross_entropy(model(images)["out"], labels)

    def images():
        height, width = draw.choice([(512, 512), (384, 640), (448, 576), (520, 520), (360, 480)])
        return torch.randn(draw.choice([4, 6, 8]), 3, height, width)

    model = deeplabv3_resnet101(weights=None, weights_backbone=None)
    return train(model, loss, (images() for _ in range(5)), torch.optim.SGD, momentum=0.9)


@program
def bert(draw):
    """transformers BERT-large, training, four pairs of batch and length"""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    shapes = [(16, 512), (32, 256), (48, 128), (11, 384)]
    loss = lambda model, ids: model(input_ids=ids, labels=ids).loss
    return train(BertForMaskedLM(config), loss, (tokens(*draw.choice(shapes)) for _ in range(6)))


@program
def gpt2(draw):
    """transformers GPT-2 large in bfloat16, training, four pairs of batch and length"""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = typed(lambda: GPT2LMHeadModel(GPT2Config(n_embd=1280, n_layer=36, n_head=20)))
    shapes = [(4, 1024), (8, 512), (5, 777), (16, 256)]
    return train(model, next_token, (tokens(*draw.choice(shapes)) for _ in range(6)))


def llama(width, layers):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 27 // 10,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=4,
    )
    return typed(lambda: LlamaForCausalLM(config))


@program
def lora(draw):
    """transformers Llama of 1.6 billion parameters in bfloat16, only its q and v projections trained"""
    model = llama(2560, 24)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name or "v_proj" in name)
    shapes = [(2, 2048), (4, 1024), (3, 1500), (8, 512)]
    return train(model, next_token, (tokens(*draw.choice(shapes)) for _ in range(6)))


@program
def llama_checkpoint(draw):
    """transformers Llama of 1.6 billion parameters in bfloat16, training with gradient checkpointing"""
    model = llama(2560, 24)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    shapes = [(8, 1024), (4, 2048), (6, 1100), (16, 512)]
    return train(model, next_token, (tokens(*draw.choice(shapes)) for _ in range(5)))


@program
def llama_decode(draw):
    """transformers Llama of 1.6 billion parameters, eight requests by turns, each with a key-value cache that grows by cat"""
    from transformers import DynamicCache

    model = llama(2560, 24).eval()
    requests = []
    with torch.no_grad():
        for _ in range(150):
            if len(requests) < 8 and draw.random() < 0.4:
                cache = DynamicCache()
                model(input_ids=tokens(1, draw.randint(40, 3000)), past_key_values=cache, logits_to_keep=1)
                requests.append((cache, draw.randint(8, 120)))
            if requests:
                cache, left = requests.pop(0)
                model(input_ids=tokens(1, 1), past_key_values=cache)
                requests += [(cache, left - 1)] if left else []
    return model, requests


@program
def t5(draw):
    """transformers T5-large in bfloat16, an encoder and a decoder, training on texts of many lengths"""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, decoder_start_token_id=0)
    model = typed(lambda: T5ForConditionalGeneration(config))
    loss = lambda model, pair: model(input_ids=pair[0], labels=pair[1], use_cache=False).loss

    def pair():
        batch = draw.choice([4, 8, 12])
        return tokens(batch, draw.randint(100, 512)), tokens(batch, draw.randint(20, 200))

    return train(model, loss, (pair() for _ in range(6)))


@program
def sd15(draw):
    """diffusers UNet of Stable Diffusion 1.5 in bfloat16, training, images of four shapes"""
    from diffusers import UNet2DConditionModel

    model = typed(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768))

    def batch():
        height, width = draw.choice([(64, 64), (96, 64), (48, 80), (64, 88)])
        images = draw.choice([2, 3, 4])
        return {
            "sample": torch.randn(images, 4, height, width, dtype=torch.bfloat16),
            "timestep": torch.tensor(10),
            "encoder_hidden_states": torch.randn(images, 77, 768, dtype=torch.bfloat16),
        }

    return train(model, squared, (batch() for _ in range(5)))


@program
def autoencoder(draw):
    """diffusers AutoencoderKL, training, images of three shapes"""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
    )

    def images():
        height, width = draw.choice([(256, 256), (192, 320), (224, 224)])
        return torch.randn(draw.choice([2, 3, 4]), 3, height, width)

    return train(model, squared, (images() for _ in range(4)))


# Programs whose models are defined here.


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(batch, length, width))


class DiffusionBlock(nn.Module):
    """A transformer block whose norms are shifted, scaled and gated by a condition."""

    def __init__(self, width, heads):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, condition):
        parts = self.condition(condition).unsqueeze(1).chunk(6, dim=2)
        for norm, inner, (shift, scale, gate) in zip(self.norms, (self.attention, self.mlp), (parts[:3], parts[3:])):
            x = x + gate * inner(norm(x) * (1 + scale) + shift)
        return x


class DiffusionTransformer(nn.Module):
    """DiT (Peebles and Xie, 2023): latents cut into patches, blocks conditioned on time."""

    def __init__(self, width=1152, depth=28, heads=16, channels=4, patch=2):
        super().__init__()
        self.cut = nn.Conv2d(channels, width, patch, patch)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DiffusionBlock(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, patch * patch * channels * 2)

    def forward(self, latents):
        x = self.cut(latents).flatten(2).transpose(1, 2)
        condition = self.time(torch.randn(len(latents), 256, dtype=latents.dtype))
        for block in self.blocks:
            x = block(x, condition)
        return self.out(x)


@program
def dit(draw):
    """DiT-XL/2 in bfloat16, training, latents of five shapes"""
    model = typed(DiffusionTransformer)

    def latents():
        height, width = draw.choice([(32, 32), (64, 64), (48, 64), (64, 40), (56, 56)])
        return torch.randn(draw.choice([2, 4, 6]), 4, height, width, dtype=torch.bfloat16)

    return train(model, squared, (latents() for _ in range(6)))


@program
def dit_sample(draw):
    """DiT-XL/2 in half precision, 10 steps of denoising for each of 8 requests of other shapes"""
    model = typed(DiffusionTransformer, torch.float16).eval()
    with torch.no_grad():
        for _ in range(8):
            height, width = draw.choice([(64, 64), (128, 128), (96, 128), (128, 80), (112, 112)])
            latents = torch.randn(2 * draw.choice([1, 2, 4]), 4, height, width, dtype=torch.float16)
            for _ in range(10):
                noise = model(latents).view(len(latents), -1)
                latents = latents - 0.1 * noise[:, : latents[0].numel()].reshape(latents.shape)
                del noise
    return model


class MambaBlock(nn.Module):
    """A selective state space (Gu and Dao, 2023), scanned in chunks."""

    def __init__(self, width, state=16, chunk=64):
        super().__init__()
        inner = 2 * width
        self.state, self.chunk = state, chunk
        self.norm = nn.LayerNorm(width)
        self.inp, self.out = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.select, self.step = nn.Linear(inner, 2 * state + width // 16), nn.Linear(width // 16, inner)
        self.decay = nn.Parameter(torch.randn(inner, state))

    def forward(self, x):
        length = x.shape[1]
        inner, gate = self.inp(self.norm(x)).chunk(2, dim=-1)
        inner = F.silu(self.conv(inner.transpose(1, 2))[..., :length].transpose(1, 2))
        b, c, step = self.select(inner).split([self.state, self.state, x.shape[2] // 16], dim=-1)
        step = F.softplus(self.step(step))
        state, outputs = torch.zeros_like(inner[:, 0, :, None].expand(-1, -1, self.state)), []
        for part in range(0, length, self.chunk):
            at = slice(part, part + self.chunk)
            decay = (step[:, at, :, None] * self.decay).cumsum(1)
            added = (step[:, at] * inner[:, at]).unsqueeze(-1) * b[:, at, None] * torch.exp(-decay)
            states = torch.exp(decay) * (state.unsqueeze(1) + added.cumsum(1))
            outputs.append((states * c[:, at, None]).sum(-1))
            state = states[:, -1]
        return x + self.out(torch.cat(outputs, 1) * F.silu(gate))


@program
def mamba(draw):
    """Mamba of 370 million parameters, training in float32, texts of many lengths"""
    width = 1024
    model = nn.Sequential(
        nn.Embedding(50280, width),
        *(MambaBlock(width) for _ in range(12)),
        nn.LayerNorm(width),
        nn.Linear(width, 50280, bias=False),
    )
    loss = lambda model, ids: F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    return train(model, loss, (tokens(draw.choice([1, 2, 3]), draw.randint(100, 600)) for _ in range(5)))


class Twice(nn.Sequential):
    """Two convolutions, each normed."""

    def __init__(self, inp, out):
        layers = [[nn.Conv2d(n, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(True)] for n in (inp, out)]
        super().__init__(*sum(layers, []))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with padding and norms."""

    def __init__(self, classes=21, widths=(64, 128, 256, 512, 1024)):
        super().__init__()
        self.down = nn.ModuleList(Twice(a, b) for a, b in zip((3, *widths), widths))
        pairs = list(zip(widths[::-1], widths[-2::-1]))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(Twice(a, b) for a, b in pairs)
        self.out = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        kept = []
        for level, twice in enumerate(self.down):
            x = twice(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        kept.pop()
        for rise, twice in zip(self.rise, self.up):
            x = twice(torch.cat([kept.pop(), rise(x)], 1))
        return self.out(x)


@program
def unet(draw):
    """U-Net for segmentation, training with SGD, images of five sizes"""

    def loss(model, images):
        return F.cross_entropy(model(images), torch.zeros(len(images), *images.shape[2:], dtype=torch.long))

    def images():
        height, width = draw.choice([(512, 512), (384, 640), (448, 576), (256, 256), (320, 480)])
        return torch.randn(draw.choice([2, 4, 5]), 3, height, width)

    return train(UNet(), loss, (images() for _ in range(6)), torch.optim.SGD, momentum=0.9)


class GraphNet(nn.Module):
    """Messages along edges, summed at their ends."""

    def __init__(self, width=256, layers=8):
        super().__init__()
        self.inp, self.out = nn.Linear(100, width), nn.Linear(width, 47)
        self.message = nn.ModuleList(nn.Sequential(nn.Linear(2 * width, width), nn.ReLU()) for _ in range(layers))
        self.update = nn.ModuleList(nn.GRUCell(width, width) for _ in range(layers))

    def forward(self, nodes, source, target):
        x = self.inp(nodes)
        for message, update in zip(self.message, self.update):
            sent = message(torch.cat([x[source], x[target]], 1))
            x = update(torch.zeros_like(x).index_add(0, target, sent), x)
        return self.out(x)


@program
def graph(draw):
    """a message-passing network, training on sampled graphs, none of the size of another"""

    def loss(model, batch):
        return F.cross_entropy(model(*batch), torch.zeros(len(batch[0]), dtype=torch.long))

    def batch():
        nodes = draw.randint(20_000, 60_000)
        edges = nodes * draw.randint(4, 9) + draw.randint(0, nodes)
        return torch.randn(nodes, 100), tokens(1, edges)[0], tokens(1, edges)[0]

    return train(GraphNet(), loss, (batch() for _ in range(8)))


@program
def lstm(draw):
    """an LSTM by cells over texts of many lengths, checkpointed every 32 steps, training"""
    cells = nn.ModuleList([nn.LSTMCell(1024, 1024) for _ in range(2)])
    model = nn.ModuleDict({"embed": nn.Embedding(32000, 1024), "cells": cells, "out": nn.Linear(1024, 32000)})

    def stretch(x, *state):
        state, outputs = [state[:2], state[2:]], []
        for at in range(x.shape[1]):
            state[0] = model["cells"][0](x[:, at], state[0])
            state[1] = model["cells"][1](state[0][0], state[1])
            outputs.append(state[1][0])
        return torch.stack(outputs, 1), *state[0], *state[1]

    def loss(model, ids):
        x, state, total = model["embed"](ids), [torch.zeros(len(ids), 1024) for _ in range(4)], 0
        for part in range(0, ids.shape[1], 32):
            at = slice(part, part + 32)
            out, *state = checkpoint(stretch, x[:, at], *state, use_reentrant=False)
            total = total + F.cross_entropy(model["out"](out).flatten(0, 1), ids[:, at].flatten(), reduction="sum")
        return total

    return train(model, loss, (tokens(draw.choice([16, 48, 64]), draw.randint(90, 300)) for _ in range(5)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="where the traces go; made if it is not there")
    parser.add_argument("programs", nargs="*", metavar="program", help="all of --list unless some are named")
    parser.add_argument("--seed", type=int, default=7, help="of the batches (default 7)")
    parser.add_argument("--list", action="store_true", help="say which programs there are")
    options = parser.parse_args()
    if options.list:
        for name, function in PROGRAMS.items():
            print(f"{name:17} {function.__doc__}")
        return
    if options.folder is None:
        parser.error("name a folder for the traces, or --list")
    if unknown := set(options.programs) - PROGRAMS.keys():
        parser.error(f"no program {', '.join(sorted(unknown))}; --list names them")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.programs or PROGRAMS:
        events, peak = record(PROGRAMS[name], options.seed)
        write(options.folder / f"{name}.csv.gz", events)
        print(f"{name:17} {len(events):7} events, {peak / 2**20:8.0f} MiB live at the peak", flush=True)


if __name__ == "__main__":
    sys.exit(main())
