"""What the glossary points at is there."""

import re

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def test_every_file_that_carries_a_term_exists():
    paths = re.findall(r"`(hpcmpq/[\w/.]+)`", PAGE)
    assert len(paths) > 30
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_class_is_defined_in_the_file_named_beside_it():
    pairs = re.findall(r"`([A-Z]\w+)` in `(hpcmpq/[\w/]+)(\.py)?`", PAGE)
    assert len(pairs) > 10
    for name, path, ending in pairs:
        files = [ROOT / f"{path}.py"] if ending else [*(ROOT / path).rglob("*.py")]
        found = any(re.search(rf"^class {name}\b", file.read_text(encoding="utf-8"), re.M) for file in files)
        assert found, f"{name} is not defined in {path}"
