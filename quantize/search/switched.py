"""A graph that holds every op in every form, and an input that chooses: thousands of mixes, one session.

`If` runs the branch that is chosen and no other, and a kernel within a branch is the one that would run outside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.bundle import scratch_folder, weights_file
from tfm.runtime import count_threads, open_session

from ..methods.edit import initializer
from ..methods.ops import Use, find_ops
from ..portable import OwnWeights
from .subgraphs import copy_nodes

_CHOICE = "tfm.choice"


class Switched:
    """A float32 graph whose ops can be exchanged, one by one, from run to run."""

    def __init__(self, path: Path, variants: Sequence[Sequence[ir.Model]]) -> None:
        """Open it.

        Args:
            path: The float32 graph.
            variants: Per op, as `find_ops` lists them, the subgraphs to choose from besides float32.

        Raises:
            BundleError: onnxruntime cannot load it.
        """
        model = ir.load(path)
        graph = model.graph
        ops = find_ops(graph)
        # Each use of an op becomes
        # If(choice[op] = 1, form 1, else If(choice[op] = 2, form 2, … else the float32 nodes)),
        # whose branches read the weights and x from outside: a branch has no inputs of its own.
        choice = ir.Value(name=_CHOICE, shape=ir.Shape([len(ops)]), type=ir.TensorType(ir.DataType.INT64))
        graph.inputs.append(choice)
        for index, (op, subgraphs) in enumerate(zip(ops, variants, strict=True)):
            if not subgraphs:
                continue
            mine = ir.node("Gather", [choice, initializer(graph, f"tfm.op.{index}", np.array(index, np.int64))])
            tests = [
                ir.node(
                    "Equal", [mine.outputs[0], initializer(graph, f"tfm.form.{variant}", np.array(variant, np.int64))]
                )
                for variant in range(1, len(subgraphs) + 1)
            ]
            # Once for all uses: a table may be read by several nodes.
            graph.insert_before(op.uses[0].node, [mine, *tests])
            shared = [_share(graph, written, f"{index}.{variant}") for variant, written in enumerate(subgraphs, 1)]
            for number, use in enumerate(op.uses):
                _exchange(graph, number, use, tests, subgraphs, shared)
            graph.opset_imports.update({name: v for written in subgraphs for name, v in written.opset_imports.items()})
        # Branches are named without knowing of each other, each from val_0 on; onnxruntime refuses
        # a name within a branch that any value outside has, even one that comes later.
        common.NameFixPass()(model)
        _name_apart(graph)
        OwnWeights()(model)
        with scratch_folder() as folder:
            ir.save(model, Path(folder) / "model.onnx", external_data=weights_file("model.onnx"))
            self._session = open_session(Path(folder) / "model.onnx", "cpu", count_threads(None))

    def run(
        self, choice: Sequence[int], outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run a mix.

        Args:
            choice: Per op 0 for float32, else the number of a subgraph, counted from 1.
            outputs: Names of the graph's outputs to compute.
            feeds: The graph's own inputs by name.
        """
        everything = {**feeds, _CHOICE: np.array(choice, np.int64)}
        return dict(zip(outputs, self._session.run(list(outputs), everything), strict=True))


def _name_apart(graph: ir.Graph) -> None:
    """Give branches, and values within them, names that no other has: nothing that follows may be called like them."""
    branches = {id(node.graph): node.graph for node in ir.traversal.RecursiveGraphIterator(graph)}
    for index, branch in enumerate(branches.values()):
        if branch is not graph and isinstance(branch, ir.Graph):
            branch.name = f"branch.{index}"
    within = (node for node in ir.traversal.RecursiveGraphIterator(graph) if node.graph is not graph)
    for index, value in enumerate(value for node in within for value in node.outputs):
        value.name = f"tfm.within.{index}"


def _share(graph: ir.Graph, written: ir.Model, prefix: str) -> dict[ir.Value, ir.Value]:
    """A subgraph's constants in the outer graph, once for all its uses."""
    return {
        value: initializer(graph, f"tfm.{prefix}.{name}", value.const_value.numpy())
        for name, value in written.graph.initializers.items()
        if value.const_value is not None
    }


def _exchange(
    graph: ir.Graph,
    number: int,
    use: Use,
    tests: Sequence[ir.Node],
    subgraphs: Sequence[ir.Model],
    shared: Sequence[Mapping[ir.Value, ir.Value]],
) -> None:
    """Put the choice between all forms in the place of one use."""
    last, output = use.last, use.output
    otherwise = _exact(use)
    branches = []
    for written, constants in zip(subgraphs, shared, strict=True):
        known = dict(constants) | {value: use.x for value in written.graph.inputs if value.name == use.x.name}
        nodes = copy_nodes(written, written.graph.outputs[number], known)
        branches.append(_branch(nodes, output))
    # From the last form back, as each If is within the else branch of the one before.
    for test, branch in zip(tests[:0:-1], branches[:0:-1], strict=True):
        otherwise = _branch([_if(test, branch, otherwise, output)], output)
    chosen = _if(tests[0], branches[0], otherwise, output)
    graph.insert_before(last, chosen)
    # As in `replace`: outputs first, and the name goes over to the new value.
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = chosen.outputs[0]
    ir.convenience.replace_all_uses_with(output, chosen.outputs[0])
    chosen.outputs[0].name, output.name = output.name, None
    for node in dict.fromkeys([last, use.node]):
        graph.remove(node, safe=True)


def _exact(use: Use) -> ir.Graph:
    """The branch of what was there."""
    node = ir.Node("", use.node.op_type, list(use.node.inputs), list(use.node.attributes.values()), num_outputs=1)
    nodes = [node] if use.bias is None else [node, ir.node("Add", [node.outputs[0], use.bias])]
    return _branch(nodes, use.output)


def _if(test: ir.Node, branch: ir.Graph, otherwise: ir.Graph, output: ir.Value) -> ir.Node:
    node = ir.node("If", [test.outputs[0]], {"then_branch": branch, "else_branch": otherwise})
    node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
    return node


def _branch(nodes: Sequence[ir.Node], output: ir.Value) -> ir.Graph:
    result = nodes[-1].outputs[0]
    result.type, result.shape = output.type, output.shape
    return ir.Graph([], [result], nodes=nodes, name="branch")
