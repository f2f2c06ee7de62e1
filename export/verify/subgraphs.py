"""Run an ONNX graph subgraph by subgraph, to see values inside it without holding all of them at once."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from tfm.errors import VerificationError

from .regions import Array, branches_of

_KEPT_BYTES = 256 << 20
"""Sessions of subgraphs are kept for the next run while all weights together are smaller than this."""

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where onnxruntime looks for weights outside a model that it gets as bytes."""


def load_graph(path: Path) -> ir.Model:
    """Read a graph whose every input is given: none has a default, which would count as a constant."""
    model = ir.load(path)
    for value in model.graph.inputs:
        if value.const_value is not None:
            del model.graph.initializers[str(value.name)]
            value.const_value = None
    return model


class Subgraphs:
    """A graph cut where someone wants to look; each subgraph is a session of its own, run when its cut is asked for.

    Args:
        model: The graph; it must stay as it is.
        cuts: Name → values to be seen there, in the order of the graph as far as possible.
        folder: Where weights outside the file lie.
        providers: onnxruntime's execution providers.
    """

    def __init__(
        self, model: ir.Model, cuts: Mapping[str, Sequence[ir.Value]], folder: Path, providers: Sequence[str]
    ) -> None:
        self._cuts = {name: [str(value.name) for value in values] for name, values in cuts.items()}
        self.folder, self.providers = folder, list(providers)
        # A value that is constant has no node that could be run for it.
        wanted = {value for values in cuts.values() for value in values}
        self._constants = {str(v.name): v.const_value.numpy() for v in wanted if v.const_value is not None}
        self._subgraphs = _plan(model, cuts)
        self._by_cut = {subgraph.cut: subgraph for subgraph in self._subgraphs}
        # A large model's sessions would hold all weights at once: then each is opened when its turn
        # comes, and dropped.
        self._keep = sum(subgraph.weight_bytes for subgraph in self._subgraphs) <= _KEPT_BYTES

    def start(self, feeds: Mapping[str, Array]) -> "Run":
        """Begin a run of the whole graph on these inputs."""
        # How often each value will still be read: by subgraphs and by cuts. At 0 it is let go.
        uses = Counter(name for subgraph in self._subgraphs for name in subgraph.inputs)
        uses.update(name for names in self._cuts.values() for name in names)
        return Run(self, feeds, uses)

    def run_alone(self, cut: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array] | None:
        """Run one cut's subgraph on inputs from outside; None where it takes other inputs than these."""
        subgraph = self._by_cut.get(cut)
        # The subgraph may hold more than the op, or need more than its arguments.
        if subgraph is None or not {*outputs} <= {*subgraph.outputs} or set(subgraph.inputs) != set(feeds):
            return None
        found: list[Array] = self._session(subgraph, feeds).run(list(outputs), dict(feeds))
        return found

    def _session(self, subgraph: "_Piece", feeds: Mapping[str, Array]) -> ort.InferenceSession:
        if subgraph.session is not None:
            return subgraph.session
        session = open_nodes(subgraph.model, subgraph.nodes, feeds, subgraph.outputs, self.folder, self.providers)
        if self._keep:
            subgraph.session = session
        return session


class Run:
    """One run of a graph, as far as it has got."""

    def __init__(self, subgraphs: Subgraphs, feeds: Mapping[str, Array], uses: Counter[str]) -> None:
        self._subgraphs, self._uses = subgraphs, uses
        self._values: dict[str, Array] = dict(feeds) | subgraphs._constants
        self._next = 0

    def take(self, cut: str) -> list[Array]:
        """Run on to a cut and give its values, once."""
        names = self._subgraphs._cuts[cut]
        while any(name not in self._values for name in names):
            self._advance()
        found = [self._values[name] for name in names]
        self._release(names)
        return found

    def before(self, value: str) -> tuple[Sequence[ir.Node], dict[str, Array]]:
        """Run on to the subgraph that computes a value; give its nodes and what they are about to be fed.

        Raises:
            VerificationError: No subgraph that is still to be run computes it.
        """
        subgraphs = self._subgraphs._subgraphs
        index = next((i for i, subgraph in enumerate(subgraphs) if value in subgraph.outputs), -1)
        # What has run is not run again: its inputs are gone.
        if index < self._next:
            raise VerificationError(f"{value!r} is not computed by what is left of the graph")
        while self._next < index:
            self._advance()
        return subgraphs[index].nodes, {name: self._values[name] for name in subgraphs[index].inputs}

    def _advance(self) -> None:
        subgraph = self._subgraphs._subgraphs[self._next]
        feeds = {name: self._values[name] for name in subgraph.inputs}
        results = self._subgraphs._session(subgraph, feeds).run(subgraph.outputs, feeds)
        self._next += 1  # not before it ran: who asks again gets the error again
        # Results before inputs are let go: a value may be both.
        self._values.update(zip(subgraph.outputs, results, strict=True))
        self._release(subgraph.inputs)

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._values[name]


def open_nodes(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    feeds: Mapping[str, Array],
    outputs: Sequence[str],
    folder: Path,
    providers: Sequence[str],
) -> ort.InferenceSession:
    """Open some nodes of a graph, and the constants they read, as a model of their own.

    It is not optimized, and runs on one thread, since there may be hundreds of them.

    Args:
        model: Whose nodes they are.
        nodes: In the order of the graph.
        feeds: What it will be fed: names and types are taken from these.
        outputs: Names of the values wanted.
        folder: Where weights outside the file lie.
        providers: onnxruntime's execution providers.

    Raises:
        VerificationError: The nodes also read something that is not fed.
    """
    options = ort.SessionOptions()
    # What is looked at are our nodes, and not what onnxruntime makes of them.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    content = bytes(ir.to_proto(cut_out(model, nodes, feeds, outputs)).SerializeToString())
    return ort.InferenceSession(content, options, providers=list(providers))


def cut_out(model: ir.Model, nodes: Sequence[ir.Node], feeds: Mapping[str, Array], outputs: Sequence[str]) -> ir.Model:
    """Copy some nodes of a graph, with the constants that they read, into a model of their own; see `open_nodes`."""
    # Not onnx_ir.convenience.extract: it goes back from the outputs to whatever makes them, and so
    # takes in nodes of other ops without a word where one of these reads more than it is fed.
    # No shapes: the same session serves cases of other sizes.
    inputs = {
        name: ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        for name, array in feeds.items()
    }
    # Copies of values and nodes, since one can belong to one graph only; the weights are shared.
    copies: dict[ir.Value, ir.Value] = {}
    initializers, new_nodes = [], []
    for node in nodes:
        # A branch of an If reads values that are no inputs of the node: those are needed too, or
        # refused.
        for value in _read_by(node):
            if value not in copies:
                fed = inputs.get(str(value.name))
                copies[value] = _copy_of_constant(value, node) if fed is None else fed
                initializers += [copies[value]] if fed is None else []
        new_nodes.append(_copy_of_node(node, copies))
        copies.update(zip(node.outputs, new_nodes[-1].outputs, strict=True))
    results_by_name = {str(value.name): copy for value, copy in copies.items()}
    graph = ir.Graph(
        list(inputs.values()),
        [results_by_name[name] for name in outputs],
        nodes=new_nodes,
        initializers=initializers,
        opset_imports=model.opset_imports,
        name=str(model.graph.name),
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _copy_of_node(node: ir.Node, copies: Mapping[ir.Value, ir.Value]) -> ir.Node:
    arguments = [None if value is None else copies[value] for value in node.inputs]
    results = [ir.Value(name=value.name, type=value.type) for value in node.outputs]
    return ir.Node(node.domain, node.op_type, arguments, node.attributes.values(), outputs=results, name=node.name)


def _copy_of_constant(value: ir.Value, node: ir.Node) -> ir.Value:
    if value.const_value is None:
        raise VerificationError(f"{node.op_type} also depends on {value.name!r}, which is none of its arguments")
    return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)


class _Piece:
    """Consecutive work: what must run before the values of a cut are there, and has not run for an earlier one."""

    def __init__(self, cut: str, nodes: Sequence[ir.Node], model: ir.Model, wanted: set[ir.Value]) -> None:
        self.cut, self.nodes, self.model = cut, nodes, model
        self.session: ort.InferenceSession | None = None
        inside, made = set(nodes), [value for node in nodes for value in node.outputs]
        # Read, and made by an earlier subgraph or by nobody: the graph's inputs and constants.
        read = dict.fromkeys(value for node in nodes for value in _read_by(node))
        outside = [value for value in read if value.producer() not in inside]
        self.inputs = [str(value.name) for value in outside if value.const_value is None]
        self.weight_bytes = sum(value.const_value.nbytes for value in outside if value.const_value is not None)
        # All that anybody outside reads: a later subgraph or a cut.
        self.outputs = [
            str(value.name) for value in made if value in wanted or not inside.issuperset(value.consumers())
        ]


def _read_by(node: ir.Node) -> list[ir.Value]:
    """What a node reads from the graph that it is in, its branches included."""
    # dict for an order that is the same each time, which a set has not.
    read = dict.fromkeys(node.inputs)
    for branch in branches_of(node):
        inner = list(ir.traversal.RecursiveGraphIterator(branch))
        own = _own_values(branch, inner)
        read.update(dict.fromkeys(value for each in inner for value in each.inputs if value not in own))
    return [value for value in read if value is not None]


def _own_values(branch: ir.Graph, inner: Sequence[ir.Node]) -> set[ir.Value | None]:
    """What a branch and the graphs within it are given or make themselves."""
    graphs = {branch} | {node.graph for node in inner if isinstance(node.graph, ir.Graph)}
    own: set[ir.Value | None] = {value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())}
    return own.union(value for node in inner for value in node.outputs)


def _plan(model: ir.Model, cuts: Mapping[str, Sequence[ir.Value]]) -> list[_Piece]:
    """Give each node to the first cut that needs it."""
    # The model's order is one in which each node comes behind what it reads.
    order = {node: index for index, node in enumerate(model.graph)}
    wanted = {value for values in cuts.values() for value in values}
    if any(map(branches_of, order)):
        return [_Piece("", list(order), model, wanted)]  # branches may read any value without naming it as input
    done: set[ir.Node] = set()
    subgraphs = []
    for cut, values in cuts.items():
        # From the cut up to what an earlier one has run already.
        if new := behind(values, done):
            subgraphs.append(_Piece(cut, sorted(new, key=order.__getitem__), model, wanted))
            done |= new
    return subgraphs


def behind(values: Sequence[ir.Value], done: Collection[ir.Node] = ()) -> set[ir.Node]:
    """Collect the nodes that lead to some values, those behind what is `done` left out."""
    found: set[ir.Node] = set()
    pending = [value.producer() for value in values]
    while pending:
        node = pending.pop()
        if node is not None and node not in done and node not in found:
            found.add(node)
            pending += [value.producer() for value in node.inputs if value is not None]
    return found
