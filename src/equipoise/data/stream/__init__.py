"""Data beyond memory: an encoded Parquet set on disk, written in bounded memory and streamed in shuffled batches."""

from equipoise.data.stream.batches import StreamedBatches
from equipoise.data.stream.manifest import About, Manifest, Part, is_prepared, read_manifest
from equipoise.data.stream.preparing import prepare
from equipoise.data.stream.reading import from_prepared
from equipoise.data.stream.split import StreamedSplit
from equipoise.data.stream.writing import Block, Content, write_prepared

__all__ = [
    "About",
    "Block",
    "Content",
    "Manifest",
    "Part",
    "StreamedBatches",
    "StreamedSplit",
    "from_prepared",
    "is_prepared",
    "prepare",
    "read_manifest",
    "write_prepared",
]
