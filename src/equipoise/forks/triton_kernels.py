"""The Triton kernels that :mod:`equipoise.forks.kernels` launches.

Arguments in capitals are known when a kernel is built, one for each of their values. ``COUNT`` is the number of tasks,
``ROWS`` the power of two that it is filled up to, and ``vectors`` holds one gradient per task. Of pointers to few
numbers Triton is not told whether they are multiples of 16 bytes, so that one form of the kernel fits all.
"""

import triton
import triton.language as tl

__all__ = [
    "balance_step_kernel",
    "gram_and_balance_kernel",
    "gram_by_tiles_kernel",
    "gram_in_registers_kernel",
    "weighted_sum_kernel",
]


@triton.jit
def _gram_in_registers(
    vectors, length, steps, divisor, partial, COUNT: tl.constexpr, BLOCK: tl.constexpr, DIVIDED: tl.constexpr
):
    """Add up the products of all pairs place by place, and sum over places at the end; ``partial`` [programs, M, M]."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.num_programs(0).to(tl.int64) * BLOCK
    products = ()
    for _ in tl.static_range(COUNT * (COUNT + 1) // 2):
        products = products + (tl.zeros([BLOCK], tl.float32),)
    for _ in range(steps):
        rows = ()
        for task in tl.static_range(COUNT):
            row = tl.load(vectors[task] + place, mask=place < length, other=0.0).to(tl.float32)
            if DIVIDED:
                row = row / tl.load(divisor).to(tl.float32)
            rows = rows + (row,)
        further = ()
        for row in tl.static_range(COUNT):
            for column in tl.static_range(row + 1):
                further = further + (products[row * (row + 1) // 2 + column] + rows[row] * rows[column],)
        products = further
        place += stride
    own = partial + tl.program_id(0) * (COUNT * COUNT)
    for row in tl.static_range(COUNT):
        for column in tl.static_range(row + 1):
            product = tl.sum(products[row * (row + 1) // 2 + column])
            tl.store(own + row * COUNT + column, product)
            tl.store(own + column * COUNT + row, product)


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["divisor", "partial"])
def gram_in_registers_kernel(
    vectors, length, steps, divisor, partial, COUNT: tl.constexpr, BLOCK: tl.constexpr, DIVIDED: tl.constexpr
):
    """Write each program's part of the Gram matrix into ``partial`` [programs, M, M]."""
    _gram_in_registers(vectors, length, steps, divisor, partial, COUNT, BLOCK, DIVIDED)


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["divisor", "partial"])
def gram_by_tiles_kernel(
    vectors, length, steps, divisor, partial, one,
    COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DIVIDED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Add up products of tiles of all tasks on the matrix units; ``partial`` [programs, M, M]."""
    row = tl.arange(0, ROWS)
    address = tl.zeros([ROWS], tl.int64)
    for task in tl.static_range(COUNT):
        address = tl.where(row == task, vectors[task].to(tl.int64, bitcast=True), address)
    start = address.to(vectors[0].dtype, bitcast=True)
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.num_programs(0).to(tl.int64) * BLOCK
    total = tl.zeros([ROWS, ROWS], tl.float32)
    for _ in range(steps):
        inside = (row < COUNT)[:, None] & (place < length)[None, :]
        tile = tl.load(start[:, None] + place[None, :], mask=inside, other=0.0)
        if DIVIDED:
            tile = tile.to(tl.float32) / tl.load(divisor).to(tl.float32)
        # The matrix units cut off what they add up. With a factor that the compiler does not know to be 1 it cannot let
        # them add to the total, and their sums stay short.
        total += one * tl.dot(tile, tl.trans(tile), input_precision="tf32x3")
        place += stride
    own = partial + tl.program_id(0) * (COUNT * COUNT) + row[:, None] * COUNT + row[None, :]
    total = (total + tl.trans(total)) / 2  # symmetric to the last bit
    tl.store(own, total, mask=(row < COUNT)[:, None] & (row < COUNT)[None, :])


@triton.jit(do_not_specialize_on_alignment=["weights"])
def weighted_sum_kernel(vectors, weights, total, length, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Write the weighted sum of a block of all gradients."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < length
    found = tl.zeros([BLOCK], tl.float32)
    for task in tl.static_range(COUNT):
        found += tl.load(weights + task).to(tl.float32) * tl.load(vectors[task] + place, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(total + place, found, mask=inside)


@triton.jit
def _balanced(
    gram, squares, averages, balance, preferences, known, last_gram, last_weights, last_present, weights, here,
    gamma, pull, beta, unit,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COSINE: tl.constexpr, PREFERRING: tl.constexpr, KNOWN: tl.constexpr,
):  # fmt: skip
    """Find the weights of MultiBalance from the Gram matrix and its diagonal, and move the state on; one program."""
    task = tl.arange(0, ROWS)
    exists = task < COUNT
    within = exists[:, None] & exists[None, :]
    present = (squares > 0) & (squares < float("inf"))
    known_gram = tl.where(present[:, None] & present[None, :], gram, 0.0)
    tl.store(last_gram + task[:, None] * COUNT + task[None, :], known_gram, mask=within)
    tl.store(last_present + task, present, mask=exists)
    tl.store(here + task, present, mask=exists)

    norms = tl.sqrt(tl.where(present, squares, 1.0))
    average = tl.load(averages + task, mask=exists, other=0.0)
    correction = tl.load(averages + COUNT + task, mask=exists, other=0.0)
    average = tl.where(present, average + gamma * (norms - average), average)
    correction = tl.where(present, correction + gamma * (1 - correction), correction)
    tl.store(averages + task, average, mask=exists)
    tl.store(averages + COUNT + task, correction, mask=exists)
    seen = correction > 0
    corrected = tl.where(seen, average / tl.where(seen, correction, 1.0), 0.0)
    mean = tl.sum(corrected) / tl.sum(seen.to(tl.float32))
    ratios = mean / tl.where(present, corrected, 1.0)

    share = tl.load(balance + task, mask=exists, other=0.0)
    if COSINE:
        inverse = tl.where(present, 1 / norms, 0.0)
        pulled = inverse * (share + pull)
        slope = tl.sum(known_gram * pulled[None, :], axis=1) * inverse
        free = 1 - tl.sum(tl.where(present, 0.0, share))
        # The projection onto the simplex; see equipoise.solvers.simplex.
        moved = tl.where(present, share - beta * slope, -float("inf"))
        values = tl.where(present, tl.maximum(moved - tl.max(moved), -1 - free), 0.0)
        above = present[None, :] & (values[None, :] >= values[:, None])
        sums = tl.sum(tl.where(above, values[None, :], 0.0), axis=1)
        thresholds = (sums - free) / tl.maximum(tl.sum(above.to(tl.float32), axis=1), 1.0)
        threshold = tl.max(tl.where(present, thresholds, -float("inf")))
        share = tl.where(present, tl.maximum(values - threshold, 0.0), share)
        tl.store(balance + task, share, mask=exists)

    if PREFERRING:
        ratios = ratios * tl.load(preferences + task, mask=exists, other=0.0)
    otherwise = tl.full([ROWS], 1.0, tl.float32)
    if KNOWN:
        otherwise = tl.load(known + task, mask=exists, other=0.0)
    found = tl.where(present, share / unit * ratios, otherwise)
    tl.store(last_weights + task, found, mask=exists)
    tl.store(weights + task, found, mask=exists)


@triton.jit(
    do_not_specialize_on_alignment=[
        "gram", "averages", "balance", "preferences", "known", "last_gram", "last_weights", "last_present", "weights",
        "here",
    ]
)  # fmt: skip
def balance_step_kernel(
    gram, averages, balance, preferences, known, last_gram, last_weights, last_present, weights, here,
    gamma, pull, beta, unit,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COSINE: tl.constexpr, PREFERRING: tl.constexpr, KNOWN: tl.constexpr,
):  # fmt: skip
    """Find the weights of MultiBalance, and move its state on; one program."""
    task = tl.arange(0, ROWS)
    exists = task < COUNT
    within = exists[:, None] & exists[None, :]
    squares = tl.load(gram + task * (COUNT + 1), mask=exists, other=0.0)
    found = tl.load(gram + task[:, None] * COUNT + task[None, :], mask=within, other=0.0)
    _balanced(
        found, squares, averages, balance, preferences, known, last_gram, last_weights, last_present, weights, here,
        gamma, pull, beta, unit, COUNT, ROWS, COSINE, PREFERRING, KNOWN,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["steps"],
    do_not_specialize_on_alignment=[
        "divisor", "partial", "counter", "averages", "balance", "preferences", "last_gram", "last_weights",
        "last_present", "weights", "here",
    ],
)  # fmt: skip
def gram_and_balance_kernel(
    vectors, length, steps, divisor, partial, counter, averages, balance, preferences, last_gram, last_weights,
    last_present, weights, here, gamma, pull, beta, unit,
    COUNT: tl.constexpr, BLOCK: tl.constexpr, DIVIDED: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
    COSINE: tl.constexpr, PREFERRING: tl.constexpr,
):  # fmt: skip
    """Do as the kernels of the Gram matrix in registers and of the step; the program that comes last does the step.

    ``counter`` counts the programs; it is 0 before and after. The last one adds up ``AT_ONCE`` parts of the matrix at a
    time, in an order that does not depend on which program it is.
    """
    _gram_in_registers(vectors, length, steps, divisor, partial, COUNT, BLOCK, DIVIDED)
    tl.debug_barrier()  # all threads of the program have written their part
    programs = tl.num_programs(0)
    if tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1:
        tl.store(counter, 0)
        task = tl.arange(0, ROWS)
        part = tl.arange(0, AT_ONCE)
        exists = task < COUNT
        places = (part * (COUNT * COUNT))[:, None, None] + (task[:, None] * COUNT + task[None, :])[None, :, :]
        within = (exists[:, None] & exists[None, :])[None, :, :]
        total = tl.zeros([AT_ONCE, ROWS, ROWS], tl.float32)
        for first in range(0, programs, AT_ONCE):
            inside = within & (first + part < programs)[:, None, None]
            # Not from the cache of this processor, which knows nothing of what others have written.
            total += tl.load(partial + first * (COUNT * COUNT) + places, mask=inside, other=0.0, cache_modifier=".cg")
        gram = tl.sum(total, axis=0)
        squares = tl.sum(tl.where(task[:, None] == task[None, :], gram, 0.0), axis=1)
        _balanced(
            gram, squares, averages, balance, preferences, None, last_gram, last_weights, last_present, weights, here,
            gamma, pull, beta, unit, COUNT, ROWS, COSINE, PREFERRING, False,
        )  # fmt: skip
