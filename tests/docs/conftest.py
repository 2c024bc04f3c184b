"""The command of the pages."""

import pytest

from tests.docs.pages import RunPage, run_blocks


@pytest.fixture(scope="session")
def run_page(started_once: str) -> RunPage:
    """`run_blocks` with a quick `hpcmpq`."""
    return lambda page, directory: run_blocks(page, directory, started_once)
