"""Text of another kind than prose, which every CPython carries."""

import inspect
from importlib import import_module

MODULES = ("argparse", "statistics", "textwrap", "json.decoder", "configparser", "tarfile", "difflib")


def source_code() -> str:
    """Python source of some modules of the standard library."""
    return "\n\n".join(inspect.getsource(import_module(name)) for name in MODULES)
