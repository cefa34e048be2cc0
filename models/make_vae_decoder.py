#!/usr/bin/env python3
"""Makes the bundled model: the decoder of the SDXL image autoencoder, with weights that are computed instead of stored.

Needs torch, diffusers and onnx; `--check` needs onnxruntime besides. Nothing is downloaded. The bundled file was made with
torch 2.11.0, diffusers 0.42.1 and onnx 1.23.2 by

    python models/make_vae_decoder.py models/sdxl-vae-decoder.onnx --check

The graph is the real one: post_quant_conv and the decoder of diffusers' AutoencoderKL in SDXL's configuration, fp32, 49.5 million
parameters. What memory it asks for, in which order and for how long, is therefore that of the real model. The weights are not:
198 MB of them would be too much to bundle, and an allocator does not care what they say.

    input   latent  float32 [batch, 4, height, width]
    output  out     float32 [batch, 3, 8 * height, 8 * width]

Batch, height and width may change from run to run. A latent of 16 x 16 is an image of 128 x 128, one of 128 x 128 an image of
1024 x 1024.

Weights come from one table of numbers spread evenly over [-1, 1), which the model itself computes. Its element i is

    x = i * STEP mod M,   x = x * x mod M   (twice),   table[i] = float(x) * (2 / M) - 1

and each parameter larger than STORED_AT_MOST elements is a slice of the table, scaled, shifted where its mean is not zero, and
given its shape. All of this is standard nodes on constants. The integers are exact and each float step is rounded once, so every
runtime gets the same bits. ONNX Runtime folds the nodes into plain weights when it loads the model with its optimisations on (the
default). With them off, the weights are computed again in every run.
"""

import argparse
import math
import os
import zlib

# The model is built from its configuration alone.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnx
import torch
from diffusers import AutoencoderKL
from onnx import TensorProto, helper, numpy_helper

OPSET = 18

# A prime below 2^31, so that x * x fits in int64. It is 3 modulo 4, so squaring never merges two values that squaring can give:
# the second squaring mixes further and loses nothing.
M = 2**31 - 1

# Any step does that spreads successive elements over [0, M). Kept below 2^31 so that the end of the Range stays below 2^53: ONNX
# Runtime computes the length of a Range in double precision.
STEP = 1_640_531_527

# How many places in the table a parameter can start at: enough that two alike seldom start at the same one.
PLACES = 1 << 19

# Smaller parameters stay in the file: the nodes for them would take as much room as their bytes.
STORED_AT_MOST = 256


class Decoder(torch.nn.Module):
    """From a latent to an image: what AutoencoderKL.decode does, without its wrappers."""

    def __init__(self, channels):
        super().__init__()
        levels = len(channels)
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=channels,
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            act_fn="silu",
            norm_num_groups=32,
            sample_size=1024,
        )
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latent):
        return self.decoder(self.post_quant_conv(latent))


class Table:
    """The numbers that all weights are cut from."""

    def __init__(self, size):
        self.size = size
        x = np.arange(size, dtype=np.int64) * STEP % M
        for _ in range(2):
            x = x * x % M
        self.values = x.astype(np.float32) * np.float32(2.0 / M) - np.float32(1.0)

    def nodes(self):
        """The nodes that compute the values as `table`, and the constants they read."""
        assert self.size * STEP < 2**53
        constants = [
            numpy_helper.from_array(np.array(0, np.int64), "table/start"),
            numpy_helper.from_array(np.array(self.size * STEP, np.int64), "table/limit"),
            numpy_helper.from_array(np.array(STEP, np.int64), "table/step"),
            numpy_helper.from_array(np.array(M, np.int64), "table/M"),
            numpy_helper.from_array(np.array(2.0 / M, np.float32), "table/scale"),
            numpy_helper.from_array(np.array(1.0, np.float32), "table/one"),
        ]
        nodes = [
            helper.make_node("Range", ["table/start", "table/limit", "table/step"], ["table/0"]),
            helper.make_node("Mod", ["table/0", "table/M"], ["table/1"]),
            helper.make_node("Mul", ["table/1", "table/1"], ["table/2"]),
            helper.make_node("Mod", ["table/2", "table/M"], ["table/3"]),
            helper.make_node("Mul", ["table/3", "table/3"], ["table/4"]),
            helper.make_node("Mod", ["table/4", "table/M"], ["table/5"]),
            helper.make_node("Cast", ["table/5"], ["table/6"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["table/6", "table/scale"], ["table/7"]),
            helper.make_node("Sub", ["table/7", "table/one"], ["table"]),
        ]
        return nodes, constants


class Recipe:
    """How one parameter is cut from the table."""

    def __init__(self, name, shape, seed):
        self.name = name
        self.shape = list(shape)
        self.size = math.prod(shape)
        # The name picks the place, so that a parameter keeps its values when others come or go.
        self.start = zlib.crc32(f"{seed}/{name}".encode()) % PLACES
        self.centre = None
        if len(shape) > 1:
            # Uniform with variance 1 / fan-in. Every convolution but the first sees a normalised input, so this keeps
            # activations near 1 from end to end.
            half_width = math.sqrt(3.0 / math.prod(shape[1:]))
        else:
            half_width = 0.05
            if "norm" in name and name.endswith("weight"):
                self.centre = np.float32(1.0)
        self.half_width = np.float32(half_width)

    def values(self, table):
        x = table.values[self.start : self.start + self.size] * self.half_width
        if self.centre is not None:
            x = x + self.centre
        return x.reshape(self.shape)

    def nodes(self, output, shape, transposed):
        """The nodes that compute the values in `shape` as `output`, and the constants they read."""
        constants = [
            numpy_helper.from_array(np.array([self.start], np.int64), f"{output}/start"),
            numpy_helper.from_array(np.array([self.start + self.size], np.int64), f"{output}/end"),
            numpy_helper.from_array(self.half_width, f"{output}/half_width"),
        ]
        steps = [("Slice", ["table", f"{output}/start", f"{output}/end"], {}), ("Mul", [None, f"{output}/half_width"], {})]
        if self.centre is not None:
            constants.append(numpy_helper.from_array(self.centre, f"{output}/centre"))
            steps.append(("Add", [None, f"{output}/centre"], {}))
        if len(shape) > 1:
            constants.append(numpy_helper.from_array(np.array(shape, np.int64), f"{output}/shape"))
            steps.append(("Reshape", [None, f"{output}/shape"], {}))
        if transposed:
            steps.append(("Transpose", [None], {"perm": [1, 0]}))
        nodes, previous = [], None
        for k, (op, inputs, attributes) in enumerate(steps):
            result = output if k == len(steps) - 1 else f"{output}/{k}"
            nodes.append(helper.make_node(op, [previous if i is None else i for i in inputs], [result], **attributes))
            previous = result
        return nodes, constants


def export(model, path):
    """The model as torch writes it, weights stored. The example's sizes are unequal so that none is taken for another."""
    dim = torch.export.Dim
    free = {0: dim("batch", min=1, max=32), 2: dim("height", min=2, max=256), 3: dim("width", min=2, max=256)}
    with torch.no_grad():
        torch.onnx.export(
            model,
            (torch.randn(2, 4, 24, 40),),
            path,
            input_names=["latent"],
            output_names=["out"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=(free,),
        )
    return onnx.load(path)


def compute_weights(exported, table, recipes):
    """The same model with every large parameter replaced by its recipe, and without names, notes and shapes it can do without."""
    # The exporter renames, reshapes and transposes parameters. Their values tell which is which, since no two are alike.
    by_value = {}
    for recipe in recipes:
        values = recipe.values(table)
        by_value[values.tobytes()] = (recipe, False)
        if values.ndim == 2:
            by_value[values.T.tobytes()] = (recipe, True)

    nodes, constants = table.nodes()
    computed = 0
    for initializer in exported.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.size <= STORED_AT_MOST:
            constants.append(numpy_helper.from_array(array, initializer.name))
            continue
        recipe, transposed = by_value[array.tobytes()]
        made, read = recipe.nodes(initializer.name, recipe.shape if transposed else list(array.shape), transposed)
        nodes += made
        constants += read
        computed += 1

    for node in exported.graph.node:
        kept = onnx.NodeProto()
        kept.op_type, kept.domain, kept.name = node.op_type, node.domain, node.name
        kept.input.extend(node.input)
        kept.output.extend(node.output)
        kept.attribute.extend(node.attribute)
        nodes.append(kept)

    def plain(value):
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape)

    graph = helper.make_graph(
        nodes,
        "sdxl_vae_decoder",
        [plain(v) for v in exported.graph.input],
        [plain(v) for v in exported.graph.output],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=exported.ir_version, producer_name="make_vae_decoder.py"
    )
    onnx.checker.check_model(model, full_check=True)
    return model, computed


def check(model, path):
    """The file, run by ONNX Runtime, against the torch model with the same weights, at sizes the export did not see."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in [(1, 4, 16, 16), (2, 4, 8, 24)]:
        latent = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            want = model(latent).double().numpy()
        got = session.run(None, {"latent": latent.numpy()})[0]
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        print(f"check {shape}: output {got.shape}, std {got.std():.3f}, relative difference from torch {error:.1e}")
        if not error < 1e-4:
            raise SystemExit("the file does not compute what the torch model computes")


def main():
    parser = argparse.ArgumentParser(description="Make the SDXL VAE decoder as a small ONNX file whose weights are computed.")
    parser.add_argument("output", help="the .onnx file to write")
    parser.add_argument("--seed", type=int, default=0, help="other weights (default 0)")
    parser.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[128, 256, 512, 512],
        help="channels of each level, multiples of 32; fewer make a smaller model of the same shape (default: SDXL's)",
    )
    parser.add_argument("--check", action="store_true", help="run the file and compare it with the torch model")
    arguments = parser.parse_args()

    model = Decoder(tuple(arguments.channels)).eval()
    recipes = [Recipe(name, parameter.shape, arguments.seed) for name, parameter in model.named_parameters()]
    table = Table(max(recipe.size for recipe in recipes) + PLACES)
    for recipe, parameter in zip(recipes, model.parameters()):
        parameter.data = torch.from_numpy(recipe.values(table))

    exported = export(model, arguments.output)
    small, computed = compute_weights(exported, table, recipes)
    onnx.save(small, arguments.output)
    parameters = sum(recipe.size for recipe in recipes)
    print(
        f"{arguments.output}: {os.path.getsize(arguments.output)} bytes, {parameters} parameters in {len(recipes)} tensors, "
        f"{computed} of them computed, {len(exported.graph.node)} nodes of the model and "
        f"{len(small.graph.node) - len(exported.graph.node)} that make its weights"
    )
    if arguments.check:
        check(model, arguments.output)


if __name__ == "__main__":
    main()
