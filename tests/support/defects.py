"""Deliberate defects, each planted in a correct export, and the op or output that a verification must name for it."""

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from tests.support.graph_edits import (
    Edit,
    after,
    argument,
    attribute,
    becomes,
    before,
    both,
    bypassed,
    constant,
    feeding,
    find,
    first,
    last_bit,
    nodes_of,
    of_type,
    output_from,
    reading,
    result,
    rewired,
    swapped,
    unnamed,
    weight,
)
from tfm.export.passes import OP_KEY


class Defect(NamedTuple):
    """What is planted in which model, and how the first fault must begin."""

    model: str
    edit: Edit
    named: str


GELU = [f"activation encoder.layers.{i}.feed_forward.activation" for i in range(2)]
SELF = [f"attention encoder.layers.{i}.self_attn" for i in range(2)]
CACHED = [f"attention decoder.layers.{i}.self_attn" for i in range(2)]
CROSS = [f"attention decoder.layers.{i}.cross_attn" for i in range(2)]
GATE = [f"activation decoder.layers.{i}.feed_forward.activation" for i in range(2)]
NORM = "norm {}coder.layers.{}.{}_residual.norm"
LINEAR = "linear {}coder.layers.{}.{}"
HIDDEN = "output last_hidden_state (disabled): off by"
BIAS = 10  # place of the mask among the inputs of GroupQueryAttention
SCALE = 1 / math.sqrt(8)  # of heads of size 8
ALONE = ": off by itself"
LOST = ": no node of the graph computes it"
WEIGHTS = ": its weights are not eager's"


def fed(op: str, what: str = "argument") -> str:
    return f"{op}: fed a wrong {what}"


# ------------------------------------------------ edits of more than a line


def invented(model: ir.Model) -> None:
    """One more activation, that changes nothing: as when the exporter doubles an op."""
    node = ir.node("Relu", [find(model, GELU[0]).inputs[0]])
    node.metadata_props[OP_KEY] = "activation encoder.layers.9.feed_forward.activation"
    node.outputs[0].name, node.outputs[0].type = "extra", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape([None, None, None])
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])


def positions_from_zero(model: ir.Model) -> None:
    table = next(n for n in model.graph if n.op_type == "Gather" and "position" in str(n.inputs[0].name))
    offset = table.inputs[1].producer()
    assert offset.op_type == "Add"
    past = next(v for v in offset.inputs if v.producer().op_type == "Sub")
    without = ir.node("Sub", [offset.outputs[0], past])
    without.outputs[0].name, without.outputs[0].type = "from_zero", ir.TensorType(ir.DataType.INT64)
    model.graph.insert_before(table, without)
    table.replace_input_with(1, without.outputs[0])


def layers_swapped(model: ir.Model) -> None:
    for node in list(model.graph):
        op = node.metadata_props.get(OP_KEY, "")
        if "layers.0." in op:
            index = nodes_of(model, op).index(node)
            other = nodes_of(model, op.replace("layers.0.", "layers.1."))[index]
            for i, (one, two) in enumerate(zip(node.inputs, other.inputs, strict=True)):
                if one is not None and one.const_value is not None:
                    node.replace_input_with(i, two)
                    other.replace_input_with(i, one)


def rotary_interleaved(model: ir.Model) -> None:
    """Turn the pairs (2i, 2i + 1), as GPT-J does, in place of (i, i + H/2)."""
    turns = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert turns
    for node in turns:
        node.attributes["interleaved"] = ir.AttrInt64("interleaved", 1)


def heads(*order: int) -> list[int]:
    """Places of the entries of heads of size 8, side by side, in another order."""
    return [8 * head + entry for head in order for entry in range(8)]


INTERLEAVED = np.arange(16).reshape(8, 2).T.ravel().tolist()
"""Places of two heads' entries, as if each entry had the heads side by side."""


DEFECTS: dict[str, Defect] = {
    # ---- activations
    "gelu by tanh": Defect("encoder", attribute(GELU[1], approximate="tanh"), GELU[1] + ALONE),
    "gelu becomes relu": Defect("encoder", becomes(GELU[0], "Relu"), GELU[0] + ALONE),
    "gelu without its name, and not one": Defect("encoder", becomes(GELU[1], "Identity", named=False), GELU[1] + LOST),
    "gelu bypassed": Defect("encoder", becomes(GELU[1], "Identity"), GELU[1] + ALONE),
    "gelu lost": Defect("encoder", bypassed(GELU[1]), GELU[1] + LOST),
    "gelu twice": Defect("encoder", after(GELU[0], "Gelu", named=True), GELU[0] + ALONE),
    "gelu once more": Defect("encoder", after(GELU[0], "Gelu"), fed(LINEAR.format("en", 0, "feed_forward.linear2"))),
    "tanh-gelu becomes gelu": Defect("gpt2", attribute(GATE[1], approximate="none"), GATE[1] + ALONE),
    "pooler's tanh becomes erf": Defect(
        "encoder", becomes("activation pooler_activation", "Erf"), "activation pooler_activation" + ALONE
    ),
    "an op that eager does not have": Defect(
        "encoder",
        invented,
        "activation encoder.layers.9.feed_forward.activation: the graph computes it, eager does not",
    ),
    "quick-gelu's alpha": Defect("quick", attribute(GELU[0], alpha=1.6), GELU[0] + ALONE),
    "quick-gelu becomes gelu": Defect("quick", becomes(GELU[0], "Gelu"), GELU[0] + ALONE),
    "silu's alpha": Defect("decoder", attribute(GATE[0], alpha=1.01), GATE[0] + ALONE),
    "gate and value swapped": Defect(
        "llama",
        both(
            rewired(lambda m: find(m, GATE[0]).outputs[0].consumers()[0], 0, result(feeding(GATE[0], 0), 1)),
            rewired(GATE[0], 0, result(feeding(GATE[0], 0), 0)),
        ),
        fed(GATE[0]),
    ),
    "gate left out": Defect(
        "llama",
        bypassed(lambda m: find(m, GATE[0]).outputs[0].consumers()[0]),
        GATE[0] + LOST,
    ),
    "logits' softcap left out": Defect(
        "gemma",
        bypassed(of_type("Mul", -1), argument(feeding("activation decoder", 0), 0)),
        "activation decoder" + LOST,
    ),
    "logits' softcap 1 % off": Defect(
        "gemma", constant(of_type("Mul", -1), 1, lambda c: c * 1.01), "output logits (disabled): off by"
    ),
    # ---- attentions
    "a right op without its name": Defect("encoder", unnamed(SELF[1]), SELF[1] + LOST),
    "mask dropped": Defect("encoder", rewired(SELF[0], 3, None), SELF[0] + ALONE),
    "mask dropped in the last layer": Defect("encoder", rewired(SELF[1], 3, None), SELF[1] + ALONE),
    "mask inverted": Defect("encoder", before(SELF[1], 3, "Not"), fed(SELF[1], "mask")),
    "mask shifted by one": Defect(
        "encoder",
        both(before(SELF[0], 3, "Slice", [1], [99], [3]), before(SELF[0], 3, "Pad", [0] * 7 + [1], True)),
        fed(SELF[0], "mask"),
    ),
    "mask that only weakens": Defect(
        "encoder", before(SELF[0], 3, "Where", 0.0, -5.0, dtype=ir.DataType.FLOAT), fed(SELF[0], "mask")
    ),
    "scale 1 % off": Defect("encoder", attribute(SELF[0], scale=1.01 * SCALE), SELF[0] + ALONE),
    "scale left out": Defect("encoder", attribute(SELF[1], scale=1.0), SELF[1] + ALONE),
    "causal where it must not be": Defect("encoder", attribute(SELF[1], is_causal=1), SELF[1] + ALONE),
    "a softcap that eager does not have": Defect("encoder", attribute(SELF[0], softcap=5.0), SELF[0] + ALONE),
    "softcap left out": Defect("gemma", attribute(CACHED[1], softcap=0.0), CACHED[1] + ALONE),
    "two heads taken for one": Defect("encoder", attribute(SELF[0], q_num_heads=1, kv_num_heads=1), SELF[0] + ALONE),
    "heads permuted": Defect(
        "llama", before(CACHED[1], 0, "Gather", heads(1, 0, 3, 2), axis=2), fed(CACHED[1], "query")
    ),
    "heads split in another order": Defect(
        "gpt2", before(CACHED[0], 0, "Gather", INTERLEAVED, axis=2), fed(CACHED[0], "query")
    ),
    "heads merged in another order": Defect(
        "gpt2", after(CACHED[0], "Gather", INTERLEAVED, axis=2), fed(LINEAR.format("de", 0, "self_attn.out_proj"))
    ),
    "groups in another order": Defect(
        "llama",
        both(*(before(CACHED[0], i, "Gather", heads(1, 0), axis=2) for i in (1, 2))),
        fed(CACHED[0], "key"),
    ),
    "one group for all": Defect("llama", attribute(CACHED[0], kv_num_heads=1), f"{CACHED[0]}: it cannot be run by"),
    "heads of another size taken for groups": Defect(
        "odd", before(CACHED[0], 1, "Gather", [4, 5, 6, 7, 0, 1, 2, 3], axis=2), fed(CACHED[0], "key")
    ),
    "queries of the other group": Defect(
        "llama", before(CACHED[0], 0, "Gather", heads(0, 2, 1, 3), axis=2), fed(CACHED[0], "query")
    ),
    "keys and values swapped": Defect("encoder", swapped(SELF[1], 1, 2), fed(SELF[1], "key")),
    "queries and keys swapped": Defect("encoder", swapped(SELF[0], 0, 1), fed(SELF[0], "query")),
    "values taken from keys": Defect("encoder", rewired(SELF[0], 2, argument(SELF[0], 1)), SELF[0] + ALONE),
    "queries through float16": Defect(
        "encoder",
        both(
            before(SELF[1], 0, "Cast", dtype=ir.DataType.FLOAT16, to=ir.DataType.FLOAT16.value),
            before(SELF[1], 0, "Cast", dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT.value),
        ),
        fed(SELF[1], "query"),
    ),
    "cross-attention's mask dropped": Defect("decoder", rewired(CROSS[1], 3, None), CROSS[1] + ALONE),
    "cross-attention's keys and values swapped": Defect("decoder", swapped(CROSS[0], 1, 2), fed(CROSS[0], "key")),
    "cached attention without its mask": Defect("llama", rewired(CACHED[0], BIAS, None), CACHED[0] + ALONE),
    "cached attention of another form without its mask": Defect("odd", rewired(CACHED[0], 3, None), CACHED[0] + ALONE),
    "a token cannot see itself": Defect("gemma", becomes(of_type("LessOrEqual"), "Less"), fed(CACHED[0], "mask")),
    "padding sees nothing": Defect("llama", becomes(of_type("Or"), "And"), fed(CACHED[0], "mask")),
    "padding is seen": Defect("llama", before(of_type("Or"), 0, "Not"), fed(CACHED[0], "mask")),
    "a token sees those after it": Defect("llama", attribute(CACHED[0], causal=0), CACHED[0] + ALONE),
    "cached attention of another form that is not causal": Defect(
        "odd", attribute(CACHED[0], is_causal=0), CACHED[0] + ALONE
    ),
    "a window that eager does not have": Defect("llama", attribute(CACHED[1], local_window_size=3), CACHED[1] + ALONE),
    "a sink that eager does not have": Defect("llama", attribute(CACHED[0], smooth_softmax=1), CACHED[0] + ALONE),
    "a cached attention's scale 1 % off": Defect("llama", attribute(CACHED[0], scale=1.01 * SCALE), CACHED[0] + ALONE),
    "a cached attention's softcap 1 % off": Defect("gemma", attribute(CACHED[0], softcap=5.05), CACHED[0] + ALONE),
    "window one too wide": Defect("gemma", becomes(of_type("Greater"), "GreaterOrEqual"), fed(CACHED[0], "mask")),
    "window in every layer": Defect(
        "gemma", rewired(CACHED[1], BIAS, argument(CACHED[0], BIAS)), fed(CACHED[1], "mask")
    ),
    "softmax over the wrong axis": Defect("by_hand", attribute("softmax ", axis=1), "softmax " + ALONE),
    "scores not scaled": Defect("by_hand", before("softmax ", 0, "Mul", 4.0), fed("softmax ")),
    # ---- caches
    "one place back": Defect("llama", before(CACHED[0], 5, "Sub", np.int32(1)), fed(CACHED[0], "lengths")),
    "no row of more than nine": Defect("llama", before(CACHED[1], 5, "Min", np.int32(8)), fed(CACHED[1], "lengths")),
    "old keys and values swapped": Defect("llama", swapped(CACHED[1], 3, 4), fed(CACHED[1], "past key")),
    "old keys of another layer": Defect(
        "llama", rewired(CACHED[1], 3, argument(CACHED[0], 3)), fed(CACHED[1], "past key")
    ),
    "new values from keys": Defect("llama", rewired(CACHED[0], 2, argument(CACHED[0], 1)), CACHED[0] + ALONE),
    "new keys and values swapped": Defect("llama", swapped(CACHED[0], 1, 2), fed(CACHED[0], "key")),
    "key cached before it is turned": Defect(
        "llama", rewired(CACHED[0], 1, argument(feeding(CACHED[0], 1), 0)), fed(CACHED[0], "key")
    ),
    "old keys given as new": Defect(
        "llama",
        output_from("present.1.key", "Identity", argument(CACHED[1], 3)),
        "output present.1.key (disabled): shapes differ",
    ),
    "new keys given as the cache": Defect(
        "llama",
        output_from("present.1.key", "Identity", argument(CACHED[1], 1)),
        "output present.1.key (disabled): shapes differ",
    ),
    "keys of another layer cached": Defect(
        "llama",
        output_from("present.1.key", "Identity", result(CACHED[0], 1)),
        "output present.1.key (disabled): off by",
    ),
    "values given as keys": Defect(
        "llama",
        output_from("present.1.key", "Identity", result(CACHED[1], 2)),
        "output present.1.key (disabled): off by",
    ),
    # ---- positions
    "positions that forget the past": Defect("decoder", positions_from_zero, fed("embedding decoder.embedding")),
    "positions off by one": Defect(
        "gpt2", before("embedding decoder.embedding", 1, "Sub", 1), fed("embedding decoder.embedding")
    ),
    "rotary pairs interleaved": Defect("llama", rotary_interleaved, fed(CACHED[0], "query")),
    "rotary turns the other way": Defect("llama", after(of_type("Sin"), "Neg"), fed(CACHED[0], "query")),
    "rotary base halved": Defect(
        "llama",
        constant(reading("rotary.frequency"), 1, lambda f: f * 2 ** (np.arange(4) / 4)),
        fed(CACHED[0], "query"),
    ),
    "rotary positions off by one": Defect(
        "llama", before(reading("rotary.frequency"), 0, "Add", 1.0), fed(CACHED[0], "query")
    ),
    "last bit of the rotary frequencies": Defect(
        "llama", last_bit(reading("rotary.frequency"), 1), fed(CACHED[0], "query")
    ),
    "positions that end at 256": Defect(
        "long", before(reading("rotary.frequency"), 0, "Min", 255.0), fed(CACHED[0], "query")
    ),
    "queries not turned": Defect(
        "llama", rewired(CACHED[1], 0, argument(feeding(CACHED[1], 0), 0)), fed(CACHED[1], "query")
    ),
    "relative distances of the wrong sign": Defect(
        "t5", becomes(of_type("Greater"), "Less"), fed("embedding encoder.bias")
    ),
    "relative buckets too coarse": Defect(
        "t5", constant(of_type("Less"), 1, lambda n: n // 2), fed("embedding encoder.bias")
    ),
    "relative bias transposed": Defect("t5", attribute(of_type("Transpose"), perm=(0, 3, 2, 1)), fed(SELF[0], "mask")),
    "ALiBi's slope 1 % off": Defect("alibi", constant(of_type("Mul"), 0, lambda s: s * 1.01), fed(CACHED[0], "mask")),
    # ---- the positions whose logits are wanted
    "logits of the token before": Defect(
        "llama", before(of_type("Slice"), 1, "Sub", 1), "linear decoder.head: in the whole graph, shapes differ"
    ),
    "logits of another row": Defect(
        "decoder", before(of_type("Slice"), 0, "Slice", [-1], [-99], [0], [-1]), fed("linear decoder.head")
    ),
    "logits of every token in its order": Defect(
        "gpt2", bypassed(of_type("Slice")), "linear decoder.head: in the whole graph, shapes differ"
    ),
    # ---- weights and layers
    "one weight of a projection": Defect(
        "encoder", weight(of_type("MatMul"), 0.01), LINEAR.format("en", 0, "self_attn.in_proj") + WEIGHTS
    ),
    "one weight of the last layer": Defect(
        "quick", weight(of_type("MatMul", -1), 0.01), LINEAR.format("en", 0, "feed_forward.linear2") + WEIGHTS
    ),
    "one weight of the pooler": Defect("encoder", weight("linear pooler", 0.1), "linear pooler" + WEIGHTS),
    "a NaN among the weights": Defect(
        "encoder", weight(of_type("MatMul"), math.nan), LINEAR.format("en", 0, "self_attn.in_proj") + WEIGHTS
    ),
    "last bit of a linear's weight": Defect(
        "encoder",
        last_bit(first(LINEAR.format("en", 1, "feed_forward.linear1")), 1),
        LINEAR.format("en", 1, "feed_forward.linear1") + WEIGHTS,
    ),
    "last bit of a linear's bias": Defect(
        "llama",
        last_bit(LINEAR.format("de", 1, "self_attn.out_proj"), 1),
        LINEAR.format("de", 1, "self_attn.out_proj") + WEIGHTS,
    ),
    "last bit of an embedding": Defect(
        "encoder", last_bit("embedding encoder.embedding.token", 0), "embedding encoder.embedding.token" + WEIGHTS
    ),
    "last bit of a position": Defect(
        "gpt2", last_bit("embedding decoder.embedding", 0), "embedding decoder.embedding" + WEIGHTS
    ),
    "last bit of a norm's weight": Defect("llama", last_bit("norm decoder.norm", 1), "norm decoder.norm" + WEIGHTS),
    "a square weight transposed": Defect(
        "gpt2",
        constant(first(LINEAR.format("de", 1, "self_attn.out_proj")), 1, lambda w: w.T),
        LINEAR.format("de", 1, "self_attn.out_proj") + ALONE,
    ),
    "a bias dropped": Defect(
        "encoder",
        bypassed(LINEAR.format("en", 0, "feed_forward.linear1")),
        LINEAR.format("en", 0, "feed_forward.linear1") + ALONE,
    ),
    "layers swapped": Defect("encoder", layers_swapped, LINEAR.format("en", 0, "self_attn.in_proj") + WEIGHTS),
    "a layer skipped": Defect(
        "encoder",
        bypassed(NORM.format("en", 1, "feed_forward"), result(NORM.format("en", 0, "feed_forward"))),
        SELF[1] + LOST,
    ),
    "pooler's product 1 % off": Defect("encoder", attribute("linear pooler", alpha=1.01), "linear pooler" + ALONE),
    "epsilon of the first norm": Defect(
        "encoder",
        attribute(of_type("LayerNormalization"), epsilon=1e-3),
        NORM.format("en", 0, "self_attn") + ALONE,
    ),
    "epsilon of the last norm": Defect(
        "quick", attribute(of_type("LayerNormalization", -1), epsilon=1e-3), "norm encoder.norm" + ALONE
    ),
    "epsilon of an RMS norm": Defect(
        "llama", attribute(NORM.format("de", 1, "self_attn"), epsilon=1e-3), NORM.format("de", 1, "self_attn") + ALONE
    ),
    "epsilon a tenth": Defect(
        "odd", attribute(NORM.format("de", 0, "self_attn"), epsilon=1e-6), NORM.format("de", 0, "self_attn") + ALONE
    ),
    "epsilon a tenth, of a large argument": Defect(
        "llama", attribute("norm decoder.norm", epsilon=1e-6), "norm decoder.norm" + ALONE
    ),
    "a norm's weight read as an offset from one": Defect(
        "gemma",
        constant(NORM.format("de", 0, "feed_forward"), 1, lambda w: w + 1),
        NORM.format("de", 0, "feed_forward") + WEIGHTS,
    ),
    "an RMS norm that takes off the mean": Defect(
        "llama",
        becomes(NORM.format("de", 0, "feed_forward"), "LayerNormalization", axis=-1, epsilon=1e-5),
        NORM.format("de", 0, "feed_forward") + ALONE,
    ),
    "final norm left out": Defect("llama", bypassed("norm decoder.norm"), fed("linear decoder.head")),
    # ---- between the layers
    "embeddings' scale left out": Defect(
        "encoder", bypassed(of_type("Mul")), fed(LINEAR.format("en", 0, "self_attn.in_proj"))
    ),
    "residual left out": Defect(
        "encoder", bypassed(feeding(NORM.format("en", 1, "self_attn"), 0), 1), fed(NORM.format("en", 1, "self_attn"))
    ),
    "residual from before the norm": Defect(
        "encoder",
        rewired(feeding(NORM.format("en", 0, "feed_forward"), 0), 0, argument(NORM.format("en", 0, "self_attn"), 0)),
        fed(NORM.format("en", 0, "feed_forward")),
    ),
    "pooler on the last token": Defect(
        "encoder", constant(feeding("linear pooler", 0), 1, lambda _: -1), fed("linear pooler")
    ),
    "sentence embedding by sum": Defect(
        "encoder", becomes(of_type("Div", -1), "Mul"), "output sentence_embedding (disabled): off by"
    ),
    "sentence embedding of padding too": Defect(
        "encoder", bypassed(feeding(of_type("ReduceSum"), 0)), "output sentence_embedding (disabled): off by"
    ),
}
