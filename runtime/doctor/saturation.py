"""Whether 8-bit products are exact on this processor, asked of onnxruntime by one small product.

x86 processors with AVX2 or AVX-512 but without VNNI add two products up in 16 bits, and what does not fit saturates:
255 · 127 + 255 · 127 becomes 32767. onnxruntime has exact kernels for them too, which it uses when asked to.
"""

import functools

import numpy as np
import onnxruntime

_INPUTS, _OUTPUTS = 4, 16

# y = MatMulInteger(x, w), where w is 127 throughout, as onnx.helper makes it at opset 20 and IR version 9 and
# SerializeToString() writes it; running bundles needs no onnx. A test makes it again. Each part begins with its
# protobuf tag and length.
_PROBE = b"".join(
    (
        b"\x08\x09",  # IR version
        b":\xa0\x01",  # the graph, up to the opset:
        b'\x0a\x18\x0a\x01x\x0a\x01w\x12\x01y"\x0dMatMulInteger',  # the node
        b"\x12\x05probe",  # the graph's name
        b"*K\x08\x04\x08\x10\x10\x03B\x01wJ@" + b"\x7f" * (_INPUTS * _OUTPUTS),  # w, int8 (4, 16)
        b"Z\x17\x0a\x01x\x12\x12\x0a\x10\x08\x02\x12\x0c\x0a\x06\x12\x04rows\x0a\x02\x08\x04",  # x, uint8 (rows, 4)
        b"b\x17\x0a\x01y\x12\x12\x0a\x10\x08\x06\x12\x0c\x0a\x06\x12\x04rows\x0a\x02\x08\x10",  # y, int32 (rows, 16)
        b"B\x04\x0a\x00\x10\x14",  # opset
    )
)


@functools.cache
def saturates() -> bool:
    """Tell whether onnxruntime's CPU provider gets products of uint8 by int8 wrong here.

    Finding out takes milliseconds, once; two threads that ask at the same time may both find out.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # fatal only
    # Not by `open_session`, whose options depend on what this finds out.
    session = onnxruntime.InferenceSession(_PROBE, options, providers=["CPUExecutionProvider"])
    exact = _INPUTS * 255 * 127
    # one row and many may have kernels of their own
    products = [session.run(None, {"x": np.full((rows, _INPUTS), 255, np.uint8)})[0] for rows in (1, 8)]
    return any(bool((product != exact).any()) for product in products)
