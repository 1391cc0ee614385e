"""Census-Income (KDD) in its two published forms: three binary tasks; columns that tell a label are left out."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from equipoise.data.cache import cache_folder
from equipoise.data.dataset import Dataset, Split
from equipoise.data.source import DataSource
from equipoise.errors import DataError
from equipoise.schema import Categorical, Numeric, Schema, Task
from equipoise.whole_files import replace_file

if TYPE_CHECKING:
    import polars as pl

__all__ = ["COLUMNS", "FULL", "LEAKS", "NOMINAL", "NUMERIC", "TASKS", "URL", "fetch", "load", "load_full"]

COLUMNS: Final = tuple(
    """
    age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat
    major_ind_code major_occ_code race hisp_origin sex union_member unemp_reason full_or_part_emp
    capital_gains capital_losses stock_dividends tax_filer_stat region_prev_res state_prev_res
    det_hh_fam_stat det_hh_summ instance_weight mig_chg_msa mig_chg_reg mig_move_reg mig_same
    mig_prev_sunbelt num_emp fam_under_18 country_father country_mother country_self citizenship
    own_or_self vet_question vet_benefits weeks_worked year income_50k
    """.split()  # noqa: SIM905 - a list of 42 strings is a page
)
"""The 42 columns of the published files, in their order."""

_MONEY: Final = ("wage_per_hour", "capital_gains", "capital_losses", "stock_dividends")
NUMERIC: Final = ("age", *_MONEY, "num_emp", "weeks_worked")
"""The numeric features of the full form."""

LEAKS: Final = (
    "marital_stat", "det_hh_fam_stat", "det_hh_summ", "tax_filer_stat", "fam_under_18",  # tell never_married
    "education",  # tells bachelor_plus
)  # fmt: skip
"""Features that tell a label outright. All tasks share the features, so each is dropped for all of them."""

TASKS: Final = (
    Task("income_50k", "total income above 50,000 dollars a year"),
    Task("never_married", "has never been married"),
    Task("bachelor_plus", "holds a bachelor's degree or a higher one"),
)

URL: Final = "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip"
"""Where UCI publishes the data set (DOI 10.24432/C5N30T)."""

_CATEGORICAL: Final = tuple(name for name in COLUMNS if name not in (*NUMERIC, *LEAKS, "instance_weight", "income_50k"))
_USER_GROUPS: Final = ("sex", "race", "citizenship")
"""Columns that the report tells people apart by. The nominal form has no age."""

_DEGREES: Final = (
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
)
_MISSING: Final = "?"
_NOMINAL_FILES: Final = ("census_nominal_codes.npz", "census_nominal_vocab.json")
_TRAIN_FILE: Final = "census-income.data.gz"
_TEST_FILE: Final = "census-income.test.gz"
_PUBLISHED_ROWS: Final = {_TRAIN_FILE: 199_523, _TEST_FILE: 99_762}
# of the unpacked bytes: how they are packed differs between UCI's archives
_TEST_SHA256: Final = "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c"

_NOMINAL_NOTE: Final = (
    "Census-Income in its nominal form lacks the numeric columns (age, wage, capital gains, ...): "
    "these results are not comparable with published ones, such as those of MMoE."
)
_LEAK_NOTE: Final = f"Left out for every task, because each tells one task's label: {', '.join(LEAKS)}."
_ONE_FILE_NOTE: Final = (
    f"Only the published test file {_TEST_FILE} was there, split 60/20/20 by seed: these results are not "
    "comparable with those on the published split."
)


@dataclass(frozen=True)
class _Table:
    """All published rows: codes into a vocabulary per categorical column (-1 = missing), raw numbers, labels.

    ``is_test`` marks the published test rows, or is None where the published split is not known.
    """

    codes: Tensor
    vocabulary: Sequence[Sequence[str]]
    numeric: Tensor
    labels: Tensor
    weight: Tensor
    is_test: Tensor | None


def load(*, seed: int = 0, validation: float = 0.1, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Load Census-Income in its nominal form: 27 categorical features, three tasks, every row of weight 1.

    Read from the prepared integer codes (``census_nominal_codes.npz``), or else from the published files
    without their numeric columns. The tasks of one model share its features, so a column that tells the label
    of one task (:data:`LEAKS`) is dropped for all.

    Args:
        seed: draws the validation rows.
        validation: share of the published training rows that become the validation split, in (0, 1); the
            published test rows stay the test split.
        folder: the folder of the files; by default ``$EQUIPOISE_DATA/census-income``, or ``census-income`` in the cache
            folder if that variable is unset, where :func:`fetch` puts them.

    Raises:
        DataError: a file is missing, empty or truncated, lacks columns, or holds invalid labels.
    """
    place = _folder(folder)
    found = all((place / name).is_file() for name in _NOMINAL_FILES)
    table = _read_nominal(place) if found else _read_published(place)
    table = replace(table, numeric=table.numeric[:, :0], weight=torch.ones(len(table.codes)))
    return _dataset(NOMINAL, table, (), seed=seed, validation=validation, notes=[_NOMINAL_NOTE])


def load_full(*, seed: int = 0, validation: float = 0.1, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Load Census-Income as published: the nominal features and the seven of :data:`NUMERIC`, three tasks.

    Amounts of money pass through log(1 + x); then each number is standardised by the mean and deviation of
    the training rows. ``weight`` is the survey's instance weight (how many people a row stands for) over its
    mean, so that weighted losses keep their scale. Where only the published test file lies in the folder, it
    is split 60/20/20 by ``seed``, and ``validation`` does not apply. Arguments and errors as in :func:`load`.
    """
    table = _read_published(_folder(folder))
    return _dataset(FULL, table, NUMERIC, seed=seed, validation=validation, notes=[])


def fetch(*, folder: str | os.PathLike[str] | None = None, url: str = URL) -> Path:
    """Download the published files from UCI, check them, and put them where :func:`load` looks.

    Nothing is downloaded if both files exist already; nothing is written unless both are as published.

    Returns:
        The folder that holds the files.

    Raises:
        DataError: there is no network, or the download is not the published data set.
    """
    place = _folder(folder)
    if all((place / name).is_file() for name in _PUBLISHED_ROWS):
        return place
    with tempfile.TemporaryDirectory() as scratch:
        members = _unpack(_download(url, Path(scratch) / "census.zip", place), url)
    for name, content in members.items():
        _verify(name, content, url)
    for name, content in members.items():
        with replace_file(place / name) as unfinished:
            unfinished.write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
    return place


def _folder(folder: str | os.PathLike[str] | None) -> Path:
    if folder is not None:
        if not isinstance(folder, str | os.PathLike):
            raise DataError(f"census-income: folder should be a path, found {folder!r}.")
        return Path(folder)
    root = os.environ.get("EQUIPOISE_DATA")
    return (Path(root) if root else cache_folder()) / "census-income"


def _read_nominal(folder: Path) -> _Table:
    import numpy as np

    path, vocabulary_path = (folder / name for name in _NOMINAL_FILES)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        vocabulary = json.loads(vocabulary_path.read_text(encoding="utf-8"))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} and {vocabulary_path.name} should hold arrays and their vocabulary, but cannot be "
            f"read ({error}): copy both again."
        ) from error
    _expect_all(path, "arrays", ["codes", "columns", "is_test", *(task.name for task in TASKS)], arrays)
    columns = [str(name) for name in arrays["columns"]]
    _expect_all(path, "columns", _CATEGORICAL, columns)
    _expect_all(vocabulary_path, "columns", _CATEGORICAL, vocabulary)
    codes = torch.from_numpy(arrays["codes"][:, [columns.index(name) for name in _CATEGORICAL]].astype("int32"))
    for name, column in zip(_CATEGORICAL, codes.unbind(1), strict=True):
        wrong = int(((column < -1) | (column >= len(vocabulary[name]))).sum())
        if wrong:
            raise DataError(
                f"{path}: column {name!r} should hold codes from -1 (missing) to "
                f"{len(vocabulary[name]) - 1}, found {wrong} others: copy both files again."
            )
    labels = torch.stack([torch.from_numpy(arrays[task.name].astype("float32")) for task in TASKS], dim=1)
    _check_labels(path, labels)
    return _Table(
        codes,
        [vocabulary[name] for name in _CATEGORICAL],
        torch.empty(len(codes), 0),
        labels,
        torch.ones(len(codes)),
        torch.from_numpy(arrays["is_test"].astype("bool")),
    )


def _read_published(folder: Path) -> _Table:
    import polars as pl

    train, test = folder / _TRAIN_FILE, folder / _TEST_FILE
    if not test.is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise DataError(
            f"Census-Income should lie in {folder} as {_TRAIN_FILE} and {_TEST_FILE} (its nominal form as "
            f"{' and '.join(_NOMINAL_FILES)}); found {found or 'an empty folder'}. Run `equipoise data fetch "
            "census-income`, or set EQUIPOISE_DATA to the folder that holds census-income/."
        )
    paths = [train, test] if train.is_file() else [test]
    frames = [_parse(path, _decompress(path)) for path in paths]
    rows = pl.concat(frames)
    categorical = [rows.get_column(name) for name in _CATEGORICAL]
    vocabulary = [column.unique().sort().to_list() for column in categorical]
    codes = [
        column.cast(pl.Enum(values)).to_physical().cast(pl.Int32).to_torch()
        for column, values in zip(categorical, vocabulary, strict=True)
    ]
    numbers = rows.select(pl.col(name).log1p() if name in _MONEY else pl.col(name) for name in NUMERIC).cast(pl.Float32)
    return _Table(
        torch.stack(codes, dim=1),
        vocabulary,
        numbers.to_torch(),
        rows.select(task.name for task in TASKS).to_torch(),
        rows.get_column("instance_weight").cast(pl.Float32).to_torch(),
        torch.arange(len(rows)) >= len(frames[0]) if len(frames) == 2 else None,
    )


def _decompress(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} should be a complete gzip file, but cannot be unpacked ({error}): delete it and run "
            "`equipoise data fetch census-income`."
        ) from error


def _parse(path: Path | str, content: bytes) -> pl.DataFrame:
    """Return the columns as numbers and stripped strings, and the labels of the three tasks as float32 columns."""
    import polars as pl

    first = content.split(b"\n", 1)[0].strip()
    if not first:
        raise DataError(f"{path} should hold rows of {len(COLUMNS)} columns, but is empty: fetch it again.")
    width = first.count(b",") + 1
    if width != len(COLUMNS):
        raise DataError(
            f"{path} should hold {len(COLUMNS)} columns ({COLUMNS[0]}, {COLUMNS[1]}, ..., {COLUMNS[-1]}), "
            f"found {width}: use the file as UCI publishes it."
        )
    try:
        rows = pl.read_csv(
            io.BytesIO(content),
            has_header=False,
            new_columns=list(COLUMNS),
            infer_schema=False,
            quote_char=None,
        ).with_columns(pl.all().str.strip_chars())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} should hold {len(COLUMNS)} columns in every row, but: {error}") from error
    short = rows.get_column(COLUMNS[-1]).null_count()
    if short:
        raise DataError(f"{path}: every row should hold {len(COLUMNS)} columns, found {short} shorter rows.")

    numbers = rows.select(pl.col(*NUMERIC, "instance_weight").cast(pl.Float64, strict=False))
    for name in numbers.columns:
        column = numbers.get_column(name)
        wrong = len(rows) - int((column.is_finite() & (column >= 0)).sum())
        if wrong:
            raise DataError(f"{path}: column {name!r} should hold numbers from 0 up, found {wrong} other values.")
    income = pl.col("income_50k")
    labels = rows.select(
        pl.when(income == "- 50000.").then(0.0).when(income == "50000+.").then(1.0).alias("income_50k"),
        _label("marital_stat", ["Never married"]).alias("never_married"),
        _label("education", _DEGREES).alias("bachelor_plus"),
    ).cast(pl.Float32)
    _check_labels(path, labels.to_torch())
    return rows.select(_CATEGORICAL).hstack(numbers).hstack(labels)


def _label(column: str, positive: Sequence[str]) -> pl.Expr:
    """Return 1 where the column holds a positive value, 0 for other values, null for missing ones."""
    import polars as pl

    value = pl.col(column)
    return pl.when(value.is_in(positive)).then(1.0).when(~value.is_in([_MISSING, ""])).then(0.0)


def _check_labels(path: Path | str, labels: Tensor) -> None:
    for task, column in zip(TASKS, labels.unbind(1), strict=True):
        wrong = int(((column != 0) & (column != 1)).sum())
        if wrong:
            raise DataError(
                f"{path}: the label of task {task.name!r} should be 0 or 1 in all {len(column)} rows, found "
                f"{wrong} where it is missing or something else: use the file as published."
            )


def _expect_all(path: Path, what: str, expected: Sequence[str], found: Mapping[str, Any] | Sequence[str]) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise DataError(
            f"{path} should hold the {what} {', '.join(expected)}; found no {', '.join(missing)}: copy the file again."
        )


def _dataset(
    source: DataSource, table: _Table, numeric: Sequence[str], *, seed: int, validation: float, notes: Sequence[str]
) -> Dataset:
    name = source.name
    if not isinstance(validation, float) or not 0 < validation < 1:
        raise DataError(f"{name}: validation should be a share between 0 and 1, found {validation!r}.")
    if not isinstance(seed, int):
        raise DataError(f"{name}: seed should be a whole number, found {seed!r}.")
    order = torch.randperm(len(table.codes), generator=torch.Generator().manual_seed(seed))
    if table.is_test is None:
        notes = [*notes, _ONE_FILE_NOTE]
        bounds = [round(0.2 * len(order)), round(0.4 * len(order))]
        test, carved, train = (rows.sort().values for rows in order.tensor_split(bounds))
    else:
        test = table.is_test.nonzero().squeeze(1)
        rest = order[~table.is_test[order]]
        carved, train = (rows.sort().values for rows in rest.tensor_split([round(validation * len(rest))]))

    ids, names = _ids(table, train)
    numbers = table.numeric - table.numeric[train].mean(0)
    numbers = numbers / numbers[train].square().mean(0).sqrt().clamp_min(1e-6)
    weight = table.weight / table.weight.mean()

    def split(rows: Tensor) -> Split:
        return Split(ids[rows], numbers[rows], table.labels[rows], weight[rows])

    schema = Schema(
        [Categorical(column, len(values)) for column, values in names.items()],
        [Numeric(column) for column in numeric],
        TASKS,
    )
    return Dataset(
        name, schema, split(train), split(carved), split(test), (*notes, _LEAK_NOTE), slices=_USER_GROUPS,
        user_groups=_USER_GROUPS, values={column: names[column] for column in _USER_GROUPS}, **source.for_dataset(),
    )  # fmt: skip


def _ids(table: _Table, train: Tensor) -> tuple[Tensor, dict[str, list[str]]]:
    """Return ids from 1 for values that training rows hold, 0 for missing and unseen ones; and the names of the ids."""
    columns, names = [], {}
    for column, codes, values in zip(_CATEGORICAL, table.codes.unbind(1), table.vocabulary, strict=True):
        known = torch.zeros(len(values) + 1, dtype=torch.int32)  # the last place is code -1
        known[codes[train].long()] = 1
        known[-1] = 0
        if _MISSING in values:
            known[values.index(_MISSING)] = 0
        columns.append((known.cumsum(0, dtype=torch.int32) * known)[codes.long()])
        names[column] = ["missing", *(values[place] for place in known[:-1].nonzero().squeeze(1).tolist())]
    return torch.stack(columns, dim=1), names


def _download(url: str, target: Path, folder: Path) -> Path:
    import pooch

    try:
        pooch.HTTPDownloader(timeout=60)(url, str(target), None)
    except OSError as error:  # what requests raises derives from it
        raise DataError(
            f"Could not download {url} ({error}). Try again with a network, or put {_TRAIN_FILE} and "
            f"{_TEST_FILE} into {folder} by hand."
        ) from error
    return target


def _unpack(archive: Path, url: str) -> dict[str, bytes]:
    """Return the unpacked files by the names under which they are kept."""
    members = {}
    try:
        with (
            zipfile.ZipFile(archive) as outer,
            outer.open("census.tar.gz") as packed,
            tarfile.open(fileobj=packed, mode="r|gz") as inner,
        ):
            for member in inner:
                name = f"{Path(member.name).name}.gz"
                file = inner.extractfile(member) if name in _PUBLISHED_ROWS else None
                if file is not None:
                    members[name] = file.read()
    except (KeyError, OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{url} should be a zip file that holds census.tar.gz, but: {error}") from error
    missing = sorted(_PUBLISHED_ROWS.keys() - members.keys())
    if missing:
        raise DataError(f"{url} should hold {' and '.join(_PUBLISHED_ROWS)}; missing: {', '.join(missing)}.")
    return members


def _verify(name: str, content: bytes, url: str) -> None:
    rows = len(_parse(f"{url} ({name})", content))
    if rows != _PUBLISHED_ROWS[name]:
        raise DataError(
            f"{url}: {name} should hold {_PUBLISHED_ROWS[name]} rows, found {rows}: not the published file."
        )
    found = hashlib.sha256(content).hexdigest()
    if name == _TEST_FILE and found != _TEST_SHA256:
        raise DataError(
            f"{url}: {name} should unpack to SHA-256 {_TEST_SHA256}, found {found}: not the published file."
        )


NOMINAL: Final = DataSource(
    "census-income",
    load,
    summary="Census-Income (KDD) without its numeric columns: 299,285 people of the census surveys of 1994 and 1995. "
    "Columns that tell a label outright are left out for all tasks. Not comparable with published results.",
    obtain="`equipoise data fetch census-income`, or prepared integer codes in `$EQUIPOISE_DATA/census-income`",
    columns=f"{len(_CATEGORICAL)} categorical; tasks {', '.join(f'`{task.name}`' for task in TASKS)}",
    splits="the published test rows; a tenth of the published training rows, drawn by seed, is the validation split",
    epochs=3,
    batch_size=1024,
    licence="CC BY 4.0",
    source="UCI Machine Learning Repository, https://doi.org/10.24432/C5N30T",
)
FULL: Final = replace(
    NOMINAL,
    name="census-income-full",
    load=load_full,
    summary="Census-Income (KDD) with its numeric columns and the instance weights of the survey.",
    obtain="`equipoise data fetch census-income`",
    columns=f"{len(_CATEGORICAL)} categorical, {len(NUMERIC)} numeric; tasks "
    f"{', '.join(f'`{task.name}`' for task in TASKS)}",
)
