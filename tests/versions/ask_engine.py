"""Ask the onnxruntime that is first on the path what it has, or whether it opens graphs; prints JSON.

python ask_engine.py VERSION has            its CPU kernels, its operators, the opsets and the IR versions that it opens
python ask_engine.py VERSION opens FILE…    what it says of each ONNX file: null where it opens it and runs
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema, get_all_opkernel_def

_CPU = "CPUExecutionProvider"
_OPSETS, _IRS = range(18, 40), range(8, 30)


def main() -> None:
    version, what, *files = sys.argv[1:]
    assert onnxruntime.__version__ == version, f"{onnxruntime.__version__} is on the path, not {version}"
    print(json.dumps(has() if what == "has" else {file: opens(file) for file in files}))


def opens(model: str | bytes) -> str | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model, options, providers=[_CPU])
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        return f"{type(error).__name__}: {error}"
    return None


def has() -> dict[str, Any]:
    kernels = [
        [kernel.domain, kernel.op_name, kernel.version_range[0], sorted(_dtypes(kernel.type_constraints.values()))]
        for kernel in get_all_opkernel_def()
        if kernel.provider == _CPU
    ]
    schemas = [
        [schema.domain, schema.name, schema.max_input, schema.max_output, sorted(schema.attributes)]
        for schema in get_all_operator_schema()
    ]
    return {
        "kernels": kernels,
        "schemas": schemas,
        "opset": _newest(_OPSETS, lambda opset: _identity(opset, _IRS.start)),
        "ir": _newest(_IRS, lambda ir: _identity(_OPSETS.start, ir)),
    }


def _dtypes(constraints: Iterable[Iterable[str]]) -> set[str]:
    """The element types of tensors, as "int8"."""
    names = {name for constraint in constraints for name in constraint if name.startswith("tensor(")}
    return {name.removeprefix("tensor(").removesuffix(")") for name in names}


def _newest(numbers: range, make: Callable[[int], bytes]) -> int:
    opened = [number for number in numbers if opens(make(number)) is None]
    assert opened == list(range(numbers.start, opened[-1] + 1)), f"not in one piece: {opened}"
    return opened[-1]


def _identity(opset: int, ir: int) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return model.SerializeToString()


if __name__ == "__main__":
    main()
