"""Mutations of pickles: what they count, name and call; some call what leaves a file behind if anything runs them."""

import pickle
import pickletools
from random import Random

from .byte_edits import edit_bytes, extreme

CANARY = "canary"
"""A folder that exists in the working directory once any code of a file was run."""


class _Calls:
    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


_MKDIR = b"cos\nmkdir\n(V" + CANARY.encode() + b"\ntR"
_EVAL = b"cbuiltins\neval\n(V__import__('os').mkdir('" + CANARY.encode() + b"')\ntR"
_EXEC = b"c__builtin__\nexec\n(Vimport os; os.mkdir('" + CANARY.encode() + b"')\ntR"
_SYSTEM = b"cposix\nsystem\n(Vmkdir " + CANARY.encode() + b"\ntR"
_POPEN = b"csubprocess\ncheck_call\n((lVmkdir\naV" + CANARY.encode() + b"\natR"
_STACKED = b"\x8c\x02os\x8c\x05mkdir\x93\x8c\x06" + CANARY.encode() + b"\x85R"
_INSTANCE = b"(V" + CANARY.encode() + b"\nios\nmkdir\n"
_OBJECT = b"(cos\nmkdir\nV" + CANARY.encode() + b"\no"
_LOAD = b"ctorch.hub\nload\n(Vx/y\nVz\ntR"
_TORCH_LOAD = b"ctorch\nload\n(V/dev/zero\ntR"
_EVIL = (_MKDIR, _EVAL, _EXEC, _SYSTEM, _POPEN, _STACKED, _INSTANCE, _OBJECT, _LOAD, _TORCH_LOAD)

_NAMES = [
    b"os mkdir", b"builtins eval", b"builtins getattr", b"builtins bytearray", b"torch load", b"torch Tensor",
    b"torch device", b"torch Size", b"torch FloatStorage", b"torch DoubleStorage", b"torch BoolStorage",
    b"torch QInt8Storage", b"torch float32", b"torch UntypedStorage", b"torch._utils _rebuild_tensor",
    b"torch._utils _rebuild_tensor_v2", b"torch._utils _rebuild_tensor_v3", b"torch._utils _rebuild_parameter",
    b"torch._utils _rebuild_sparse_tensor", b"torch._utils _rebuild_meta_tensor_no_storage",
    b"torch._utils _rebuild_qtensor", b"torch._utils _rebuild_nested_tensor",
    b"torch._utils _rebuild_device_tensor_from_numpy", b"torch._utils _rebuild_wrapper_subclass",
    b"collections OrderedDict", b"collections Counter", b"torch.nn.parameter Parameter",
    b"torch._tensor _rebuild_from_type_v2", b"builtins set", b"torch.storage UntypedStorage",
    b"torch.storage TypedStorage", b"numpy.core.multiarray _reconstruct", b"", b"a",
    b"torch.serialization _get_layout", b"_codecs encode", b"torch.nn.modules.linear Linear",
]  # fmt: skip


def evil(rng: Random) -> bytes:
    """A whole pickle that calls something."""
    return b"\x80\x02" + rng.choice(_EVIL) + b"."


def edit_pickle(rng: Random, data: bytes) -> bytes:
    """Change a pickle."""
    draw = rng.random()
    try:
        ops = [(op, arg, at) for op, arg, at in pickletools.genops(data)]
    except Exception:  # it was changed before
        return edit_bytes(rng, data)
    if draw < 0.15:
        return edit_bytes(rng, data)
    if draw < 0.2:
        return rng.choice([evil(rng), _odd(rng)])
    at = rng.randrange(len(ops))
    start = ops[at][2]
    end = ops[at + 1][2] if at + 1 < len(ops) else len(data)
    if draw < 0.35:  # code that runs on the way, and leaves the stack as it was
        return data[:start] + rng.choice(_EVIL) + b"0" + data[start:]
    if draw < 0.42:
        return data[:start] + data[end:]
    if draw < 0.48:
        return data[:end] + data[start:]
    if draw < 0.52:
        return data[:start] + rng.choice([b"(" * 100_000, b"]" * 50_000, b"}" * 1000 + b"0" * 1000]) + data[start:]
    return _edit_argument(rng, data, ops)


def _odd(rng: Random) -> bytes:
    """A pickle of something else, or of what holds itself."""
    loop: list[object] = []
    loop.append(loop)
    deep: object = 0
    for _ in range(400):
        deep = [deep]
    return pickle.dumps(
        rng.choice([None, 0, "a", [], {}, loop, deep, {1: 2}, {"state_dict": {}}, {"state_dict": 3}]), 2
    )


def _edit_argument(rng: Random, data: bytes, ops: list[tuple[pickletools.OpcodeInfo, object, int]]) -> bytes:
    """Change a number, a text or a name in a pickle."""
    found = [(op, arg, at) for op, arg, at in ops if arg is not None and op.name not in ("PROTO", "FRAME")]
    if not found:
        return edit_bytes(rng, data)
    op, arg, start = rng.choice(found)
    end = next((at for _, _, at in ops if at > start), len(data))
    if op.name == "GLOBAL":
        module, _, name = rng.choice(_NAMES).partition(b" ")
        new = b"c" + module + b"\n" + name + b"\n"
    elif isinstance(arg, int) and "PUT" not in op.name and "GET" not in op.name:
        value = rng.choice([extreme(rng, arg), -1, -arg, -(2**31)])
        new = pickle.dumps(value, 2)[2:-1]
    elif isinstance(arg, int):
        new = op.code.encode("latin-1") + (extreme(rng, arg) % (1 << 8 * (end - start - 1))).to_bytes(
            end - start - 1, "little"
        )
    elif isinstance(arg, str):
        texts = ["", "cpu", "cuda:0", "meta", "0", "1", "../0", "x" * 1000, "é", "storage", "big", arg + "x", arg[:-1]]
        text = rng.choice(texts).encode()
        new = b"X" + len(text).to_bytes(4, "little") + text
    else:
        new = data[start:end][::-1]
    return data[:start] + new + data[end:]
