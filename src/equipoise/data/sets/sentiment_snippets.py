"""Rated snippets of text: is one positive, is it strong. Not a recommender: a small text set with two labels."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files, folder_of, row_note
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

_MEDIA: Final = {
    "tweet": "tweets",
    "movie review": "movieReviewSnippets",
    "product review": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
}
_ROWS: Final = 23_703
_ARCHIVES: Final = ("vaderSentiment-*.tar.gz", "hutto_ICWSM_2014.tar.gz")
_INNER: Final = "hutto_ICWSM_2014.tar.gz"
_STRONG: Final = 2.0  # on the raters' scale from -4 to 4
_LENGTH: Final = 32  # tokens kept per snippet: 95 % of them have 36 words or fewer
_TOKEN: Final = r"[:;=]-?[()dp]|[\p{L}\p{N}][\p{L}\p{N}']*|[!?]+"
_SHARES: Final = (0.7, 0.8)  # where validation and test begin


def load(*, folder: Path | str | None = None, words: int = 8192, pairs: int = 16_384, seed: int = 0) -> Dataset:
    """Load the snippets: words and pairs of adjacent words, hashed, and the medium; two tasks.

    ``positive``: the mean of the raters is above 0. ``strong``: it is 2 or more away from 0 (they rate from −4 to 4).

    Args:
        folder: holds the source archive ``vaderSentiment-3.3.2.tar.gz``, or ``hutto_ICWSM_2014.tar.gz`` out of it, or
            the text files of the latter; by default ``$EQUIPOISE_DATA/sentiment-snippets``, else
            ``sentiment-snippets`` in the cache folder.
        words: rows of the embedding table for words.
        pairs: rows of the embedding table for pairs of adjacent words.
        seed: the seed of the split.

    Raises:
        DataError: a file is not there, damaged, or has another form, or an option is out of range.
    """
    if type(seed) is not int or seed < 0:
        raise DataError(f"sentiment-snippets: seed should be a whole number from 0 up, found {seed!r}.")
    texts = _texts(folder_of(SOURCE.name, folder))
    frame = pl.concat(_parsed(medium, texts[stem]) for medium, stem in _MEDIA.items())
    token = pl.col("word")
    frame = frame.with_columns(
        word=pl.col("text").str.to_lowercase().str.replace_all("&amp;", "&", literal=True).str.extract_all(_TOKEN),
        split=_splits(frame["document"], seed),
        positive=pl.col("rating") > 0,
        strong=pl.col("rating").abs() >= _STRONG,
    ).with_columns(pair=_pairs(token))
    lists = {"kind": "categories", "length": _LENGTH}
    features: dict[str, Any] = {
        "word": {**lists, "rows": words},
        "pair": {**lists, "rows": pairs},
        "medium": "category",
    }
    config = {
        "features": features,
        "tasks": {"positive": "positive", "strong": "strong"},
        "split": {"by": "column", "column": "split"},
        "slices": ("medium",),
    }
    notes = (
        "Snippets of tweets, film reviews, product reviews and editorials, rated by 20 people each (Hutto & Gilbert, "
        "ICWSM 2014; package vaderSentiment, MIT). Not a recommender: a small text set with two labels.",
        f"Positive: the mean rating is above 0. Strong: it is {_STRONG:g} or more away from 0. All snippets of a "
        "review or editorial are in one split.",
        *row_note(frame.height, _ROWS),
    )
    return dataset_of(SOURCE, frame.lazy(), config, min_count=5, notes=notes)


def _texts(folder: Path) -> dict[str, bytes]:
    """Return the content of the four files of ratings by their stem, from text files or from an archive."""
    wanted = {f"{stem}_GroundTruth.txt": stem for stem in _MEDIA.values()}
    if all((folder / name).is_file() for name in wanted):
        return {stem: (folder / name).read_bytes() for name, stem in wanted.items()}
    archive = next(iter(find_files(folder, _ARCHIVES, SOURCE)))
    try:
        members = _members(archive.read_bytes(), {*wanted, _INNER})
        if _INNER in members:
            members = _members(members[_INNER], set(wanted))
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{archive} should be a packed tar archive, but cannot be read ({error}): fetch it again."
        ) from error
    if missing := sorted(wanted.keys() - members.keys()):
        raise DataError(f"{archive} should hold {', '.join(wanted)}; found no {', '.join(missing)}: fetch it again.")
    return {stem: members[name] for name, stem in wanted.items()}


def _members(archive: bytes, wanted: set[str]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        for member in opened:
            name = Path(member.name).name
            file = opened.extractfile(member) if name in wanted else None
            if file is not None:
                found[name] = file.read()
    return found


def _parsed(medium: str, content: bytes) -> pl.DataFrame:
    """Return document, rating and text of each snippet; ids such as 309_8 name a document and a place in it."""
    frame = pl.read_csv(
        content.replace(b"\r\n", b"\n"),
        separator="\t",
        has_header=False,
        quote_char=None,
        infer_schema=False,
        encoding="utf8-lossy",
    )
    if frame.width != 3:
        raise DataError(f"{_MEDIA[medium]}_GroundTruth.txt: expected 3 columns between tabs, found {frame.width}.")
    number, rating, text = (pl.col(name) for name in frame.columns)
    found = frame.select(
        document=pl.lit(f"{medium} ") + number.str.split("_").list.first(),
        rating=rating.cast(pl.Float64, strict=False),
        text=text,
        medium=pl.lit(medium),
    )
    if wrong := found["rating"].null_count():
        raise DataError(f"{_MEDIA[medium]}_GroundTruth.txt: expected a number as rating, found {wrong} other values.")
    return found


def _splits(documents: pl.Series, seed: int) -> pl.Series:
    """Return the name of the split of each row, such that a document is in one split alone."""
    names = documents.unique().sort()
    place = np.empty(len(names))
    place[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) / len(names)
    part = pl.Series(np.searchsorted(_SHARES, place, side="right"), dtype=pl.Int32)
    named = part.replace_strict([0, 1, 2], ["train", "validation", "test"], return_dtype=pl.String)
    return documents.replace_strict(names, named)


def _pairs(words: pl.Expr) -> pl.Expr:
    """Return the pairs of adjacent words of each list, as texts."""
    return words.list.eval((pl.element() + " " + pl.element().shift(-1)).drop_nulls())


SOURCE: Final = DataSource(
    "sentiment-snippets",
    load,
    summary="23,703 snippets of tweets, film reviews, product reviews and editorials: positive or not, strong or not. "
    "Not a recommender.",
    obtain="`pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 --dest PATH`; then give `folder=PATH`, or "
    "move the archive into $EQUIPOISE_DATA/sentiment-snippets.",
    columns="words, pairs of words, medium; tasks `positive`, `strong`.",
    splits="70 %, 10 % and 20 % of the documents, by seed",
    epochs=3,
    batch_size=256,
    licence="MIT (C.J. Hutto)",
    source="package vaderSentiment (source archive); Hutto & Gilbert, ICWSM 2014",
)
