"""Settings of every process of a test run; libraries and fixtures where tests run."""

import gc
import os

import pytest

from tests.bytecode import kept_bytecode
from tests.side_by_side import (  # noqa: F401  (hooks)
    only_deals_out,
    pytest_collection_modifyitems,
    pytest_configure_node,
    pytest_runtest_teardown,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)

os.environ.update(kept_bytecode())
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is there: on tiny tensors a second thread is only waited for, and tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Fixtures where tests run; quick tests look at fewer examples, unless a test says how many."""
    if only_deals_out(
        config
    ):  # the workers read torch and transformers, and wait for this process until then
        return
    import hypothesis

    # Nothing that an earlier run found, and nothing about time.
    settings = hypothesis.settings
    settings.register_profile("fresh", database=None, deadline=None, print_blob=True)
    settings.register_profile("quick", parent=settings.get_profile("fresh"), max_examples=20)
    settings.load_profile("quick" if config.getoption("markexpr") == "quick" else "fresh")
    gc.disable()  # until all is read: it stays, and looking through it again and again takes a tenth of the time
    config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_finish() -> None:
    """What libraries and tests hold is never looked through again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
