"""Rankers of one kind from a folder: one training, or a folder with one for each seed."""

from __future__ import annotations

from pathlib import Path

from equipoise.errors import DataError
from equipoise.serving.folder import DESCRIPTION
from equipoise.serving.ranker import Ranker

__all__ = ["load_seeds"]


def load_seeds(folder: Path, /) -> dict[int, Ranker]:
    """Return the rankers of a folder by the seed of their training.

    Args:
        folder: of one training, or with a folder for each of several.

    Raises:
        DataError: there is no ranker, two have the same seed, or one was trained with another method than the first.
    """
    if (folder / DESCRIPTION).is_file():
        ranker = Ranker.load(folder)
        return {ranker.run.seed: ranker}
    places = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    if not places:
        raise DataError(
            f"Expected a folder that `equipoise train` wrote, or one with such a folder for each seed, at {folder}; "
            f"found no {DESCRIPTION}."
        )
    found: dict[int, Ranker] = {}
    for place in places:
        ranker = Ranker.load(place)
        if ranker.run.seed in found:
            raise DataError(f"Expected trainings with different seeds in {folder}, found seed {ranker.run.seed} twice.")
        found[ranker.run.seed] = ranker
    if len(methods := sorted({ranker.run.method for ranker in found.values()})) > 1:
        raise DataError(f"Expected trainings with one method in {folder}, found {', '.join(methods)}.")
    return dict(sorted(found.items()))
