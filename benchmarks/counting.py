"""Fewest floating-point operations and bytes of the benchmarks' workloads, and the least time that they take.

A step is a list of terms. A term is done when its products are and when what it reads and writes has been moved; the
two overlap, so that its least time is the larger one. A term needs the results of the one before: the least time of a
step is the sum of its terms. Bytes move at the rate of the cache where all of a term fits into it.

Counted as the fewest: every tensor between two layers is written once and read once by each pass that needs it; bias,
ReLU and mask cost no pass of their own; rows of the embedding table are read and updated where the batch has them;
numeric features need no gradient. Not counted: what a step could do without, as checks, the starting of operations, and
fresh memory from the system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, NamedTuple

__all__ = [
    "ADAM_OF_TORCH",
    "Product",
    "Rates",
    "Shape",
    "Term",
    "adam",
    "evaluation",
    "fork",
    "gathering",
    "plain_step",
    "products_of",
    "pub_solve",
    "seconds",
    "sgd",
    "torch_adam",
]

NUMBER: Final = 4  # bytes of a float32, and of an id as splits hold it
ID: Final = 8  # bytes of an id as a batch holds it
ADAM_OF_TORCH: Final = {"foreach": 3 + 2 + 3 + 2 + 2 + 2 + 4, "fused": 7}
"""Tensors that torch's Adam reads and writes in a step, for each parameter: the default makes passes for lerp_, mul_,
addcmul_, sqrt, div_, add_ and addcdiv_, the fused one reads gradient, parameter and both moments and writes three."""


class Product(NamedTuple):
    """A matrix product of a linear layer.

    Attributes:
        kind: "forward": [rows, inputs] × [inputs, outputs]; "input": the gradient of the input,
            [rows, outputs] × [outputs, inputs]; "weight": that of the weight, [outputs, rows] × [rows, inputs].
    """

    kind: Literal["forward", "input", "weight"]
    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each pair."""
        return 2 * self.rows * self.inputs * self.outputs


@dataclass(frozen=True)
class Term:
    """A part of a workload.

    Attributes:
        products: of linear layers, each as often as it is made.
        flops: further operations.
        bytes: read and written.
        every: one step out of so many has it.
    """

    name: str
    products: tuple[Product, ...] = ()
    flops: int = 0
    bytes: int = 0
    every: int = 1

    @property
    def all_flops(self) -> int:
        """All operations."""
        return self.flops + sum(product.flops for product in self.products)


@dataclass(frozen=True)
class Rates:
    """Rates of a machine.

    Attributes:
        products: operations per second of each product.
        flops: of the fastest of them.
        cache: bytes per second of what fits into the cache.
        memory: of what does not.
        cache_bytes: the size of the cache.
    """

    products: Mapping[Product, float]
    flops: float
    cache: float
    memory: float
    cache_bytes: int


def seconds(term: Term, rates: Rates, /) -> float:
    """Return the least time of a term in the average step."""
    computing = term.flops / rates.flops + sum(product.flops / rates.products[product] for product in term.products)
    moving = term.bytes / (rates.cache if term.bytes <= rates.cache_bytes else rates.memory)
    return max(computing, moving) / term.every


@dataclass(frozen=True)
class Shape:
    """A shared bottom and a batch.

    Attributes:
        rows: of a batch.
        fields: categorical features.
        dimension: of an embedding.
        numbers: numeric features.
        bottom: widths of the shared layers.
        tower: widths of each task's hidden layers.
        table_rows: rows of the embedding table.
        touched: rows of the table that a batch has, on average.
    """

    rows: int
    fields: int
    dimension: int
    numbers: int
    bottom: tuple[int, ...]
    tower: tuple[int, ...]
    tasks: int
    table_rows: int
    touched: int

    @property
    def shared(self) -> int:
        """Numbers of the tensor that the tasks share."""
        return self.rows * self.bottom[-1]

    @property
    def bottom_widths(self) -> tuple[int, ...]:
        """Widths from the input to the shared tensor."""
        return (self.fields * self.dimension + self.numbers, *self.bottom)

    @property
    def tower_widths(self) -> tuple[int, ...]:
        """Widths from the shared tensor to a logit."""
        return (self.bottom[-1], *self.tower, 1)

    @property
    def bottom_parameters(self) -> int:
        """Numbers in the weights and biases of the shared layers."""
        return _parameters(self.bottom_widths)

    @property
    def dense_parameters(self) -> int:
        """Numbers in all weights and biases."""
        return self.bottom_parameters + self.tasks * _parameters(self.tower_widths)


def plain_step(shape: Shape, /) -> list[Term]:
    """Count a step with the plain sum of the losses, without the optimizer's part."""
    s, tasks = shape, shape.tasks
    embedded = s.rows * s.fields * s.dimension * NUMBER
    numbers = s.rows * s.numbers * NUMBER
    return [
        Term("embedding rows read", bytes=s.rows * s.fields * ID + 2 * (embedded + numbers)),
        _forward("bottom, forward", s.rows, s.bottom_widths),
        _forward("towers, forward", s.rows, s.tower_widths, tasks),
        # logit and label read, gradient written
        Term("losses", bytes=3 * s.rows * tasks * NUMBER),
        _backward("towers, backward", s.rows, s.tower_widths, count=tasks),
        # each task's gradient read, their sum written
        Term("tasks' gradients added up", flops=tasks * s.shared, bytes=(tasks + 1) * s.shared * NUMBER),
        _backward("bottom, backward", s.rows, s.bottom_widths, inputs=s.fields * s.dimension),
        # gradients of the embeddings read, added up by row
        Term("embedding rows' gradients", flops=s.rows * s.fields * s.dimension, bytes=embedded + _touched(s)),
    ]


def fork(shape: Shape, /, *, gram_every: int = 1) -> list[Term]:
    """Count what a fork adds: the Gram matrix, in one step out of ``gram_every``.

    The tasks' gradients are added up as in the plain sum, with weights; the weights themselves are a few numbers.
    """
    tasks, shared = shape.tasks, shape.shared
    # M (M + 1) / 2 inner products of two operations a number; each task's gradient read
    flops, moved = tasks * (tasks + 1) * shared, tasks * shared * NUMBER
    return [Term("Gram matrix at the fork", flops=flops, bytes=moved, every=gram_every)]


def pub_solve(shape: Shape, /, *, on: Literal["all", "last"], every: int = 10) -> list[Term]:
    """Count what PUB adds in one step out of ``every``, that solves for its weights; the others are the plain sum's."""
    s, tasks = shape, shape.tasks
    if on == "last":
        before, last = s.bottom_widths[-2:]
        products = (Product("weight", s.rows, before, last),) * tasks
        measured = (before + 1) * last
        read = s.rows * (before + tasks * last) * NUMBER
        name = "weights' gradients of the last layer, per task"
        each = Term(name, products, bytes=read + tasks * measured * NUMBER, every=every)
    else:
        one = _backward("", s.rows, s.bottom_widths, inputs=s.fields * s.dimension)
        embedded = s.rows * s.fields * s.dimension * NUMBER
        again = tasks - 1
        measured = s.bottom_parameters + s.touched * s.dimension
        each = Term(
            "passes of the other tasks through bottom and embedding",
            one.products * again,
            again * s.rows * s.fields * s.dimension,
            again * (one.bytes + embedded + _touched(s)),
            every,
        )
    flops, moved = tasks * (tasks + 1) * measured, tasks * measured * NUMBER
    return [each, Term("Gram matrix of parameters", flops=flops, bytes=moved, every=every)]


def sgd(shape: Shape, /) -> list[Term]:
    """Count SGD: dense parameters and touched rows are read and written, with their gradients read."""
    dense = 3 * shape.dense_parameters * NUMBER
    return [Term("parameters updated", bytes=dense), Term("embedding rows updated", bytes=3 * _touched(shape))]


def adam(shape: Shape, /, *, row_wise_table: bool = False) -> list[Term]:
    """Count Adam: gradient, parameter and two moments read, the last three written.

    Adam moves every row of the table in every step; row-wise Adagrad (one number of state per row) those of the batch.
    """
    dense = Term("parameters updated", bytes=7 * shape.dense_parameters * NUMBER)
    if row_wise_table:
        rows = 3 * _touched(shape) + 2 * shape.touched * NUMBER
    else:
        rows = 6 * shape.table_rows * shape.dimension * NUMBER + _touched(shape)
    return [dense, Term("embedding rows updated", bytes=rows)]


def torch_adam(shape: Shape, kind: Literal["foreach", "fused"], /, *, row_wise_table: bool = False) -> list[Term]:
    """Count Adam as torch makes it: with a gradient of the whole table, unless row-wise Adagrad steps that."""
    numbers = shape.dense_parameters
    if not row_wise_table:
        numbers += shape.table_rows * shape.dimension
    found = [Term(f"Adam, {kind}", bytes=ADAM_OF_TORCH[kind] * numbers * NUMBER)]
    return [*found, adam(shape, row_wise_table=True)[1]] if row_wise_table else found


def gathering(shape: Shape, /) -> list[Term]:
    """Count the gathering of a shuffled batch: its rows read and written, ids widened."""
    others = shape.numbers + shape.tasks + 1  # numbers, labels, weight
    return [Term("batch gathered", bytes=shape.rows * (shape.fields * (NUMBER + ID) + 2 * others * NUMBER))]


def evaluation(rows: int, tasks: int, /) -> list[Term]:
    """Count the exact AUC and log loss of float32 predictions.

    A radix sort of float32 by digits of 11 bits reads the numbers once to count digits, and reads and writes them three
    times; positives and negatives lie apart, so that no label moves along.
    """
    each = rows * NUMBER
    return [
        # a logarithm and an exponential function count as one operation each, beside five others
        Term("log loss, entropy, calibration", flops=7 * rows * tasks, bytes=2 * tasks * each),
        Term("AUC: sorting", bytes=7 * tasks * each),
        Term("AUC: counting pairs", flops=rows * tasks, bytes=tasks * each),
    ]


def _parameters(widths: Sequence[int]) -> int:
    return sum((before + 1) * after for before, after in pairwise(widths))


def _touched(shape: Shape) -> int:
    """Return the bytes of the table's rows that a batch has."""
    return shape.touched * shape.dimension * NUMBER


def _forward(name: str, rows: int, widths: Sequence[int], count: int = 1) -> Term:
    layers = list(pairwise(widths))
    products = tuple(Product("forward", rows, before, after) for before, after in layers)
    moved = sum(rows * (before + after) + (before + 1) * after for before, after in layers)
    return Term(name, products * count, bytes=count * moved * NUMBER)


def _backward(name: str, rows: int, widths: Sequence[int], *, inputs: int | None = None, count: int = 1) -> Term:
    """Count the gradients of weights and inputs; of the first layer's inputs the first ``inputs`` have one."""
    layers = list(pairwise(widths))
    products = [Product("weight", rows, before, after) for before, after in layers]
    wanted = [widths[0] if inputs is None else inputs, *(before for before, _ in layers[1:])]
    products += [
        Product("input", rows, width, after) for width, (_, after) in zip(wanted, layers, strict=True) if width
    ]
    # Read: the layer's input, its output for the mask, the gradient of the output, the weight. Written: the gradients.
    moved = sum(
        rows * (before + 2 * after + width) + 2 * (before + 1) * after
        for width, (before, after) in zip(wanted, layers, strict=True)
    )
    return Term(name, tuple(products) * count, bytes=count * moved * NUMBER)


def products_of(terms: Iterable[Term], /) -> list[Product]:
    """Return each product once."""
    return list(dict.fromkeys(product for term in terms for product in term.products))
