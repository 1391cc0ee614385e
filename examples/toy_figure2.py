"""Figure 2 of the PUB paper: two parameters, two losses, five starts; PUB beside plain Adam and MultiBalance.

``python examples/toy_figure2.py`` draws docs/toy_figure2.png again (some minutes; needs matplotlib). Losses and
starts are those of arXiv 2410.05806. The middle of the Pareto set, where both losses are equal, is (−15.09, −15.09).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from equipoise.forks.multibalance import MultiBalance
from equipoise.optim import PUB

STARTS = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
BALANCED = (-15.09, -15.09)
LEARNING_RATE = 1e-2
STEPS = 8000


def losses(x: Tensor) -> Tensor:
    """Return both losses at points ``x`` [..., 2], shape [..., 2]."""
    x1, x2 = x.unbind(-1)
    f1 = ((0.5 * (-x1 - 7) - torch.tanh(-x2)).abs().clamp(min=5e-6)).log() + 6
    f2 = ((0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs().clamp(min=5e-6)).log() + 6
    h1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    h2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    c1 = torch.tanh(x2 / 2).clamp(min=0)
    c2 = torch.tanh(-x2 / 2).clamp(min=0)
    return torch.stack((c1 * f1 + c2 * h1, c1 * f2 + c2 * h2), -1)


def train(method: str, start: tuple[float, float], steps: int = STEPS) -> Tensor:
    """Return the path of ``method`` ("Adam", "MultiBalance" or "PUB") from ``start``, shape [steps + 1, 2]."""
    x = nn.Parameter(torch.tensor(start))
    adam = torch.optim.Adam([x], lr=LEARNING_RATE)
    points = [x.detach().clone()]
    if method == "PUB":
        pub = PUB(adam, shared=[x], update_every=1, form="literal")
        for _ in range(steps):
            pub.zero_grad()
            pub.backward(losses(x))
            pub.step()
            points.append(x.detach().clone())
        return torch.stack(points)
    fork = MultiBalance(2) if method == "MultiBalance" else None
    for _ in range(steps):
        adam.zero_grad()
        if fork is None:
            losses(x).sum().backward()
        else:
            first, second = fork(x)  # the parameters themselves are what the tasks share
            (losses(first)[0] + losses(second)[1]).backward()
        adam.step()
        points.append(x.detach().clone())
    return torch.stack(points)


def draw(paths: dict[str, list[Tensor]], file: Path) -> None:
    """Draw one panel per method: its paths over the contours of the mean loss, on the Pareto set in yellow."""
    import matplotlib as mpl  # only the picture needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    axis = torch.linspace(-11, 11, 400)
    heights = losses(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)).mean(-1)
    mpl.rcParams.update({"font.size": 15, "axes.titlesize": 18})  # to be read on a phone too
    figure, panels = plt.subplots(1, len(paths), figsize=(3.2 * len(paths), 3.8), sharey=True, layout="constrained")
    for panel, (method, runs) in zip(panels, paths.items(), strict=True):
        panel.contourf(
            axis, axis, heights, levels=torch.linspace(-15.2, 10, 22), cmap="Blues_r", alpha=0.5, extend="both"
        )
        panel.plot([-7, 7], [-8.3, -8.3], color="gold", linewidth=8, solid_capstyle="round")
        for number, run in enumerate(runs):
            panel.plot(run[:, 0], run[:, 1], color=f"C{number + 1}", linewidth=2.5)
            panel.plot(*run[0], marker="o", color=f"C{number + 1}", markersize=10, markeredgecolor="white")
        for number, run in enumerate(runs):  # on top of all paths
            panel.plot(*run[-1], marker="*", color=f"C{number + 1}", markersize=20, markeredgecolor="black")
        panel.set(
            title=method, xlim=(-11, 11), ylim=(-11, 11), aspect="equal", xticks=(-10, 0, 10), yticks=(-10, 0, 10)
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run all methods from all starts and draw them."""
    default = Path(__file__).resolve().parent.parent / "docs" / "toy_figure2.png"
    parser = argparse.ArgumentParser(description="Draw figure 2 of the PUB paper with this package's methods.")
    parser.add_argument("--out", type=Path, default=default, help="the picture (default: docs/toy_figure2.png)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two parameters: more threads only get in each other's way
    paths: dict[str, list[Tensor]] = {}
    for method in ("Adam", "MultiBalance", "PUB"):
        paths[method] = [train(method, start) for start in STARTS]
        for start, path in zip(STARTS, paths[method], strict=True):
            first, second = losses(path[-1]).tolist()
            print(f"{method:12} from {start}: losses {first:7.2f} {second:7.2f}")
    draw(paths, arguments.out)
    print(f"drawn: {arguments.out}")


if __name__ == "__main__":
    main()
