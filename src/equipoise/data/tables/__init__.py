"""Own tables: a YAML file or Python objects that say how the columns of files become features, tasks and splits."""

from equipoise.data.tables.build import from_files, from_frame
from equipoise.data.tables.config import TableConfig

__all__ = ["TableConfig", "from_files", "from_frame"]
