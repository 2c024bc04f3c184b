"""Directories of exported models, which appear under their name only when they are complete."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hpcmpq.export.model_card import CARDS
from hpcmpq.store.of_solution import ASSIGNMENT, VERIFICATION
from hpcmpq.store.own_directories import replacing_own
from hpcmpq.store.sums import digest_of

WRITTEN_CARDS = "cards"
"""The key of `verification.json` with the SHA-256 of each card, by which one is known that somebody has edited."""


@contextmanager
def replacing_export(directory: Path) -> Iterator[Path]:
    """See `hpcmpq.store.own_directories.replacing_own`; a full disk that safetensors meets is one as well."""
    with replacing_own(directory, ASSIGNMENT, _cards_before(directory)) as attempt:
        try:
            yield attempt
        except SafetensorError as error:
            raise OSError(str(error)) from error


def written_cards(directory: Path) -> dict[str, dict[str, str]]:
    """What `verification.json` says of an export's cards."""
    return {
        WRITTEN_CARDS: {name: digest_of(directory / name) for name in CARDS if (directory / name).is_file()}
    }


def _cards_before(directory: Path) -> Mapping[str, str | None]:
    """{name: SHA-256} of an export's cards as they were written; no SHA-256 where it does not say."""
    try:
        cards = json.loads((directory / VERIFICATION).read_bytes())[WRITTEN_CARDS]
        return {str(name): str(digest) for name, digest in cards.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return dict.fromkeys(CARDS)
