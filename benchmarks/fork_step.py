"""Time of one MultiBalance step on a CPU: of ``weigh`` alone, and of the fork's whole backward pass.

Run with ``python benchmarks/fork_step.py``; prints one JSON object. ``weigh`` is timed in a tight loop ("warm") and
after 64 MB of other memory have been read ("swept"), as it finds the caches in a training step. Medians.
"""

import json
import platform
import statistics
import time

import torch

from equipoise import Fork, MultiBalance

ROUNDS = 100
SHAPE = (4096, 128)


def median_us(call, before=lambda: None) -> float:
    times = []
    for _ in range(ROUNDS):
        before()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[ROUNDS // 10 :]) * 1e6, 1)


def backward_us(fork: Fork, gradients: list[torch.Tensor]) -> float:
    def prepare() -> None:
        shared = torch.zeros(SHAPE, requires_grad=True)
        held.append(fork(shared))
        del held[:-1]

    held: list[tuple[torch.Tensor, ...]] = []
    return median_us(lambda: torch.autograd.backward(held[-1], gradients), prepare)


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    sweep = torch.ones(1 << 24)
    found: dict[str, object] = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    for tasks in (2, 8, 32):
        gradients = [torch.randn(SHAPE, generator=generator) for _ in range(tasks)]
        rows = torch.stack([gradient.flatten() for gradient in gradients])
        gram, present = rows @ rows.T, torch.ones(tasks, dtype=torch.bool)
        fork = MultiBalance(tasks)
        with torch.no_grad():
            found[f"M={tasks}"] = {
                "weigh, warm, us": median_us(lambda fork=fork, gram=gram, present=present: fork.weigh(gram, present)),
                "weigh, swept, us": median_us(
                    lambda fork=fork, gram=gram, present=present: fork.weigh(gram, present), sweep.sum
                ),
            }
        found[f"M={tasks}"] |= {
            "backward, us": backward_us(fork, gradients),
            "backward of a fork with weights of 1, us": backward_us(Fork(tasks), gradients),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
