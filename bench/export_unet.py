#!/usr/bin/env python3
"""Makes an ONNX model of SDXL's UNet, in half precision and with random weights.

    pip install torch diffusers onnx onnxscript    # for the graph; the weights need numpy and onnx only
    python3 bench/export_unet.py unet/model.onnx   # two images of 768 x 768; 4.8 GiB of weights beside the file

The architecture is the public model's; nothing is downloaded, and no GPU is needed. The weights are drawn from a
seed: normalisations of ones and zeros, biases of zeros, the others spread as PyTorch spreads them. `--only graph` writes a file of
some megabytes without them, `--only weights` draws those of such a file.
"""

import argparse
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAMES = ["sample", "timestep", "prompt", "text_embeds", "time_ids"]
# What the names of parameters begin with.
PARAMETERS = "unet."
# Offsets of weights in their file are multiples of it, so that a runtime can map them.
PAGE = 4096


def arguments(torch, batch, pixels):
    """What the model is called with, under the names above."""

    def half(*shape):
        return torch.zeros(*shape, dtype=torch.float16)

    # The embeddings of sizes are computed in single precision and meet the text's in one Concat.
    text, sizes = torch.zeros(batch, 1280), torch.zeros(batch, 6)
    return half(batch, 4, pixels // 8, pixels // 8), half(1), half(batch, 77, 2048), text, sizes


def graph(options):
    """Writes the model, with the places of weights that are not there yet."""
    import onnx_ir
    import torch
    from diffusers import UNet2DConditionModel
    from torch_workloads import SDXL_UNET

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET).eval()
    # Memory that nobody writes to, but for the layers whose parameters the exporter makes constants.
    unet = unet.to(torch.float16).to_empty(device="cpu")
    for module in unet.modules():
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            module.reset_parameters()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, sample, timestep, prompt, text_embeds, time_ids):
            extra = {"text_embeds": text_embeds, "time_ids": time_ids}
            return self.unet(sample, timestep, prompt, added_cond_kwargs=extra, return_dict=False)[0]

    with torch.no_grad():
        program = torch.onnx.export(
            Model().eval(),
            arguments(torch, options.batch, options.pixels),
            input_names=NAMES,
            output_names=["noise"],
            opset_version=18,
            dynamo=True,
        )
    at = 0
    for value in program.model.graph.initializers.values():
        tensor = value.const_value
        if not is_weight(value.name, tensor.shape):
            continue
        value.const_value = onnx_ir.ExternalTensor(
            options.model.name + ".data",
            at,
            tensor.nbytes,
            tensor.dtype,
            shape=onnx_ir.Shape(tensor.shape),
            name=value.name,
            base_dir=options.model.parent,
        )
        at += -(-tensor.nbytes // PAGE) * PAGE
    agree(program.model.graph, onnx_ir)
    options.model.parent.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(program.model, options.model)
    print(f"{options.model}: {at / 2**20:.0f} MiB of weights to come", file=sys.stderr)


def is_weight(name, shape):
    """Whether a constant is a parameter of the model, under its own name or, transposed, under the exporter's."""
    return name.startswith(PARAMETERS) or len(shape) == 2 and min(shape) > 32


def agree(nodes, onnx_ir):
    """Casts the inputs of each Concat to the type of its output: ONNX asks for one type, and the exporter does not."""
    for node in list(nodes):
        wanted = node.outputs[0].dtype
        if node.op_type == "Concat" and any(value.dtype != wanted for value in node.inputs):
            for at, value in enumerate(node.inputs):
                if value.dtype != wanted:
                    cast = onnx_ir.node("Cast", [value], {"to": wanted.value})
                    cast.outputs[0].dtype = wanted
                    nodes.insert_before(node, cast)
                    node.replace_input_with(at, cast.outputs[0])


def weights(options):
    """Draws the weights of a graph."""
    import numpy as np
    import onnx

    model = onnx.load(options.model, load_external_data=False)
    tensors = []
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            tensors.append((tensor.name, tuple(tensor.dims), int(place["offset"]), int(place["length"])))
    path = options.model.with_name(options.model.name + ".data")
    with open(path, "wb") as file:
        file.truncate(max(offset + length for *_, offset, length in tensors))
    file = np.memmap(path, dtype=np.uint8, mode="r+")

    def draw(number):
        name, shape, offset, length = tensors[number]
        out = file[offset : offset + length].view(np.float16)
        if name.endswith(".bias") or len(shape) == 1:
            out[:] = 0 if name.endswith(".bias") else 1
            return
        inputs = math.prod(shape[1:]) if name.startswith(PARAMETERS) else shape[0]
        bound = np.float32(1 / math.sqrt(inputs))
        rng = np.random.default_rng([options.seed, number])
        for begin in range(0, out.size, 1 << 20):
            part = out[begin : begin + (1 << 20)]
            part[:] = (rng.random(part.size, dtype=np.float32) * 2 - 1) * bound

    with ThreadPoolExecutor() as pool:
        list(pool.map(draw, range(len(tensors))))
    print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB, {len(tensors)} tensors", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--pixels", type=int, default=768)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["graph", "weights"])
    options = parser.parse_args()
    for part in (graph, weights):
        if options.only in (None, part.__name__):
            part(options)


if __name__ == "__main__":
    main()
