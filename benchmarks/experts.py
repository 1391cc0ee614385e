"""Experts in a loop or as batched matrix products: processor time of a forward and backward pass.

    python benchmarks/experts.py --out benchmarks/results/experts-cpu.md

All three ways read the same parameters, one network per expert. "one product" concatenates the weights of all experts'
first layers, which share their input, and goes on in a loop; "batched" stacks the weights of every layer for
``baddbmm``. Processor time of one thread, because it hardly depends on what else the machine does; the order of each
round is drawn anew.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from equipoise.measuring import cpu_name, median_interval
from equipoise.ranking.layers import Experts

SIZES = ((4, 100, (128, 64), 2048, 40), (2, 100, (64,), 2048, 40), (8, 2111, (512, 256), 2048, 4))
"""Experts, their inputs and widths, rows, rounds: MMoE's and PLE's default sizes, and MTReclib's."""


def layers_of(experts: Experts) -> list[list[nn.Linear]]:
    return [[layer for layer in expert if isinstance(layer, nn.Linear)] for expert in experts]


def one_product(experts: Experts, x: Tensor) -> Tensor:
    first = [layers[0] for layers in layers_of(experts)]
    weight, bias = torch.cat([layer.weight for layer in first]), torch.cat([layer.bias for layer in first])
    hidden = torch.addmm(bias, x, weight.t()).relu().chunk(len(first), 1)
    return torch.stack([expert[2:](part) for expert, part in zip(experts, hidden, strict=True)], 1)


def batched(experts: Experts, x: Tensor) -> Tensor:
    hidden = x.expand(len(experts), *x.shape)
    for of_depth in zip(*layers_of(experts), strict=True):
        weight = torch.stack([layer.weight for layer in of_depth])
        bias = torch.stack([layer.bias for layer in of_depth])
        hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2)).relu()
    return hidden.transpose(0, 1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    ways = {"loop": lambda experts, x: experts(x), "one product": one_product, "batched": batched}
    order = random.Random(0)
    lines = [f"{cpu_name()}, 1 thread, torch {torch.__version__}. Processor time of a pass over the loop's, median and "
             "95 % interval.", "", "| experts | inputs | widths | rows | loop, ms | one product | batched |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for count, inputs, widths, rows, rounds in SIZES:
        experts, x = Experts(count, inputs, widths), torch.randn(rows, inputs, requires_grad=True)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way in order.sample(list(ways), len(ways)):
                started = time.process_time()
                ways[way](experts, x).sum().backward()
                if turn:
                    seconds[way].append(time.process_time() - started)
        cells = []
        for way in ("one product", "batched"):
            ratios = [own / loop for own, loop in zip(seconds[way], seconds["loop"], strict=True)]
            low, high = median_interval(ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")
        shown = [str(count), str(inputs), "-".join(map(str, widths)), str(rows)]
        loop = f"{1e3 * statistics.median(seconds['loop']):.1f}"
        lines.append(f"| {' | '.join([*shown, loop, *cells])} |")
        print(lines[-1], flush=True)
    if chosen.out is not None:
        chosen.out.write_text("\n".join(["# Experts in a loop or batched", "", *lines]) + "\n")


if __name__ == "__main__":
    main()
