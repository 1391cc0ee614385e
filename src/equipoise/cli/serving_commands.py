"""The commands that use a trained ranker: predict and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from equipoise.cli.app import app
from equipoise.cli.messages import plainly, say
from equipoise.serving import Ranker

__all__ = ["export", "predict"]


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `equipoise train` wrote.")],
    files: Annotated[list[str], typer.Argument(help="Parquet or CSV files with raw rows.")],
    *,
    out: Annotated[Path, typer.Option(help="The Parquet file for the predictions.")],
) -> None:
    """Predict raw rows with a trained ranker; write one column per task."""
    with plainly():
        ranker = Ranker.load(folder)
        frame = pl.concat([(pl.read_parquet if file.endswith(".parquet") else pl.read_csv)(file) for file in files])
        ranker.predict(frame).write_parquet(out)
    say(f"Predictions: {out}")


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
    with plainly():
        Ranker.load(folder).export(out, onnx=onnx, aoti=aoti)
    say(f"Export: {out} (README.md there shows its use)")
