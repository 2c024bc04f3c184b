"""Imports point one way, and heavy libraries stay in their own files.

A room is a folder or a file at the top of `hpcmpq/`. `ROOMS` lists them from the ground up with the rooms that each
may import, functions included: read top to bottom, it is the order in which to read the code. A new room, or a new
arrow between two, is placed here.
"""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.executors.tiny_model import write_config
from tests.synthetic_run import write_run

ROOT = Path(__file__).resolve().parents[1]

# Room: the rooms it may import, which all stand above it here.
ROOMS: dict[str, str] = {
    "cross_terms": "",
    "errors": "",
    "examples": "",
    "settings": "",
    "space": "",
    "wording": "",
    "objective": "errors",
    "stopping": "errors",
    "quadratic": "cross_terms",
    "tables": "errors",
    "formats": "errors settings",
    "plan": "settings space",
    "problem": "cross_terms quadratic",
    "quantizers": "errors formats",
    "executors": "errors stopping tables plan",
    "store": "errors quadratic formats plan",
    "targets": "errors space tables formats",
    "tracking": "errors store",
    "doctor": "errors wording store",
    "solvers": "cross_terms errors tables problem",
    "units": "errors plan executors store",
    "config": "errors settings tables formats targets",
    "batch": "errors tables plan store",
    "slurm": "errors tables store batch",
    "pbs": "errors tables store batch",
    "models": "errors settings space objective formats plan store targets",
    "quantized": "errors space objective formats plan quantizers store models",
    "timing": "errors settings space formats plan quantizers store models",
    "solve": "errors stopping settings space quadratic tables formats plan problem store targets solvers",
    "response": "errors space models quantized",
    "report": "errors space wording quadratic formats plan problem store solvers solve",
    "evaluate": (
        "errors settings space objective stopping tables formats plan executors store units models quantized"
    ),
    "export": "errors settings space wording tables formats plan quantizers store targets models quantized",
    "sensitivity": "errors space objective tables formats models quantized response",
    "calibrate": (
        "errors settings space objective quadratic formats plan executors store units models quantized "
        "response sensitivity"
    ),
    "screening": "errors settings quadratic space plan executors store solve units sensitivity calibrate",
    "refine": (
        "errors settings space quadratic formats plan problem executors store solvers units models "
        "quantized solve evaluate sensitivity calibrate"
    ),
    "rounding": (
        "errors space tables formats plan quantizers executors store units models quantized "
        "sensitivity calibrate refine"
    ),
    "planning": (
        "errors settings space objective formats plan quantizers store targets models quantized "
        "solve response export sensitivity calibrate rounding"
    ),
    "api": (
        "errors settings space quadratic tables plan executors store targets config batch models "
        "quantized timing solve report evaluate export calibrate screening refine rounding planning"
    ),
    "cli": (
        "errors settings stopping wording tables plan executors store tracking doctor solvers config batch slurm "
        "solve report export calibrate rounding planning api"
    ),
    "__main__": "stopping cli",
}

# Library: the only parts of the package that may import it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "h5py": ("store.h5_files",),
    "mpi4py": ("executors.mpi_pool", "executors.mpi_start", "executors.pmi", "executors.world"),
    "ray": ("executors.ray_pool",),
    "deepspeed": ("evaluate.engines.ranks",),
    "lm_eval": ("evaluate.tasks.harness",),
    "ortools": ("solvers",),
    "pydantic": ("config",),
    "yaml": ("config", "report"),
    "rich": ("cli", "api.bars"),
    "typer": ("cli",),
    "matplotlib": ("report", "api.frontier"),
    "jinja2": ("report",),
    "mlflow": ("tracking",),
    "sklearn": ("examples",),
}


def modules() -> dict[str, Path]:
    """{name below hpcmpq: file}, the package itself being the empty name."""
    found = {}
    for path in sorted((ROOT / "hpcmpq").rglob("*.py")):
        parts = path.relative_to(ROOT / "hpcmpq").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


@cache
def imported_names(path: Path) -> set[str]:
    """Absolute names that a file imports anywhere in it, functions included; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(name: str) -> str:
    """The room that an absolute name below hpcmpq belongs to; empty for `hpcmpq` itself and what is no room."""
    room = (name.split(".") + [""])[1]
    return room if room in ROOMS else ""


def arrows() -> dict[str, set[str]]:
    """{room: other rooms that its files import}."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, path in MODULES.items():
        room = module.split(".")[0]
        names = {name for name in imported_names(path) if name.split(".")[0] == "hpcmpq"}
        found.setdefault(room, set()).update({room_of(name) for name in names} - {room, ""})
    del found[""]
    return found


def reachable(room: str) -> set[str]:
    """A room and all that it may import, rooms on the way included."""
    return {room}.union(*(reachable(other) for other in ROOMS[room].split()))


SOLVE_PATH = reachable("solve")

ON_GPU = "solvers.on_gpu"
"""The module of the solve path that needs torch, imported by its name alone."""


def is_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def test_every_room_is_listed_with_what_it_imports_and_no_more():
    assert arrows() == {room: set(others.split()) for room, others in ROOMS.items()}


def test_imports_point_down():
    above: set[str] = set()
    for room, others in ROOMS.items():
        wrong = sorted(set(others.split()) - above)
        assert not wrong, f"{room} may not import {wrong}, which stand below it in ROOMS"
        above.add(room)


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_in_its_own_files_only(library: str):
    users = [
        module
        for module, path in MODULES.items()
        if library in {n.split(".")[0] for n in imported_names(path)}
    ]
    strays = [module for module in users if not is_in(module, ONLY_IN[library])]
    assert not strays, f"{library} is imported by {strays}, only {ONLY_IN[library]} may"


def test_the_solve_path_names_no_torch():
    heavy = {"torch", "transformers", "accelerate", "deepspeed", "sklearn", "safetensors"}
    for module, path in MODULES.items():
        if module.split(".")[0] in SOLVE_PATH and module != ON_GPU:
            assert not heavy & {name.split(".")[0] for name in imported_names(path)}, module


# Installed libraries that the solve path may load: the five it names and what those need.
ALLOWED = {
    *("numpy", "scipy", "threadpoolctl", "h5py", "ortools"),
    *("absl", "google", "immutabledict", "pandas", "dateutil", "pytz", "tzdata", "six", "typing_extensions"),
}

BLOCK_ALL_BUT = """
import sys

class OnlyAllowed:
    allowed = {allowed!r} | set(sys.stdlib_module_names) | {{"hpcmpq"}}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.allowed and not name.startswith("_sysconfigdata_"):  # Python's own
            raise ModuleNotFoundError(name + " is not allowed on the solve path", name=name)

sys.meta_path.insert(0, OnlyAllowed())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_solve_path_imports_without_torch_pydantic_or_anything_else():
    names = [
        f"hpcmpq.{module}" for module in MODULES if module.split(".")[0] in SOLVE_PATH and module != ON_GPU
    ]
    code = BLOCK_ALL_BUT.format(allowed=ALLOWED) + "\n".join(f"import {name}" for name in names)
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_directory_is_solved_without_torch_pydantic_or_anything_else(tmp_path: Path):
    write_run(tmp_path / "run", solved=False)
    code = (
        BLOCK_ALL_BUT.format(allowed=ALLOWED)
        + "\nimport sys\nfrom hpcmpq.solve.__main__ import main\nsys.exit(main())"
    )
    budgets = ("--budget", "weight_bits=2.5", "--budget", "weight_bits=3")
    done = run_python(code, str(tmp_path / "run"), *budgets, "--time-limit", "5")
    assert done.returncode == 0, done.stderr
    solution = json.loads((tmp_path / "run" / "solution.json").read_text())
    assert solution["budgets"] == {"weight_bits": 2.5}  # both limits hold


def test_the_blocked_import_check_can_fail():
    done = run_python(BLOCK_ALL_BUT.format(allowed=ALLOWED) + "import yaml")
    assert done.returncode != 0
    assert "not allowed on the solve path" in done.stderr


WITHOUT_TRANSFORMERS = """
import sys
from pathlib import Path
from hpcmpq.calibrate import stage
assert "torch" not in sys.modules, "what hands units out measures none"
sys.modules["transformers"] = None
from hpcmpq.config import read_config
from hpcmpq.executors.in_process import InProcess
from hpcmpq.planning.stage import prepare
from hpcmpq.store.run_dir import RunDir
run = RunDir(Path(sys.argv[1]) / "run")
prepare(read_config(Path(sys.argv[1]) / "config.yaml"), run, ())
stage.calibrate(run, InProcess(), lambda *_: None)
"""


@pytest.mark.slow
def test_a_module_of_plain_torch_is_measured_without_transformers(tmp_path: Path):
    """Whose import takes seconds, in every worker."""
    write_config(tmp_path / "config.yaml")
    done = run_python(WITHOUT_TRANSFORMERS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "shards").glob("*.h5"))) == 9


def test_importing_the_package_loads_nothing_but_itself():
    code = (
        "import sys; before = set(sys.modules); import hpcmpq; new = set(sys.modules) - before; "
        "print(sorted(name for name in new if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    done = run_python(code)
    assert done.stdout.strip() == "['hpcmpq']", done.stderr + done.stdout


def test_the_map_for_newcomers_names_every_room_once():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| Room |") : text.index("## Adding a variant")]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(ROOMS)
