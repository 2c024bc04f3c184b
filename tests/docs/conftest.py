"""The command of the pages."""

from collections.abc import Iterator

import pytest

from tests.docs.pages import RunPage, run_blocks
from tests.docs.started_once import started_once


@pytest.fixture(scope="session")
def run_page() -> Iterator[RunPage]:
    """`run_blocks` with a quick `hpcmpq`."""
    with started_once() as script:
        yield lambda page, directory: run_blocks(page, directory, script)
