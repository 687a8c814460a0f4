"""Networks written as ONNX graphs by hand: fewer operators than the exporter's graph has, and smaller numbers.

Shape suffixes as in `_network_parts`; S knots of the piecewise-linear embeddings, one row each in their table.

The exporter's graph is what torch does. This one does the same with less:

- An embedding of a number is linear between knots, so it is looked up at the knots on both sides of the number, and a
  mean of the two is taken: two rows instead of a product with all pieces. What is missing has a row of its own.
- The scales of the submodels are multiplied into the first layer's weights when the graph is loaded (ONNX Runtime
  folds constants), so that rows are not copied for each submodel.
- The heads of all submodels are one product with a matrix that is zero between submodels.

With 8 bits, the rest is whole numbers: no scale is taken from the rows of a call, as ONNX's DynamicQuantizeLinear
does, so that a row has the same answer whatever rows are beside it, to the bit. Activations have 8 bits between bounds
that are known (embeddings) or were seen on a sample (hidden layers); weights have 8 bits per output, of which products
use 7: the sum of two products then fits the 16 bits of processors without VNNI (as ONNX Runtime's `reduce_range`), and
all processors give the same answer. Bounds of single units are multiplied into the layers before and after (Nagel et
al. 2019, section 4.1: cross-layer equalization), and what rounding weights shifts on average is taken off the biases
(section 4.2: bias correction).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from infra.bundle.session import INPUT, QUIET, SCORES, SPREAD
from tasks._neural.inputs import LARGEST, MAX_CODE, SMOOTH_LIMIT
from tasks._techniques._network_parts import Array, Parts, Pieces

OPSET, IR = 20, 10
"""As the exporter has them."""
MICROSOFT = "com.microsoft"
"""The domain of QGemm, the product of whole numbers that ONNX Runtime has."""
Storage = Literal["float32", "float16", "int8"]
FARTHEST = 1e18
"""Beyond what matters of a scaled number; its square is a float32."""
MISSING = 4.0
"""Stands for a missing number after scaling: beyond all knots."""
MISSING_FROM = (3.25, 3.5)
MOST_EXPANDED = 1 << 18
"""Weights of the first layer, each submodel's own, that are written out where they are float32."""
MOST_WEIGHT = 127
MOST_FACTOR = 64
"""Of a weight in a product: 2 * 255 * 64 fits into 16 bits."""
MOST_ACTIVATION = 255
LEAST = 1e-12
"""So that nothing is divided by zero."""
Reach = tuple[float, float]
"""How far the embeddings of numbers that no row had may lie beyond the others, in the width of these; and how many
times the largest output of a unit those of rows with odd values may be. What is farther is cut."""
NEAR: Reach = (3.0, 2.0)
FAR: Reach = (1e6, 1e6)
UNKNOWN = 1e7
"""A code that no vocabulary has, and a number far out."""


class Writer:
    """Operators and constants of a graph; names are short, as they are a part of its size."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._tensors: list[onnx.TensorProto] = []
        self._num_names = 0

    def add(self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add an operator, and return the name of its output."""
        output = output or self._name()
        self._nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant; equal ones are one."""
        array = np.array(values, dtype, order="C")
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._name()
            self._tensors.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """Return the name of a constant that tells a shape or axes."""
        return self.constant(values, np.int64)

    def graph(self, num_features: int, outputs: dict[str, tuple[str | int, ...]]) -> bytes:
        """Return the graph with these outputs."""
        values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()}
        given = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", num_features])
        made = helper.make_graph(self._nodes, "g", [given], list(values.values()), self._tensors)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return bytes(helper.make_model(made, opset_imports=opsets, ir_version=IR).SerializeToString())

    def _name(self) -> str:
        self._num_names += 1
        return np.base_repr(self._num_names, 36)  # capitals: never the name of an output


@dataclass(frozen=True)
class Knots:
    """Embeddings of numbers at the places between which they are linear."""

    edges_NS: Array
    """Where a number passes to the next row, filled up with infinity."""
    starts_N: NDArray[np.int32]
    """The row of each number's first knot."""
    left_S: Array
    """Where a row's piece begins."""
    slope_S: Array
    """One over its length."""
    rows_SE: NDArray[np.float64]


def knots_of(pieces: Pieces, edges: tuple[tuple[float, ...], ...]) -> Knots:
    """Return the knots of all numbers: one limit of what scaling gives, the edges, the other limit, what is missing.

    A piece adds its share of the way through it, the first one also less than none and the last one more than all of
    it, as in `rtdl_num_embeddings.PiecewiseLinearEmbeddings`; a number with a single piece has a straight line.
    """
    passes: list[list[float]] = []
    starts: list[int] = []
    lefts: list[list[float]] = []
    slopes: list[list[float]] = []
    rows: list[NDArray[np.float64]] = []
    for number, borders in enumerate(np.asarray(e, np.float32).astype(np.float64) for e in edges):
        num_pieces = len(borders) - 1
        at_S = np.array([-SMOOTH_LIMIT, *borders, SMOOTH_LIMIT])
        share_SB = (at_S[:, None] - borders[:-1]) / np.diff(borders)
        if num_pieces > 1:
            share_SB[:, 0] = np.minimum(share_SB[:, 0], 1)
            share_SB[:, 1:-1] = share_SB[:, 1:-1].clip(0, 1)
            share_SB[:, -1] = np.maximum(share_SB[:, -1], 0)
        bins_BE = pieces.bins_NBE[number].astype(np.float64)
        bins_BE = np.concatenate([bins_BE[: num_pieces - 1], bins_BE[-1:]])
        line_SE = at_S[:, None] * pieces.slope_NE[number] + pieces.offset_NE[number]
        lengths = np.diff(at_S)
        starts.append(sum(map(len, lefts)))
        passes.append([*borders, *MISSING_FROM])
        rows.append(np.concatenate([line_SE + share_SB @ bins_BE, pieces.missing_NE[number][None]]))
        lefts.append([*at_S, MISSING])
        slopes.append([*np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0), 0, 0])
    edges_NS = np.full((len(passes), max(len(passed) for passed in passes)), np.inf, np.float32)
    for number, passed in enumerate(passes):
        edges_NS[number, : len(passed)] = passed
    return Knots(
        edges_NS,
        np.array(starts, np.int32),
        np.concatenate(lefts).astype(np.float32),
        np.concatenate(slopes).astype(np.float32),
        np.concatenate([*rows, rows[-1][-1:]]),  # the last row has one after it
    )


def scaled_numbers(w: Writer, parts: Parts) -> str:
    """Write how numbers are scaled and bent, in units of SMOOTH_LIMIT, NaN where one is missing; shape (rows, N, 1).

    See `tasks._neural.network.ScaledNumbers`. Where no scale is extreme, one clip is as good as its two.
    """
    numbers = parts.inputs.numbers
    center_N1 = np.array([[number.center] for number in numbers], np.float32)
    scale_N1 = np.array([[number.scale] for number in numbers], np.float32)
    used = scale_N1[scale_N1 > 0]
    limit = FARTHEST / max(1.0, float(used.max(initial=0.0)))
    is_tame = limit * float(used.min(initial=np.inf)) > 1e6
    if [n.position for n in numbers] == list(range(parts.inputs.num_features)):
        name = w.add("Unsqueeze", INPUT, w.ints(2))
    else:
        name = w.add("Gather", INPUT, w.constant([[n.position] for n in numbers], np.int64), axis=1)
    name = w.add("Sub", name, w.constant(center_N1))
    bound = limit if is_tame else LARGEST
    name = w.add("Clip", name, w.constant(-bound), w.constant(bound))
    name = w.add("Mul", name, w.constant(scale_N1 / SMOOTH_LIMIT))
    if not is_tame:
        name = w.add("Clip", name, w.constant(-FARTHEST), w.constant(FARTHEST))
    root = w.add("Sqrt", w.add("Add", w.add("Mul", name, name), w.constant(1)))
    return w.add("Div", name, root)


def code_rows(w: Writer, parts: Parts) -> str:
    """Write which rows of the table codes have, int32, shape (rows, codes); see `tasks._neural.network.Codes`."""
    codes = parts.inputs.codes
    sizes = [code.size for code in codes]
    name = w.add("Gather", INPUT, w.constant([code.position for code in codes], np.int64), axis=1)
    name = w.add("Where", w.add("IsNaN", name), w.constant(-1), name)
    name = w.add("Clip", name, w.constant(-1), w.constant(MAX_CODE))
    name = w.add("Cast", name, to=TensorProto.INT32)
    is_known = w.add("Less", name, w.constant(sizes, np.int32))
    name = w.add("Where", is_known, name, w.constant(0, np.int32))
    name = w.add("Add", name, w.constant([sum(sizes[:i]) + i + 1 for i in range(len(sizes))], np.int32))
    if all(table.places is None for table in parts.tables):
        return name
    starts = np.cumsum([0, *(len(table.rows_RE) for table in parts.tables)])
    places = [
        start + (np.arange(len(table.rows_RE)) if table.places is None else table.places)
        for start, table in zip(starts, parts.tables, strict=False)
    ]
    number = np.uint16 if starts[-1] <= np.iinfo(np.uint16).max else np.int32
    return w.add("Gather", w.add("Cast", w.constant(np.concatenate(places), number), to=TensorProto.INT32), name)


def between_knots(w: Writer, knots: Knots, scaled: str, table: str) -> str:
    """Write the embeddings of scaled numbers, shape (rows, numbers, embedding)."""
    num_rows, limit = len(knots.rows_SE), SMOOTH_LIMIT
    scaled = w.add("Where", w.add("IsNaN", scaled), w.constant(MISSING / limit), scaled)
    passed = w.add("Cast", w.add("GreaterOrEqual", scaled, w.constant(knots.edges_NS / limit)), to=TensorProto.UINT8)
    # A product with ones takes half the time of ReduceSum.
    row = w.add("MatMulInteger", passed, w.constant(np.ones((knots.edges_NS.shape[1], 1)), np.int8))
    row = w.add("Add", w.add("Squeeze", row, w.ints(2)), w.constant(knots.starts_N, np.int32))
    left = w.add("Gather", w.constant(knots.left_S[:, None] / limit), row)
    slope = w.add("Gather", w.constant(knots.slope_S[:, None] * limit), row)
    share = w.add("Mul", w.add("Sub", scaled, left), slope)
    before = w.add("Slice", table, w.ints(0), w.ints(num_rows - 1), w.ints(0))
    after = w.add("Slice", table, w.ints(1), w.ints(num_rows), w.ints(0))
    step = w.add("Gather", w.add("Sub", after, before), row)
    return w.add("Add", w.add("Gather", table, row), w.add("Mul", share, step))


def stored(w: Writer, values: NDArray[Any], storage: Storage, axis: int | None = None) -> str:
    """Write constants that are smaller in the file than in memory, where they are float32 once the graph is loaded.

    Args:
        w: where to.
        values: what they are.
        storage: the numbers in the file; int8 has a scale for each place along `axis`.
        axis: where each place has a scale of its own, of a matrix; None: these are few, and stay.
    """
    if storage == "float32" or axis is None:
        return w.constant(values)
    if storage == "float16":
        if float(np.abs(values).max(initial=0.0)) > float(np.finfo(np.float16).max):
            return w.constant(values)
        return w.add("Cast", w.constant(values, np.float16), to=TensorProto.FLOAT)
    whole, scale = rounded(values, MOST_WEIGHT, axis)
    return w.add("Mul", w.add("Cast", w.constant(whole, np.int8), to=TensorProto.FLOAT), w.constant(scale))


def rounded(values: NDArray[Any], most: int, axis: int) -> tuple[NDArray[np.int8], Array]:
    """Return whole numbers of a matrix up to `most`, and the scale of each place along an axis.

    >>> rounded(np.array([[1.0, 20.0], [-2.0, 10.0]]), 4, 1)[0].tolist()
    [[2, 4], [-4, 2]]
    """
    scale = np.maximum(np.abs(values).max(1 - axis, keepdims=True), LEAST) / most
    scale = scale.astype(np.float32)
    return np.rint(values / scale).clip(-most, most).astype(np.int8), scale


def float_graph(
    parts: Parts, storage: Storage = "float32", has_small_tables: bool = False, watch: bool = False
) -> bytes:
    """Return the graph of a network that computes with float32, whatever its file holds.

    Args:
        parts: the network.
        storage: the numbers of its matrices in the file.
        has_small_tables: whether the tables of codes have 8 bits in memory too.
        watch: whether these are outputs too: `e`, the first layer's inputs; `h0` and so on, what the hidden layers
            give, shape (rows * submodels, width); `m`, the submodels' scores, shape (rows, submodels) and of a
            multiclass network (rows, submodels, classes).
    """
    w = Writer()
    chunks = []
    if parts.inputs.numbers:
        scaled = scaled_numbers(w, parts)
        if parts.pieces is None:
            chunks += flat_numbers(w, scaled)
        else:
            knots = knots_of(parts.pieces, tuple(number.edges for number in parts.inputs.numbers))
            embedded = between_knots(w, knots, scaled, stored(w, knots.rows_SE, storage, axis=0))
            chunks.append(w.add("Reshape", embedded, w.ints(-1, knots.rows_SE.shape[1] * len(parts.inputs.numbers))))
    if parts.tables:
        rows_RE = np.concatenate([table.rows_RE for table in parts.tables])
        looked_up = looked_up_codes(w, rows_RE, code_rows(w, parts), "int8 rows" if has_small_tables else storage)
        chunks.append(w.add("Reshape", looked_up, w.ints(-1, rows_RE.shape[1] * len(parts.tables))))
    name = w.add("Concat", *chunks, axis=1) if len(chunks) > 1 else chunks[0]
    outputs: dict[str, tuple[str | int, ...]] = {}
    if watch:
        outputs["e"] = ("rows", parts.affine_KD.shape[1])
        w.add("Identity", name, output="e")
    for number, (weight, bias) in enumerate(parts.layers):
        name = (
            w.add("Gemm", name, stored(w, weight, storage, axis=1), w.constant(bias))
            if number
            else float_first(w, parts, storage, name)
        )
        name = w.add("Relu", name)
        if watch:
            outputs[f"h{number}"] = ("any", parts.widths[number])
            w.add("Identity", name, output=f"h{number}")
    name = (
        w.add("Reshape", name, w.ints(-1, parts.num_submodels * parts.widths[-1])) if parts.num_submodels > 1 else name
    )
    name = w.add("Gemm", name, heads(w, parts), w.constant(parts.head_KO.ravel()))
    return w.graph(parts.inputs.num_features, outputs | scored(w, parts, name, watch))


def float_first(w: Writer, parts: Parts, storage: Storage, name: str) -> str:
    """Write the first hidden layer before its ReLU, shape (rows * submodels, width).

    Weights for each submodel spare a copy of the rows for each, but a single row then waits for all of them to be read
    from memory: only few are written out.
    """
    (weight_DW, bias_W), (size, num_inputs) = parts.layers[0], parts.affine_KD.shape
    if size == 1:
        matrix = stored(w, weight_DW * parts.affine_KD.T * flat_scales(parts), storage, axis=1)
        return w.add("Gemm", name, matrix, w.constant(bias_W))
    matrix = stored(w, weight_DW, storage, axis=1)
    scales = stored(w, parts.affine_KD, "float32" if storage == "float32" else "float16", axis=0)
    if parts.num_expanded > MOST_EXPANDED:
        every = w.add("Mul", w.add("Unsqueeze", name, w.ints(1)), scales)
        return w.add("Gemm", w.add("Reshape", every, w.ints(-1, num_inputs)), matrix, w.constant(bias_W))
    name = w.add("Gemm", name, expanded(w, matrix, scales, parts), w.constant(np.tile(bias_W, size)))
    return w.add("Reshape", name, w.ints(-1, parts.widths[0]))


def looked_up_codes(w: Writer, rows_RE: Array, row: str, storage: Storage | Literal["int8 rows"]) -> str:
    """Write the rows of a table, shape (rows, codes, embedding).

    A constant that is turned to float32 when the graph is loaded takes the memory of one that never was smaller. With
    "int8 rows" only the rows that are looked up are.
    """
    if storage != "int8 rows":
        return w.add("Gather", stored(w, rows_RE, storage, axis=0), row)
    whole_RE, scale_R1 = rounded(rows_RE, MOST_WEIGHT, 0)
    found = w.add("Cast", w.add("Gather", w.constant(whole_RE, np.int8), row), to=TensorProto.FLOAT)
    return w.add("Mul", found, w.add("Gather", w.constant(scale_R1), row))


def flat_numbers(w: Writer, scaled: str) -> list[str]:
    """Write numbers in units of SMOOTH_LIMIT, and flags of the missing ones, each of shape (rows, numbers)."""
    flat = w.add("Squeeze", scaled, w.ints(2))
    is_missing = w.add("IsNaN", flat)
    return [w.add("Where", is_missing, w.constant(0), flat), w.add("Cast", is_missing, to=TensorProto.FLOAT)]


def flat_scales(parts: Parts) -> Array:
    """Return what the first layer's weights are multiplied by for numbers as they are, shape (D, 1)."""
    scales_D1 = np.ones((parts.affine_KD.shape[1], 1), np.float32)
    if parts.pieces is None:
        scales_D1[: len(parts.inputs.numbers)] = SMOOTH_LIMIT
    return scales_D1


def expanded(w: Writer, weight_DW: str, scales_KD: str, parts: Parts) -> str:
    """Write the first layer's weights of all submodels side by side, shape (D, submodels * width), from shared ones."""
    num_inputs, width = parts.affine_KD.shape[1], parts.widths[0]
    scales_DK1 = w.add("Unsqueeze", w.add("Transpose", scales_KD, perm=[1, 0]), w.ints(2))
    weight_DKW = w.add("Mul", scales_DK1, w.add("Reshape", weight_DW, w.ints(num_inputs, 1, width)))
    return w.add("Reshape", weight_DKW, w.ints(num_inputs, parts.num_submodels * width))


def heads(w: Writer, parts: Parts) -> str:
    """Write the heads as one matrix, shape (submodels * width, submodels * outputs), zero between submodels."""
    size, width, num_outputs = parts.head_KWO.shape
    if size == 1:
        return w.constant(parts.head_KWO[0])
    alone = w.constant(np.eye(size).reshape(size, 1, size, 1))
    every = w.add("Mul", w.constant(parts.head_KWO[:, :, None]), alone)
    return w.add("Reshape", every, w.ints(size * width, size * num_outputs))


def scored(w: Writer, parts: Parts, raw: str, watch: bool = False) -> dict[str, tuple[str | int, ...]]:
    """Write what is served, and return the outputs; see `tasks._neural.network.Target.scores`."""
    num_outputs = parts.head_KWO.shape[2]
    if parts.task == "multiclass":
        each = w.add("Softmax", w.add("Reshape", raw, w.ints(-1, parts.num_submodels, num_outputs)), axis=-1)
    elif parts.task == "binary":
        each = w.add("Sigmoid", raw)
    else:
        each = w.add("Add", w.add("Mul", raw, w.constant(parts.scale)), w.constant(parts.shift))
    w.add("ReduceMean", each, w.ints(1), output=SCORES, keepdims=0)
    outputs: dict[str, tuple[str | int, ...]] = {
        SCORES: ("rows", num_outputs) if parts.task == "multiclass" else ("rows",)
    }
    if watch:
        outputs["m"] = ("rows", parts.num_submodels, num_outputs)[: 3 if parts.task == "multiclass" else 2]
        w.add("Identity", each, output="m")
    if parts.has_spread:
        off = w.add("Sub", each, w.add("Unsqueeze", SCORES, w.ints(1)))
        far = w.add("ReduceMean", w.add("Mul", off, off), w.ints(1), keepdims=0)
        if parts.task == "multiclass":
            likeliest = w.add("ArgMax", SCORES, axis=1, keepdims=1)
            far = w.add("Squeeze", w.add("GatherElements", far, likeliest, axis=1), w.ints(1))
        w.add("Sqrt", far, output=SPREAD)
        outputs[SPREAD] = ("rows",)
    return outputs


@dataclass(frozen=True)
class Seen:
    """What a sample of rows shows of what the layers of a network give."""

    inputs_D: Array
    """Means of the first layer's inputs."""
    most: tuple[Array, ...]
    """By hidden layer the largest output of each unit, shape (width,)."""
    mean_KV: tuple[Array, ...]
    """By hidden layer the mean output of each unit, shape (submodels, width)."""


def seen_of(parts: Parts, rows_BF: Array, most_off: float) -> Seen:
    """Run rows through a network, as they are and with gaps, and return what its layers give.

    The largest output of a unit is that of rows with gaps, but not more than so many times that of the others.
    """
    session = session_of(float_graph(parts, watch=True))
    names = ["e", *(f"h{i}" for i in range(len(parts.layers)))]
    inputs_BD, *hidden = session.run(names, {INPUT: rows_BF})
    _, *odd = session.run(names, {INPUT: with_odd_values(rows_BF)})
    tops = [(known.max(0), off.max(0)) for known, off in zip(hidden, odd, strict=True)]
    return Seen(
        inputs_BD.mean(0),
        tuple(np.maximum(np.clip(off, known, most_off * known), LEAST) for known, off in tops),
        tuple(h.reshape(-1, parts.num_submodels, h.shape[1]).mean(0) for h in hidden),
    )


def with_odd_values(rows_BF: Array) -> Array:
    """Return rows each of which has one value that is missing, infinite or unknown; by turns, in all columns.

    >>> with_odd_values(np.zeros((5, 2), np.float32))[:, 0].tolist()
    [nan, 0.0, inf, 0.0, -inf]
    """
    found, numbers = rows_BF.copy(), np.arange(len(rows_BF))
    odd = np.array([np.nan, np.inf, -np.inf, UNKNOWN], np.float32)
    num_columns = rows_BF.shape[1]
    found[numbers, numbers % num_columns] = odd[numbers // num_columns % len(odd)]
    return found


def session_of(graph: bytes) -> Any:
    """Return a session of ONNX Runtime on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = QUIET
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Coded:
    """The embeddings in 8 bits: an embedding is low + scale * a whole number up to MOST_ACTIVATION."""

    numbers_SE: NDArray[np.uint8]
    """The rows of all knots; empty without piecewise-linear embeddings."""
    codes_RE: NDArray[np.uint8]
    """The rows of all codes; empty without codes."""
    low_D: NDArray[np.float64]
    scale_D: NDArray[np.float64]


def coded(parts: Parts, knots: Knots | None, most_beyond: float) -> Coded:
    """Return the embeddings in 8 bits, between the smallest and the largest value of each; see `bounds`."""
    lows: list[NDArray[np.float64]] = []
    scales: list[NDArray[np.float64]] = []
    numbers: list[NDArray[np.uint8]] = []
    codes: list[NDArray[np.uint8]] = []
    if knots is not None:
        for start, stop in zip(knots.starts_N, [*knots.starts_N[1:], len(knots.left_S)], strict=True):
            rows_SE = knots.rows_SE[start:stop]
            numbers.append(coded_rows(rows_SE, bounds(rows_SE, most_beyond), lows, scales))
        numbers.append(numbers[-1][-1:])
    for table in parts.tables:
        rows_RE = table.rows_RE.astype(np.float64)
        codes.append(coded_rows(rows_RE, rows_RE, lows, scales))
    none = np.empty((0, 0), np.uint8)
    return Coded(
        np.concatenate(numbers) if numbers else none,
        np.concatenate(codes) if codes else none,
        np.concatenate(lows) if lows else np.empty(0),
        np.concatenate(scales) if scales else np.empty(0),
    )


def bounds(rows_SE: NDArray[np.float64], most_beyond: float) -> NDArray[np.float64]:
    """Return the rows of a number's knots between whose smallest and largest values its 8 bits lie.

    Between the outermost edges and the limits, where no row was in the training, an embedding goes on as steep as its
    last piece. It may go so many times as far as it goes between the edges; beyond, it is cut.
    """
    seen_SE = np.delete(rows_SE, [0, -2], axis=0)
    low_E, high_E = seen_SE.min(0), seen_SE.max(0)
    beyond_E = most_beyond * (high_E - low_E)
    return np.concatenate([seen_SE, rows_SE[[0, -2]].clip(low_E - beyond_E, high_E + beyond_E)])


def coded_rows(
    rows_SE: NDArray[np.float64],
    seen_SE: NDArray[np.float64],
    lows: list[NDArray[np.float64]],
    scales: list[NDArray[np.float64]],
) -> NDArray[np.uint8]:
    """Return rows as whole numbers between the bounds of what is seen, which are added to `lows` and `scales`."""
    low_E, high_E = seen_SE.min(0), seen_SE.max(0)
    scale_E = np.maximum(high_E - low_E, LEAST) / MOST_ACTIVATION
    lows.append(low_E)
    scales.append(scale_E)
    return np.asarray(np.rint((rows_SE - low_E) / scale_E).clip(0, MOST_ACTIVATION), np.uint8)


def whole_graph(parts: Parts, rows_BF: Array, reach: Reach = NEAR) -> bytes:
    """Return the graph of a network that computes with whole numbers of 8 bits.

    Args:
        parts: the network.
        rows_BF: rows that show how large the outputs of hidden layers are, shape (rows, features).
        reach: how far beyond them 8 bits go. The farther, the coarser: FAR has infinities as the network has them.
    """
    seen, w = seen_of(parts, rows_BF, reach[1]), Writer()
    knots = knots_of(parts.pieces, tuple(n.edges for n in parts.inputs.numbers)) if parts.pieces is not None else None
    codes = coded(parts, knots, reach[0])
    chunks = []
    if knots is not None:
        table = w.add("Cast", w.constant(codes.numbers_SE, np.uint8), to=TensorProto.FLOAT)
        name = whole(w, between_knots(w, knots, scaled_numbers(w, parts), table))
        chunks.append(w.add("Reshape", name, w.ints(-1, codes.numbers_SE.shape[1] * len(parts.inputs.numbers))))
    if parts.tables:
        name = w.add("Gather", w.constant(codes.codes_RE, np.uint8), code_rows(w, parts))
        chunks.append(w.add("Reshape", name, w.ints(-1, codes.codes_RE.shape[1] * len(parts.tables))))
    name = w.add("Concat", *chunks, axis=1) if len(chunks) > 1 else "".join(chunks)
    name = whole_first(w, parts, codes, seen, name)
    for number in range(1, len(parts.layers)):
        name = whole_hidden(w, parts, seen, number, name)
    name = whole_heads(w, parts, seen, name)
    return w.graph(parts.inputs.num_features, scored(w, parts, name))


def whole(w: Writer, name: str) -> str:
    """Write a rounding to whole numbers of 8 bits; what is negative becomes zero, as a ReLU has it."""
    return w.add("QuantizeLinear", name, w.constant(1.0), w.constant(0, np.uint8))


def whole_product(w: Writer, name: str, matrix: str, scale: str, bias: NDArray[np.float64], is_last: bool) -> str:
    """Write the product of whole numbers with whole weights, plus whole biases, times a scale for each output.

    The outputs are rounded to whole numbers, of which the negative ones become zero; but for the last ones, which are
    float32.
    """
    one, zero = w.constant(1.0), w.constant(0, np.uint8)
    most = np.iinfo(np.int32).max // 2
    added = w.constant(np.rint(bias).clip(-most, most), np.int32)
    zeros = w.constant(np.zeros(len(bias)), np.int8)
    rest = [] if is_last else [one, zero]
    return w.add("QGemm", name, one, zero, matrix, scale, zeros, added, *rest, domain=MICROSOFT)


def whole_first(w: Writer, parts: Parts, codes: Coded, seen: Seen, name: str) -> str:
    """Write the first hidden layer, whose inputs have scales and lows of their own; see `expanded_whole`.

    Numbers that are not embedded stay float32 in it: 8 bits hold them too coarsely.
    """
    weight_DW, bias_W = (part.astype(np.float64) for part in parts.layers[0])
    up_W = MOST_ACTIVATION / seen.most[0].astype(np.float64)
    num_flat, size = len(weight_DW) - len(codes.low_D), parts.num_submodels
    mean_D = (seen.inputs_D[num_flat:] - codes.low_D) / codes.scale_D
    scales_KD = parts.affine_KD[:, num_flat:] * codes.scale_D
    lows_KW = np.einsum("kd,dw->kw", parts.affine_KD[:, num_flat:] * codes.low_D, weight_DW[num_flat:])
    if num_flat and not len(codes.low_D):
        name = w.constant(bias_W * up_W)
    else:
        matrix, scale, real = expanded_whole(w, scales_KD, weight_DW[num_flat:], up_W)
        whole_DM, scale_M = real
        exact_M = (np.einsum("kd,dw->kw", scales_KD * mean_D, weight_DW[num_flat:]) * up_W).ravel()
        shift_M = exact_M - mean_D @ (whole_DM * scale_M)
        bias_M = ((bias_W + lows_KW) * up_W).ravel() + shift_M
        name = whole_product(w, name, matrix, scale, bias_M / scale_M, is_last=bool(num_flat))
    if num_flat:
        flat = w.add("Concat", *flat_numbers(w, scaled_numbers(w, parts)), axis=1)
        flat_weight = stored(w, weight_DW[:num_flat] * flat_scales(parts)[:num_flat] * up_W, "float16", axis=1)
        name = whole(w, w.add("Gemm", flat, flat_weight, name))
    return w.add("Reshape", name, w.ints(-1, parts.widths[0])) if size > 1 else name


def expanded_whole(
    w: Writer, scales_KD: NDArray[np.float64], weight_DW: NDArray[np.float64], up_W: NDArray[np.float64]
) -> tuple[str, str, tuple[NDArray[np.int8], Array]]:
    """Write the whole weights of the first layer for all submodels, shape (D, submodels * width), and their scales.

    With several submodels they are computed when the graph is loaded, from shared weights in 8 bits. Each operator is
    exact or rounds once, so that every machine gets the same, and so does the copy that is returned beside the names.
    """
    (size, num_inputs), width = scales_KD.shape, weight_DW.shape[1]
    if size == 1:
        whole_DW, scale_1W = rounded(weight_DW * scales_KD.T * up_W, MOST_FACTOR, 1)
        return w.constant(whole_DW, np.int8), w.constant(scale_1W[0]), (whole_DW, scale_1W[0])
    whole_DW, scale_1W = rounded(weight_DW, MOST_WEIGHT, 1)
    largest = np.abs(scales_KD).max()
    scales_DK1 = (scales_KD.T / largest).astype(np.float16)[:, :, None]
    up_1W = (largest * scale_1W[0] * up_W).astype(np.float32)[None]
    known_DKW = scales_DK1.astype(np.float32) * whole_DW.astype(np.float32)[:, None]
    step_1KW = np.maximum(np.abs(known_DKW).max(0, keepdims=True), np.float32(LEAST)) / np.float32(MOST_FACTOR)
    known_DM = np.rint(known_DKW / step_1KW).astype(np.int8).reshape(num_inputs, size * width)
    known_M = (step_1KW[0] * up_1W).ravel()

    scales = w.add("Cast", w.constant(scales_DK1, np.float16), to=TensorProto.FLOAT)
    shared = w.add("Cast", w.constant(whole_DW[:, None], np.int8), to=TensorProto.FLOAT)
    weight = w.add("Mul", scales, shared)
    step = w.add("Max", w.add("ReduceMax", w.add("Abs", weight), w.ints(0)), w.constant(LEAST))
    step = w.add("Div", step, w.constant(MOST_FACTOR))
    matrix = w.add("Cast", w.add("Round", w.add("Div", weight, step)), to=TensorProto.INT8)
    matrix = w.add("Reshape", matrix, w.ints(num_inputs, size * width))
    scale = w.add("Reshape", w.add("Mul", step, w.constant(up_1W)), w.ints(size * width))
    return matrix, scale, (known_DM, known_M)


def whole_hidden(w: Writer, parts: Parts, seen: Seen, number: int, name: str) -> str:
    """Write a hidden layer after the first one."""
    weight_VW, bias_W = parts.layers[number]
    down_V = seen.most[number - 1].astype(np.float64) / MOST_ACTIVATION
    up_W = MOST_ACTIVATION / seen.most[number].astype(np.float64)
    real_VW = weight_VW * down_V[:, None] * up_W
    whole_VW, scale_1W = rounded(real_VW, MOST_FACTOR, 1)
    shift_W = (seen.mean_KV[number - 1].mean(0) / down_V) @ (real_VW - whole_VW * scale_1W)
    bias_W = (bias_W * up_W + shift_W) / scale_1W[0]
    return whole_product(w, name, w.constant(whole_VW, np.int8), w.constant(scale_1W[0]), bias_W, is_last=False)


def whole_heads(w: Writer, parts: Parts, seen: Seen, name: str) -> str:
    """Write the heads as one product; see `heads`."""
    size, width, num_outputs = parts.head_KWO.shape
    down_W = seen.most[-1].astype(np.float64) / MOST_ACTIVATION
    real_KWO = parts.head_KWO * down_W[:, None]
    parts_KWO = [rounded(real_WO, MOST_FACTOR, 1) for real_WO in real_KWO]
    whole_KWO, scale_KO = np.stack([part for part, _ in parts_KWO]), np.stack([scale[0] for _, scale in parts_KWO])
    shift_KO = np.einsum("kw,kwo->ko", seen.mean_KV[-1] / down_W, real_KWO - whole_KWO * scale_KO[:, None])
    bias_KO = (parts.head_KO + shift_KO) / scale_KO
    matrix = w.constant(whole_KWO[0], np.int8)
    if size > 1:
        alone = w.constant(np.eye(size).reshape(size, 1, size, 1), np.int32)
        every = w.add("Cast", w.constant(whole_KWO[:, :, None], np.int8), to=TensorProto.INT32)
        every = w.add("Cast", w.add("Mul", every, alone), to=TensorProto.INT8)
        matrix = w.add("Reshape", every, w.ints(size * width, size * num_outputs))
        name = w.add("Reshape", name, w.ints(-1, size * width))
    return whole_product(w, name, matrix, w.constant(scale_KO.ravel()), bias_KO.ravel(), is_last=True)
