"""Rated snippets: words and pairs hashed, two labels, documents in one split; read from archive or text files."""

import io
import os
import tarfile
from pathlib import Path

import polars as pl
import pytest
import torch

from equipoise.data import DataError, load
from equipoise.data.cache import cache_folder

STEMS = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")


def archive_found() -> bool:
    places = [
        cache_folder() / "sentiment-snippets",
        Path(os.environ.get("EQUIPOISE_DATA", "/none")) / "sentiment-snippets",
    ]
    return any(file for place in places for file in place.glob("vaderSentiment-*.tar.gz"))


def files() -> dict[str, str]:
    """Return small files of the published form: 40 documents each, of 1 snippet or of 3."""
    texts = ["Not good &amp; not bad :)", "The BEST film ever!!", "it's awful", "a plain sentence, caf\u00e9"]
    ratings = [0.0, 3.1, -2.5, 0.4]
    found = {}
    for stem in STEMS:
        per_document = 3 if stem in STEMS[2:] else 1
        rows = [
            (
                f"{document}_{place}" if per_document > 1 else f"{document}",
                ratings[(document + place) % 4],
                (document + place) % 4,
            )
            for document in range(1, 41)
            for place in range(1, 1 + per_document)
        ]
        lines = [f"{number}\t{rating}\t{texts[which]}" for number, rating, which in rows]
        found[f"{stem}_GroundTruth.txt"] = "\r\n".join(lines)
    return found


def pack(content: dict[str, bytes], name: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member, data in content.items():
            entry = tarfile.TarInfo(f"{name}/{member}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in files().items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return tmp_path


def test_ratings_become_two_labels_and_words_become_ids(folder: Path) -> None:
    found = load("sentiment-snippets", folder=folder)
    splits = (found.train, found.validation, found.test)
    assert sum(map(len, splits)) == 2 * 40 + 2 * 120
    labels = torch.cat([part.labels for part in splits])
    # a quarter of the snippets has each rating: 0, 3.1, -2.5, 0.4
    assert labels.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    words = torch.cat([part.categorical for part in splits])[:, :32]
    lengths = {int(count) for count in (words >= 0).sum(1)}
    assert lengths == {5, 2, 4}  # not good not bad :) | the best film ever !! | it's awful | a plain sentence café
    pairs = torch.cat([part.categorical for part in splits])[:, 32:64]
    assert torch.equal((pairs >= 0).sum(1), (words >= 0).sum(1) - 1)


def test_a_document_is_in_one_split_alone(folder: Path) -> None:
    for stem in STEMS[2:]:  # a word that tells the document
        file = folder / f"{stem}_GroundTruth.txt"
        lines = [line.split("\t") for line in file.read_text().splitlines()]
        text = "\r\n".join(f"{number}\t{rating}\t{stem}{number.split('_')[0]}" for number, rating, _ in lines)
        file.write_text(text, newline="")
    found = load("sentiment-snippets", folder=folder, words=2**20)
    several = [words_of_three_rows(part.categorical[:, 0]) for part in (found.train, found.validation, found.test)]
    assert sum(map(len, several)) >= 78  # of 80 documents of three snippets; two may share an id
    assert not several[0] & several[1]
    assert not several[0] & several[2]


def words_of_three_rows(words: torch.Tensor) -> set[int]:
    found, counts = words.unique(return_counts=True)
    return set(found[counts == 3].tolist())


def test_the_source_archive_is_read_as_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    inner = pack({name: text.encode() for name, text in files().items()}, "hutto_ICWSM_2014")
    outer = pack({"hutto_ICWSM_2014.tar.gz": inner}, "vaderSentiment-3.3.2/additional_resources")
    expected = load("sentiment-snippets", folder=folder).fingerprint()
    for name, content in (("hutto_ICWSM_2014.tar.gz", inner), ("vaderSentiment-3.3.2.tar.gz", outer)):
        place = tmp_path_factory.mktemp("archive")
        (place / name).write_bytes(content)
        assert load("sentiment-snippets", folder=place).fingerprint() == expected


def test_what_cannot_be_read_is_refused_with_the_remedy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match="pip download --no-deps"):
        load("sentiment-snippets", folder=empty)
    (empty / "hutto_ICWSM_2014.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="should be a packed tar archive"):
        load("sentiment-snippets", folder=empty)
    (empty / "hutto_ICWSM_2014.tar.gz").write_bytes(pack({"other.txt": b"x"}, "hutto_ICWSM_2014"))
    with pytest.raises(DataError, match=r"found no amazonReviewSnippets_GroundTruth\.txt, movie"):
        load("sentiment-snippets", folder=empty)
    (folder / "tweets_GroundTruth.txt").write_text("1\tgood\ttext\n2\t1.5\ttext\n")
    with pytest.raises(DataError, match=r"tweets_GroundTruth\.txt: expected a number as rating, found 1 other"):
        load("sentiment-snippets", folder=folder)
    with pytest.raises(DataError, match="seed should be a whole number from 0 up, found -1"):
        load("sentiment-snippets", folder=folder, seed=-1)


@pytest.mark.skipif(not archive_found(), reason="needs the source archive of vaderSentiment, see docs/data-sets.md")
def test_the_published_snippets_have_their_counts() -> None:
    found = load("sentiment-snippets")
    splits = (found.train, found.validation, found.test)
    assert sum(map(len, splits)) == 23_703
    assert sum(part.labels.sum(0) for part in splits).tolist() == [12471, 6465]  # counted from the files by hand
    media = pl.Series(torch.cat([part.keys["medium"] for part in splits]).numpy()).value_counts()["count"]
    assert sorted(media) == [3708, 4200, 5190, 10_605]
