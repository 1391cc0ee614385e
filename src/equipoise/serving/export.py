"""Export a trained ranker: a ``torch.export`` program, ONNX, AOTInductor, and what turns raw rows into its inputs.

An exported folder needs neither this package nor polars: ``encoder.py`` is plain Python, and the program's outputs are
final predictions by task name. Every program is loaded again and compared with the model before the folder appears.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from equipoise.data.encoding import Encoding
from equipoise.errors import SettingError, how_to_install
from equipoise.forks import Fork
from equipoise.ranking.models.base import Unforked
from equipoise.ranking.predictions import biased_tasks, predictions
from equipoise.schema import PADDING, Categories, Schema, Task
from equipoise.serving.folder import versions

__all__ = ["TOLERANCE", "Scorer", "difference", "export_ranker", "random_inputs"]

TOLERANCE: Final = 1e-5
"""The largest difference between an exported program and the model; relative for values above 1."""

_MANIFEST: Final = "export.json"
_FORMAT: Final = "equipoise export"
_ROWS: Final = (4, 1, 257)  # of the batches that programs are compared on; the first is the one that is traced

Inputs = tuple[Tensor, Tensor]
Outputs = Mapping[str, Tensor]


class Scorer(nn.Module):
    """A model with the step from its outputs to predictions: ids and numbers in, predictions by task name out.

    The model is copied to the CPU in evaluation mode; forks, which only act in training, are left out.

    Example:
        >>> from equipoise.ranking.models import build_model
        >>> from equipoise.schema import Numeric
        >>> schema = Schema([], [Numeric("age")], [Task("visit")])
        >>> scorer = Scorer(build_model("shared-bottom", schema), schema)
        >>> list(scorer(torch.empty(2, 0, dtype=torch.int64), torch.zeros(2, 1)))
        ['visit']
    """

    def __init__(self, model: nn.Module, schema: Schema, /) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval()
        self.schema = schema
        for name, part in list(self.model.named_modules()):
            if isinstance(part, Fork):
                self.model.set_submodule(name, Unforked(len(part.tasks)))

    def forward(self, categorical: Tensor, numeric: Tensor) -> dict[str, Tensor]:
        """Return the prediction of each task, shape [B], by name."""
        found = predictions(self.model(categorical, numeric), self.schema)
        return dict(zip(self.schema.task_names, found, strict=True))


@dataclass(frozen=True)
class _Program:
    """A form of the exported program.

    Attributes:
        write: writes the file at a path, given the exported program, an example of its inputs, and the schema.
        load: returns the function from inputs to predictions by name.
    """

    file: str
    write: Callable[[Any, Inputs, Schema, Path], None]
    load: Callable[[Path], Callable[[Inputs], Outputs]]


def export_ranker(
    model: nn.Module,
    schema: Schema,
    encoding: Encoding | None,
    out: Path,
    /,
    *,
    onnx: bool = False,
    aoti: bool = False,
    about: Mapping[str, Any],
) -> None:
    """Write the folder of an export, whole or not at all; an earlier export in its place is replaced.

    Args:
        encoding: written as ``encoding.json``, with ``encoder.py``, which reads it; left out if None.
        onnx: write ``model.onnx`` too.
        aoti: write ``model.aoti.pt2`` too, machine code for this kind of CPU.
        about: facts for ``export.json``.

    Raises:
        SettingError: the model cannot be exported, a package or the C++ compiler is missing, a program's predictions
            differ from the model's by more than :data:`TOLERANCE`, or ``out`` holds something else than an export.
    """
    kinds = [_TORCH, *([_ONNX] if onnx else []), *([_AOTI] if aoti else [])]
    _check_tools(onnx=onnx, aoti=aoti)
    scorer = Scorer(model, schema).eval()
    batches = [random_inputs(schema, rows, seed=place) for place, rows in enumerate(_ROWS)]
    with torch.no_grad():
        expected = [scorer(*batch) for batch in batches]
    with _replaced_folder(out) as folder, _quiet():
        program = _exported(scorer, batches[0])
        differences = {}
        for kind in kinds:
            with _named(kind.file):
                kind.write(program, batches[0], schema, folder / kind.file)
                call = kind.load(folder / kind.file)
                differences[kind.file] = max(
                    difference(call(batch), right) for batch, right in zip(batches, expected, strict=True)
                )
            if not differences[kind.file] <= TOLERANCE:
                raise SettingError(
                    f"{kind.file}: expected the model's predictions to {TOLERANCE:g}, found a difference of "
                    f"{differences[kind.file]:.2g}: nothing was written. Does the model draw random numbers, or change "
                    "its state, in evaluation mode?"
                )
        if encoding is not None:
            (folder / "encoding.json").write_text(encoding.to_json() + "\n", encoding="utf-8")
            encoder = files("equipoise.serving.standalone").joinpath("encoder.py")
            (folder / "encoder.py").write_text(encoder.read_text(encoding="utf-8"), encoding="utf-8")
        manifest = _manifest(schema, encoding, differences, about)
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_readme(manifest), encoding="utf-8")


def random_inputs(schema: Schema, rows: int, /, *, seed: int = 0) -> Inputs:
    """Return random ids and numbers for a model: ids of every kind, unseen ones and padding among them.

    Example:
        >>> from equipoise.schema import Categorical
        >>> ids, numbers = random_inputs(Schema([Categorical("zip", 3)], [], [Task("visit")]), 5)
        >>> ids.shape, numbers.shape
        (torch.Size([5, 1]), torch.Size([5, 0]))
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = [torch.empty(rows, 0, dtype=torch.int64)]
    for feature in schema.categorical:
        length = feature.length if isinstance(feature, Categories) else 1
        ids = torch.randint(feature.cardinality, (rows, length), generator=generator)
        if isinstance(feature, Categories):
            counts = torch.randint(length + 1, (rows, 1), generator=generator)
            ids = torch.where(torch.arange(length) < counts, ids, PADDING)
        blocks.append(ids)
    return torch.cat(blocks, 1), torch.randn(rows, len(schema.numeric_columns), generator=generator)


def difference(found: Outputs, expected: Outputs, /) -> float:
    """Return the largest difference between predictions, relative to values above 1; infinite if one is not finite.

    Example:
        >>> difference({"visit": torch.tensor([0.5])}, {"visit": torch.tensor([0.25])})
        0.25
    """
    largest = 0.0
    for name, value in expected.items():
        left, right = found[name].detach().reshape(value.shape).double(), value.detach().double()
        wrong = (left - right).abs() / right.abs().clamp(min=1)
        largest = max(largest, float(wrong.nan_to_num(nan=torch.inf).max()))
    return largest


def _exported(scorer: Scorer, example: Inputs) -> Any:
    rows = torch.export.Dim("rows", min=1)
    try:
        return torch.export.export(scorer, example, dynamic_shapes={"categorical": {0: rows}, "numeric": {0: rows}})
    except Exception as error:
        raise SettingError(
            f"torch.export cannot export {type(scorer.model).__name__} with any number of rows: {_first_line(error)} "
            "Its forward pass should consist of tensor operations, without choices that depend on values or on the "
            "number of rows."
        ) from error


def _write_program(program: Any, _example: Inputs, _schema: Schema, path: Path) -> None:
    torch.export.save(program, path)


def _load_program(path: Path) -> Callable[[Inputs], Outputs]:
    module = torch.export.load(path).module()
    return lambda inputs: _detached(module(*inputs))


def _write_onnx(program: Any, example: Inputs, schema: Schema, path: Path) -> None:
    found = torch.onnx.export(
        program,
        example,
        dynamo=True,
        verbose=False,
        input_names=["categorical", "numeric"],
        output_names=list(schema.task_names),
    )
    assert found is not None
    found.save(path)


def _load_onnx(path: Path) -> Callable[[Inputs], Outputs]:
    import onnxruntime  # noqa: PLC0415 - an optional dependency

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]

    def call(inputs: Inputs) -> Outputs:
        named = {"categorical": inputs[0].numpy(), "numeric": inputs[1].numpy()}
        found = session.run(None, {name: value for name, value in named.items() if name in taken})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return call


def _write_aoti(program: Any, _example: Inputs, _schema: Schema, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _load_aoti(path: Path) -> Callable[[Inputs], Outputs]:
    compiled = torch._inductor.aoti_load_package(str(path))
    return lambda inputs: _detached(compiled(*inputs))


_TORCH: Final = _Program("model.pt2", _write_program, _load_program)
_ONNX: Final = _Program("model.onnx", _write_onnx, _load_onnx)
_AOTI: Final = _Program("model.aoti.pt2", _write_aoti, _load_aoti)


def _detached(outputs: Outputs) -> Outputs:
    return {name: value.detach() for name, value in outputs.items()}


def _check_tools(*, onnx: bool, aoti: bool) -> None:
    if onnx:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            try:
                __import__(name)
            except ImportError as error:
                raise SettingError(
                    f"ONNX needs the package {name!r}, which is not installed: {how_to_install('serving')}."
                ) from error
    compiler = os.environ.get("CXX", "g++")
    if aoti and shutil.which(compiler) is None:
        raise SettingError(
            f"AOTInductor compiles C++ and needs a compiler, found no {compiler!r}: install one (on Debian and Ubuntu: "
            "apt install g++), name it in the environment variable CXX, or leave out aoti: model.pt2 runs without."
        )


@contextmanager
def _named(file: str) -> Iterator[None]:
    """Name the form of the program that cannot be written; the libraries' own errors are of every type."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise SettingError(
            f"{file} cannot be written: {type(error).__name__}: {_first_line(error)} The model has no form in it, or "
            "the library lacks an operation; nothing was written."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the libraries say to each other: packages that ONNX could use, and names that torch will drop."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _replaced_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out``; move it there when the block succeeds, else remove it.

    Raises:
        SettingError: ``out`` is a file, or a folder that holds something else than an export.
    """
    if out.exists() and not _is_export(out):
        raise SettingError(
            f"Expected no folder yet at {out}, or an earlier export, found something else: name another place."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    temporary, before = (out.with_name(f".{out.name}.{mark}.{what}") for what in ("new", "before"))
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            out.rename(before)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _is_export(path: Path) -> bool:
    if not path.is_dir():
        return False
    if not any(path.iterdir()):
        return True
    try:
        found = json.loads((path / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == _FORMAT


def _manifest(
    schema: Schema, encoding: Encoding | None, differences: Mapping[str, float], about: Mapping[str, Any]
) -> dict[str, Any]:
    biased = biased_tasks(schema)
    return {
        "format": _FORMAT,
        "version": 1,
        "versions": versions(),
        **about,
        "inputs": {
            "categorical": {"dtype": "int64", "columns": list(schema.categorical_columns)},
            "numeric": {"dtype": "float32", "columns": list(schema.numeric_columns)},
        },
        "raw_columns": None if encoding is None else list(encoding.columns),
        "outputs": [
            {
                "name": task.name,
                "kind": task.kind,
                "meaning": _meaning(task, of_sampled_rows=task.name in biased),
                "description": task.description,
            }
            for task in schema.tasks
        ],
        "programs": {file: {"largest_difference": found} for file, found in differences.items()},
    }


def _meaning(task: Task, *, of_sampled_rows: bool) -> str:
    given = f" given {task.after}" if task.after and task.over == "parent" else ""
    if task.binary:
        return f"probability{given}, {'of the sampled rows' if of_sampled_rows else 'at the natural rate'}"
    return f"number in the unit of the labels{given}"


def _readme(manifest: Mapping[str, Any]) -> str:
    meanings = {
        "model.pt2": "the program: `torch.export.load`; any number of rows",
        "model.onnx": "the same in ONNX",
        "model.aoti.pt2": "the same as machine code for the kind of CPU it was compiled on: "
        "`torch._inductor.aoti_load_package`",
        "encoding.json": "how raw values become ids and numbers",
        "encoder.py": "applies encoding.json; plain Python without any package",
        _MANIFEST: "inputs, outputs, versions, and how far each program was from the model",
    }
    present = [*manifest["programs"], *(["encoding.json", "encoder.py"] if manifest["raw_columns"] else []), _MANIFEST]
    text = [f"# A ranker for {manifest['data']}", "", "| file | |", "|---|---|"]
    text += [f"| `{name}` | {meanings[name]} |" for name in present]
    text += ["", "| output | |", "|---|---|"]
    text += [
        f"| `{task['name']}` | {task['meaning']}{'. ' if task['description'] else ''}{task['description']} |"
        for task in manifest["outputs"]
    ]
    if manifest["raw_columns"]:
        columns = ", ".join(f"`{name}`" for name in manifest["raw_columns"])
        text += ["", f"A row states the columns {columns}; null (None) stands for a missing value.", ""]
        text += ["```python", _USE_OF_TORCH, "```"]
        if "model.onnx" in manifest["programs"]:
            text += ["", "Or, without torch:", "", "```python", _USE_OF_ONNX, "```"]
    else:
        text += [
            "",
            "The data set did not come as a table: the caller encodes its rows, in the columns of export.json.",
        ]
    return "\n".join([*text, ""])


_USE_OF_TORCH: Final = """\
import torch
from encoder import Encoder

encoder = Encoder.load("encoding.json")
program = torch.export.load("model.pt2").module()


def predict(rows):
    ids, numbers = encoder.encode(rows)
    with torch.no_grad():
        found = program(torch.tensor(ids, dtype=torch.int64), torch.tensor(numbers, dtype=torch.float32))
    return {task: values.tolist() for task, values in found.items()}"""

_USE_OF_ONNX: Final = """\
import numpy as np
import onnxruntime
from encoder import Encoder

encoder = Encoder.load("encoding.json")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])


def predict(rows):
    ids, numbers = encoder.encode(rows)
    inputs = {"categorical": np.array(ids, np.int64), "numeric": np.array(numbers, np.float32)}
    found = session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})
    return {entry.name: values.tolist() for entry, values in zip(session.get_outputs(), found)}"""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
