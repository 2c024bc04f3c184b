"""Rules of the house that no linter knows."""

import ast
import doctest
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "hpcmpq").rglob("*.py"))
MAX_LINES = 260
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "core", "misc"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("folder", ["hpcmpq", "jobs", "tests", "bench"])
def test_file_names_say_what_is_inside(folder: str):
    vague = [
        name_of(path) for path in (ROOT / folder).rglob("*.py") if VAGUE_NAMES & {path.stem, path.parent.name}
    ]
    assert not vague, f"name the idea instead of {vague}"


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def test_files_hold_one_idea_each():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    long = {name: length for name, length in lengths.items() if length > MAX_LINES}
    assert not long, f"split where a second idea begins: {long} (limit {MAX_LINES} lines)"


def test_classes_of_ours_do_not_inherit_from_one_another():
    """Protocols plus functions. Exceptions may: that is how `except` sorts them."""
    classes = re.compile(r"^class (\w+)\(([^)]*)\)", flags=re.MULTILINE)
    defined = {
        name for path in SOURCES for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)
    }
    found = []
    for path in SOURCES:
        if path.name != "errors.py":
            for name, bases in classes.findall(path.read_text()):
                found += [f"{name_of(path)}: {name}" for base in bases.split(",") if base.strip() in defined]
    assert not found


def nouns(path: Path) -> list[str]:
    """Names of a file's classes and of its types that are other types' names; constants are all capitals."""
    tree = tree_of(path)
    found = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        found += [name for name in names if name.lstrip("_")[0].isupper() and not name.isupper()]
    return [name.lstrip("_") for name in found]


SHOWN = {"Solution"}
"""What Python users see of a thing has its name."""


def test_a_noun_has_one_meaning():
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for noun in nouns(path):
            places.setdefault(noun, []).append(name_of(path))
    assert len(places) > 200
    assert not {noun: files for noun, files in places.items() if len(files) > 1 and noun not in SHOWN}, (
        "import it if it means the same, else name one for what it is"
    )


def test_range_is_the_builtin():
    """What codes mean are qparams, as the field says."""
    found = []
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            if "range" in (name, getattr(node, "arg", None) if isinstance(node, ast.arg) else None):
                found.append(f"{name_of(path)}:{node.lineno}")
    assert not [place for place in found if not place.startswith("hpcmpq/settings/quantizer.py")], (
        "a field of Quantizer"
    )


MEANINGS = {"P": {"options"}, "K": {"inputs"}, "Q": {"options"}, "G": {"groups"}}
"""Of letters that stand for one axis in every legend."""


def test_axis_letters_mean_one_thing():
    legends = {}
    for path in SOURCES:
        for legend in re.findall(
            r"(?:Axis|Shape) letters: (.*?)\n(?:\n|\"\"\")", path.read_text(), re.DOTALL
        ):
            legends[name_of(path)] = re.findall(r"\b([A-Z]) (\w+)", legend)
    assert len(legends) > 30
    for name, letters in legends.items():
        wrong = [pair for pair in letters if pair[1] not in MEANINGS.get(pair[0], {pair[1]})]
        assert not wrong, f"{name}: {wrong}"


@functools.cache
def listed_files() -> list[str]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_the_top_level_stays_as_it_is():
    folders = {"hpcmpq", "jobs", "slurm", "tests", "configs", "bench", "docs", ".ci", "containers"}
    files = {
        "environment.yml", "pyproject.toml", "constraints.txt", "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
        "LICENSE", "CITATION.cff", "codemeta.json", ".gitignore", ".pre-commit-config.yaml",
    }  # fmt: skip
    assert {name.split("/")[0] for name in listed_files()} == folders | files


def test_no_machine_path_or_registry_host_is_written_down():
    texts = {
        ".py",
        ".md",
        ".toml",
        ".txt",
        ".yaml",
        ".yml",
        ".sh",
        ".sbatch",
        ".pbs",
        ".html",
        ".css",
        ".js",
        "",
    }
    forbidden = re.compile("/wor" + r"k/|/ro" + r"ot/|pypi\.o" + r"rg|pythonhosted\.o" + r"rg|whl/c" + "pu")
    found = []
    for name in listed_files():
        path = ROOT / name
        if path.is_file() and path.suffix in texts:
            found += [f"{name}: {hit}" for hit in set(forbidden.findall(path.read_text(errors="replace")))]
    assert not found


PROGRAMS = [
    path for folder in ("hpcmpq", "jobs", "bench", "configs") for path in (ROOT / folder).rglob("*.py")
]


def calls_in_the_encoding_of_the_locale(tree: ast.Module) -> list[int]:
    """Lines of calls that turn text to bytes or back without saying how; binary ones have a b in their mode."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        modes = [value for value in (*call.args, given.get("mode")) if isinstance(value, ast.Constant)]
        binary = any(
            isinstance(m.value, str) and re.fullmatch("[rwax]\\+?b\\+?|b[rwax]\\+?", m.value) for m in modes
        )
        opens = name in ("open", "fdopen") and not binary and getattr(owner, "id", "") != "os"
        texts = name in ("read_text", "write_text") or bool({"text", "universal_newlines"} & given.keys())
        if (opens or texts) and "encoding" not in given:
            found.append(call.lineno)
    return found


def test_text_files_do_not_depend_on_the_locale():
    found = {name_of(path): calls_in_the_encoding_of_the_locale(tree_of(path)) for path in PROGRAMS}
    assert not {name: lines for name, lines in found.items() if lines}, 'say encoding="utf-8"'


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open('a')", [1]), ("path.open('w', newline='')", [1]), ("open('a', 'rb')", []), ("p.open(mode='ab')", []),
        ("p.open('a', encoding='utf-8')", []), ("os.open('a', os.O_RDONLY)", []), ("p.read_text()", [1]),
        ("p.write_text(x, encoding='utf-8')", []), ("subprocess.run(c, text=True)", [1]), ("safe_open(f, 'pt')", []),
    ],
)  # fmt: skip
def test_calls_in_the_encoding_of_the_locale_are_found(source: str, found: list[int]):
    assert calls_in_the_encoding_of_the_locale(ast.parse(source)) == found


@pytest.mark.parametrize("config", [name_of(path) for path in sorted((ROOT / "configs").glob("*.yaml"))])
def test_shipped_config_is_valid(config: str):
    from hpcmpq.config import read_config

    assert isinstance(yaml.safe_load((ROOT / config).read_text()), dict)
    assert read_config(ROOT / config).formats


def test_there_are_shipped_configs():
    assert {"quickstart.yaml", "digits.yaml"} <= {path.name for path in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.parametrize("command", [(), *((path,) for path in ("plan", "solve", "report", "run", "status"))])
def test_command_line_explains_itself_without_loading_torch(command: tuple[str, ...]):
    code = (
        "import sys; from hpcmpq.cli import main\n"
        f"sys.argv = {['hpcmpq', *command, '--help']!r}\n"
        "try:\n    code = main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_module_runs_as_the_console_script_does():
    done = subprocess.run(
        [sys.executable, "-m", "hpcmpq", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "hpcmpq" in done.stdout


def with_examples() -> list[Any]:
    """Modules with runnable examples in their docstrings; those of the API run stages."""
    found = [name_of(path) for path in SOURCES if ">>> " in path.read_text()]
    names = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in found]
    return [pytest.param(n, marks=pytest.mark.slow) if n.startswith("hpcmpq.api.") else n for n in names]


@pytest.mark.parametrize("module", with_examples())
def test_docstring_examples_hold(module: str):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(
    "table", ["sensitivity:METHODS", "executors:EXECUTORS", "solvers:SOLVERS", "export:EXPORTERS"]
)
def test_variant_tables_name_existing_files(table: str):
    """Listing names imports nothing; that each entry can be found is checked without importing it."""
    module, attribute = table.split(":")
    entries: dict[str, Any] = getattr(importlib.import_module(f"hpcmpq.{module}"), attribute)
    for name, entry in entries.items():
        target: str = getattr(entry, "place", entry)
        file, _, function = target.partition(":")
        path = ROOT / (file.replace(".", "/") + ".py")
        assert path.exists(), f"{table}[{name!r}] names {target}, and {path.name} does not exist"
        assert re.search(
            rf"^(class|def|async def) {function}\b|^{function}\b", path.read_text(), re.MULTILINE
        ), target
