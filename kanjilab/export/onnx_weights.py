"""Weights of an ONNX model stored in fewer bytes; the model computes in fp32 all the same.

A weight that is stored in another form is followed by the nodes that make fp32 of it. A runtime computes these once,
when it loads the model.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

WEIGHTS = ("fp32", "fp16", "int8")
FEWEST_NUMBERS = 1024  # of a weight; smaller ones stay fp32
GROUP = 32  # numbers that share a scale
INT8_MAX = 127


def store_weights(model: "onnx.ModelProto", weights: str) -> None:
    """Changes how a model's weights are stored, in place.

    Args:
        model: with fp32 weights.
        weights: one of `WEIGHTS`: fp32 leaves them, fp16 halves them, int8 has 8 bits and an fp16 scale of every 32.
    """
    from onnx import TensorProto, numpy_helper

    if weights == "fp32":
        return
    kept, nodes = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < FEWEST_NUMBERS:
            kept.append(tensor)
            continue
        values = numpy_helper.to_array(tensor)
        grouped = weights == "int8" and values.size % GROUP == 0
        arrays, needed = (_int8 if grouped else _fp16)(tensor.name, values)
        kept += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        nodes += needed
    rest = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes + rest)


def _cast(source: str, target: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT)


def _fp16(name: str, values: np.ndarray) -> tuple[dict[str, np.ndarray], list[Any]]:
    """What is stored, by name, and the nodes that give the weight its own name again."""
    return {f"{name}.fp16": values.astype(np.float16)}, [_cast(f"{name}.fp16", name)]


def _int8(name: str, values: np.ndarray) -> tuple[dict[str, np.ndarray], list[Any]]:
    """As `_fp16`."""
    from onnx import helper

    groups = values.reshape(-1, GROUP)
    scale = np.maximum(np.abs(groups).max(1, keepdims=True) / INT8_MAX, np.finfo(np.float16).tiny).astype(np.float16)
    rounded = np.clip(np.round(groups / scale.astype(np.float32)), -INT8_MAX, INT8_MAX).astype(np.int8)
    stored = {f"{name}.int8": rounded, f"{name}.scale": scale, f"{name}.shape": np.array(values.shape, np.int64)}
    nodes = [
        _cast(f"{name}.int8", f"{name}.whole"),
        _cast(f"{name}.scale", f"{name}.factor"),
        helper.make_node("Mul", [f"{name}.whole", f"{name}.factor"], [f"{name}.groups"]),
        helper.make_node("Reshape", [f"{name}.groups", f"{name}.shape"], [name]),
    ]
    return stored, nodes
