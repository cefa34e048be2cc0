"""Makes the models of these tests: small, with fixed weights. Needs the Python package onnx.

  python3 make_models.py        writes conv.onnx and types.onnx beside this file
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent


def save(name, graph):
    # An old IR and opset, so that every supported ONNX Runtime reads them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, HERE / name)


def conv():
    """Four 3x3 convolutions of 8 channels with activations between them; the picture's size is open."""
    rng = np.random.default_rng(0)
    nodes, weights, value, channels = [], [], "x", 3
    for i in range(4):
        weight = (rng.standard_normal((8, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Softplus", [f"c{i}"], [f"s{i}"]))
        value, channels = f"s{i}", 8
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    save(
        "conv.onnx",
        helper.make_graph(
            nodes,
            "conv",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "H", "W"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, "H", "W"])],
            weights,
        ),
    )


def types():
    """Every supported type through an operator that keeps it, and one output that is no tensor of numbers."""
    kinds = ["FLOAT", "FLOAT16", "DOUBLE", "INT8", "INT16", "INT32", "INT64"]
    kinds += ["UINT8", "UINT16", "UINT32", "UINT64", "BOOL"]
    nodes, inputs, outputs = [], [], []
    for kind in kinds:
        code = getattr(TensorProto, kind)
        inputs.append(helper.make_tensor_value_info(f"in_{kind.lower()}", code, [2, "N"]))
        outputs.append(helper.make_tensor_value_info(f"out_{kind.lower()}", code, ["N", 2]))
        nodes.append(helper.make_node("Transpose", [inputs[-1].name], [outputs[-1].name], perm=[1, 0]))
    save("types.onnx", helper.make_graph(nodes, "types", inputs, outputs))


conv()
types()
