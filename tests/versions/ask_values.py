"""Whether the onnxruntime that is first on the path computes what some attributes' values ask for; prints JSON.

python ask_values.py VERSION        "DOMAIN:OP:ATTRIBUTE=VALUE" → whether a small graph with it runs and is right

A schema lists attributes, not their values: a kernel that has "bits" may take 4 alone, and says so when it is run.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_MICROSOFT = "com.microsoft"
_ROWS, _COLUMNS, _BLOCK = 4, 64, 32


def main() -> None:
    (version,) = sys.argv[1:]
    assert onnxruntime.__version__ == version, f"{onnxruntime.__version__} is on the path, not {version}"
    found = {f"{_MICROSOFT}:MatMulNBits:bits={bits}": is_right(*product(bits)) for bits in (2, 4, 8)}
    found |= {f"{_MICROSOFT}:GatherBlockQuantized:bits={bits}": is_right(*rows(bits)) for bits in (4, 8)}
    print(json.dumps(found))


def is_right(nodes: list[Any], weights: dict[str, Any], feeds: dict[str, Any], expected: Any) -> bool:
    """Run a graph, and compare."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))
        for name, array in feeds.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(expected.shape))
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "one", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(_MICROSOFT, 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        content = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, feeds)
    except Exception:  # onnxruntime's errors have no common class below Exception
        return False
    return bool(np.allclose(found, expected, atol=2e-2 * np.abs(expected).max()))


def stored(bits: int) -> tuple[Any, Any, Any]:
    """Weights (N, K), the bytes that hold them (N, K · bits / 8), and their scales (N, blocks)."""
    random = np.random.default_rng(0)
    whole = random.integers(0, 1 << bits, (_ROWS, _COLUMNS))
    scales = random.uniform(0.5, 1.5, (_ROWS, _COLUMNS // _BLOCK)).astype(np.float32)
    values = ((whole - (1 << bits - 1)) * np.repeat(scales, _BLOCK, 1)).astype(np.float32)
    count = 8 // bits
    parts = whole.reshape(_ROWS, -1, count) << (bits * np.arange(count))
    return values, parts.sum(-1).astype(np.uint8), scales


def product(bits: int) -> tuple[list[Any], dict[str, Any], dict[str, Any], Any]:
    values, packed, scales = stored(bits)
    x = np.random.default_rng(1).standard_normal((3, _COLUMNS)).astype(np.float32)
    sizes = {"K": _COLUMNS, "N": _ROWS, "bits": bits, "block_size": _BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain=_MICROSOFT, **sizes)
    weights = {"w": packed.reshape(_ROWS, _COLUMNS // _BLOCK, -1), "s": scales.reshape(-1)}
    return [node], weights, {"x": x}, x @ values.T


def rows(bits: int) -> tuple[list[Any], dict[str, Any], dict[str, Any], Any]:
    values, packed, scales = stored(bits)
    zero = np.full((_ROWS, -(-_COLUMNS // _BLOCK * bits // 8)), 0x88 if bits == 4 else 0x80, np.uint8)
    ids = np.array([2, 0], np.int64)
    sizes = {"block_size": _BLOCK, "gather_axis": 0, "quantize_axis": 1} | ({"bits": bits} if bits != 4 else {})
    node = helper.make_node("GatherBlockQuantized", ["w", "ids", "s", "z"], ["y"], domain=_MICROSOFT, **sizes)
    return [node], {"w": packed, "s": scales, "z": zero}, {"ids": ids}, values[ids]


if __name__ == "__main__":
    main()
