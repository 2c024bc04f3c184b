"""Functions that a config names as ``package.module:function``."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hpcmpq.errors import UserError


def resolve_factory(name: str, import_paths: Sequence[str] = ()) -> Callable[..., Any]:
    """The function behind ``package.module:function``.

    `import_paths` and the working directory become importable, behind what is installed, and stay so:
    factories may import lazily.

    Raises:
        UserError: If the name is malformed, the module cannot be imported, or it has no such function.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise UserError(f"factory {name!r} must look like package.module:function")
    for path in (*import_paths, os.getcwd()):
        if path not in sys.path:
            sys.path.append(str(path))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
        message = (
            f"no module {error.name!r} for the factory {name!r}; install it or run where it can be imported"
            if own
            else f"importing {module_name} for the factory {name!r} needs the missing module {error.name!r}"
        )
        raise UserError(message) from error
    except Exception as error:
        raise UserError(
            f"importing {module_name} for the factory {name!r} failed: {describe(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(function_name, known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{module_name} ({module.__file__}) has no function {function_name!r}{hint}")
    return function


def call_factory(name: str, import_paths: Sequence[str] = ()) -> Any:
    """What the factory returns.

    Raises:
        UserError: As `resolve_factory`, or if the function raises.
    """
    function = resolve_factory(name, import_paths)
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the factory {name!r} raised {describe(error)}") from error


def describe(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {text[:300]}"
