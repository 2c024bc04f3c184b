"""Libraries are compiled once a test run, also where Python may not keep bytecode beside them.

Containers often set PYTHONDONTWRITEBYTECODE, and some installers compile nothing: then every process that tests start
would compile torch anew, which takes longer than most of what it is started for.
"""

import atexit
import shutil
import sys
import tempfile
from importlib.util import cache_from_source, find_spec
from pathlib import Path


def kept_bytecode() -> dict[str, str]:
    """Let this process keep bytecode in a folder that ends with it, where there is none; variables for its children."""
    torch = find_spec("torch")
    if not sys.dont_write_bytecode or torch is None or Path(cache_from_source(str(torch.origin))).exists():
        return {}
    folder = tempfile.mkdtemp(prefix="hpcmpq-bytecode-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.dont_write_bytecode, sys.pycache_prefix = False, folder
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
