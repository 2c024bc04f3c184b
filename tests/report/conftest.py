"""What tests of the report share."""

from pathlib import Path

import pytest


@pytest.fixture
def no_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty PNG files, for tests that read the page or its tables: every figure would be drawn a second time."""

    def leave_empty(_figure: object, path: Path) -> None:
        path.touch()

    monkeypatch.setattr("hpcmpq.report.theme.save_png", leave_empty)
