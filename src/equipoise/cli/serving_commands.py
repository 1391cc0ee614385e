"""The commands that use a trained ranker: predict and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from equipoise.cli.app import app
from equipoise.cli.messages import errors, plainly, say

__all__ = ["export", "predict"]


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `equipoise train` wrote.")],
    files: Annotated[list[str], typer.Argument(help="Raw rows: Parquet, CSV, TSV; files, globs, folders or URLs.")],
    *,
    out: Annotated[Path, typer.Option(help="The Parquet file for the predictions.")],
    ids: Annotated[str, typer.Option(metavar="COLUMN,...", help="Raw columns to copy beside the predictions.")] = "",
    file_format: Annotated[
        Literal["parquet", "csv", "tsv"] | None, typer.Option("--format", help="Default: by the ending.")
    ] = None,
    separator: Annotated[str | None, typer.Option(help="Between fields of text files. Default: as trained.")] = None,
    null_values: Annotated[
        str | None, typer.Option(metavar="TEXT,...", help="Missing values in text files. Default: as trained.")
    ] = None,
) -> None:
    """Predict raw rows with a trained ranker; write one Parquet file.

    It has the columns of --ids, then one per task: probabilities at the
    natural rate, or numbers in the unit of the labels. Labels are not needed.
    Rows are read, predicted and written in blocks; a file that cannot be
    written whole is not written.
    """
    from equipoise.serving import Ranker
    from equipoise.training.faults import interrupted_by_sigterm

    with plainly(lambda: f"{out} was not written."), interrupted_by_sigterm():
        found = Ranker.load(folder).predict_files(
            files,
            out,
            ids=[name for name in ids.split(",") if name],
            file_format=file_format,
            separator=separator,
            null_values=None if null_values is None else null_values.split(","),
        )
    if found.unseen:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in found.unseen.items())
        errors.print(f"Values that the training has not seen: {shares}.", markup=False, highlight=False, soft_wrap=True)
    say(f"Predictions: {out} ({found.rows:,} rows)")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `equipoise train` wrote.")],
    *,
    out: Annotated[Path, typer.Option(help="The folder for the export; an earlier export is replaced.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the program as ONNX too.")] = False,
    aoti: Annotated[bool, typer.Option("--aoti", help="Compile it for this kind of CPU too (AOTInductor).")] = False,
) -> None:
    """Export a trained ranker: a program, its encoding as JSON, and an encoder in plain Python.

    The folder serves without equipoise; its README.md shows the use. Every
    program is compared with the model before the folder appears.
    """
    from equipoise.serving import Ranker
    from equipoise.training.faults import interrupted_by_sigterm

    with plainly(lambda: f"{out} was not written."), interrupted_by_sigterm():
        Ranker.load(folder).export(out, onnx=onnx, aoti=aoti)
    say(f"Export: {out} (README.md there shows its use)")
