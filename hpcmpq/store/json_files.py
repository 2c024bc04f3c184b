"""JSON files that are whole or not there; artefacts of ours with a checksum.

It is the last key, `digest`: BLAKE2b over the file's name and the JSON text of everything before it, so that damage
which is still JSON is found, and a file under the name of another. Earlier versions left out the name, and the first
ones the digest: a file without one is taken as it is where it holds what such files do
(`hpcmpq.store.artefact_kinds`); ``edited`` in its place says that somebody changed the file and means it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.store.artefact_kinds import kind_of, misfit
from hpcmpq.store.whole_files import placing, replacing

EDITED = "edited"
"""What the digest of a file is that somebody has changed and means."""


class Artefact(dict[str, Any]):
    """An object in an artefact: a key that it lacks is damage, and so is no `KeyError`.

    Attributes:
        path: Of the artefact.
        made_by: The command that writes it.
        verified: Whether its checksum says that it is as it was written.
    """

    path = Path()
    made_by = ""
    verified = False

    def __missing__(self, key: str) -> NoReturn:
        raise _damaged(self.path, self.made_by, f"no {key!r}")

    def pop(self, key: str, *default: Any) -> Any:  # type: ignore[override]
        """As that of a dict, which does not ask `__missing__`."""
        return super().pop(key, *default) if default or key in self else self[key]


def write_json(path: Path, values: Any, *, allow_nan: bool = False) -> None:
    """Write plain JSON atomically; NaN and infinity are refused, but where whoever reads the file takes them."""
    text = json.dumps(values, indent=2, allow_nan=allow_nan) + "\n"
    with replacing(path) as attempt:
        attempt.write_text(text, encoding="utf-8")


def write_artefact(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a digest of its name and text for `read_json`."""
    write_json(path, {**values, "digest": _digest(path, values)})


def placed_artefact(path: Path, values: Mapping[str, Any], made_by: str) -> Any:
    """Write such an object where there is none yet; return the one that is there, another process's if it was first."""
    text = json.dumps({**values, "digest": _digest(path, values)}, indent=2, allow_nan=False) + "\n"
    with placing(path) as attempt:
        attempt.write_text(text, encoding="utf-8")
    return read_json(path, made_by)


def read_json(path: Path, made_by: str) -> Any:
    """The JSON object in an artefact; `made_by` is the command that writes it, for the message.

    Raises:
        UserError: If it is missing or cannot be read.
        DamagedFile: If it is not what was written.
    """
    values, as_written = read_edited_json(path, made_by)
    if not as_written:
        raise DamagedFile(
            f"{path} is damaged or was edited (checksum differs); run `{made_by}` again to write it anew"
        )
    return values


def read_edited_json(path: Path, made_by: str) -> tuple[Artefact, bool]:
    """As `read_json`, of an artefact that people may change, and whether it is as it was written, as far as is known.

    Where it is not, it has the key `EDITED` if its digest says so.

    Raises:
        UserError: If it is missing or cannot be read.
        DamagedFile: If it is no JSON object.
    """

    def of_file(found: dict[str, Any]) -> Artefact:
        values = Artefact(found)
        values.path, values.made_by = path, made_by
        return values

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text, object_hook=of_file, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `{made_by}` first") from None
    except IsADirectoryError:
        raise _damaged(path, made_by, "it is a directory; move it away") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, made_by, str(error).split("\n")[0]) from None
    if not isinstance(values, Artefact):
        raise _damaged(path, made_by, "no JSON object")
    digest = values.pop("digest", None)
    if digest not in (None, EDITED):
        values.verified = digest in (_digest(path, values), _digest_of_text(values))
        return values, values.verified
    if (reason := misfit(values, kind_of(path))) is not None:
        raise _damaged(path, made_by, reason)
    if digest == EDITED:
        values[EDITED] = True
    return values, digest is None and not _is_digest(values)


def _damaged(path: Path, made_by: str, reason: str) -> DamagedFile:
    return DamagedFile(f"{path} is damaged ({reason}); run `{made_by}` again to write it anew")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number")


def _is_digest(values: Mapping[str, Any]) -> bool:
    """Whether the last value is one, under a name that was damaged."""
    [last] = [*values.values()][-1:] or [None]
    return isinstance(last, str) and re.fullmatch("[0-9a-f]{32}", last) is not None


def _digest(path: Path, values: Mapping[str, Any]) -> str:
    return _digest_of_text(values, f"{path.name}\n")


def _digest_of_text(values: Mapping[str, Any], before: str = "") -> str:
    return hashlib.blake2b(f"{before}{json.dumps(values)}".encode(), digest_size=16).hexdigest()
