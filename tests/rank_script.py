"""Runs a script as one rank of torchrun: python -m torch.distributed.run ... rank_script.py SCRIPT ARGUMENTS.

After the script the process ends at once. Gloo's threads may still wait for Python's lock then, and an orderly end of
the interpreter now and then aborts such a thread, and the process with it. An error of the script ends it as usual.
"""

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
