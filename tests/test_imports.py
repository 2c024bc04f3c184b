"""Imports point one way, and heavy libraries stay in their own files.

`LAYERS` lists the package from the bottom up. A module may import from layers below its own and from its own
package, never sideways or up: read top to bottom, the table is the order in which to read the code. A new
module must be placed here.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.synthetic_run import write_run

ROOT = Path(__file__).resolve().parents[1]

LAYERS: list[tuple[str, ...]] = [
    # The types: numpy at most.
    ("errors",),
    ("formats", "whole_files", "world", "run_dir", "wording"),
    ("space", "h5_files", "json_files", "npz_files"),
    ("targets",),
    ("config",),
    ("plan", "quadratic"),
    ("problem",),
    ("costs",),
    # The solve path: numpy, h5py and ortools. It runs on a laptop without torch.
    ("store", "solvers", "executors"),
    ("shrinkage", "constraints", "descent", "link", "solved_points"),
    ("formulate",),
    ("solve", "solvable"),
    ("frontier", "time_gain"),
    # The queue: what login nodes run.
    ("attempts", "slurm_settings", "wall_times"),
    ("scaling",),
    ("status", "submit", "doctor", "compare"),
    # What touches models and tensors.
    ("quantizers", "objective", "probes", "features", "compensated", "allocator"),
    ("models", "scores"),
    ("activations", "stored_codes"),
    ("variants", "subgraphs"),
    ("measure", "changes"),
    ("wavefront",),
    ("response",),
    ("sensitivity", "cost_estimate"),
    ("examples", "facts", "starter_text"),
    # The other stages: none calls another.
    ("prepare", "calibrate", "reduce", "refine", "evaluate", "export", "report", "timing", "starter"),
    # What people type.
    ("completion",),
    ("console", "options"),
    ("summaries",),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SOLVE_PATH = [name for names in LAYERS[: RANK["frontier"] + 1] for name in names]

# Library: the only parts of the package that may import it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "h5py": ("h5_files",),
    "mpi4py": ("executors.mpi_pool", "world"),
    "ray": ("executors.ray_pool",),
    "deepspeed": ("evaluate.ranks",),
    "lm_eval": ("evaluate.harness",),
    "ortools": ("solvers",),
    "pydantic": ("config",),
    "yaml": ("config", "report"),
    "rich": ("console", "summaries", "cli"),
    "typer": ("cli", "options", "completion"),
    "matplotlib": ("report",),
    "jinja2": ("report",),
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


def part_of(name: str) -> str:
    """The entry of `LAYERS` that an absolute name below hpcmpq belongs to; empty for `hpcmpq` itself."""
    return (name.split(".") + [""])[1]


def is_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def test_every_module_has_a_place_and_every_place_a_meaning():
    parts = {name.split(".")[0] for name in MODULES if name}
    unplaced = sorted(parts - set(RANK))
    assert not unplaced, f"place {unplaced} in LAYERS, above all that they import"
    gone = sorted(set(RANK) - parts)
    assert not gone, f"remove {gone} from LAYERS: no such module"


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_point_down(module: str):
    own = module.split(".")[0]
    assert own in RANK, f"place {own} in LAYERS"
    ours = {name for name in imported_names(MODULES[module]) if name.split(".")[0] == "hpcmpq"}
    wrong = sorted(
        name
        for name in ours
        if part_of(name) in RANK and part_of(name) != own and RANK[part_of(name)] >= RANK[own]
    )
    assert not wrong, f"hpcmpq.{module} is in layer {RANK[own]} and imports {wrong} of its own layer or above"


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
    heavy = {"torch", "transformers", "accelerate", "deepspeed", "scipy", "sklearn", "safetensors"}
    for module, path in MODULES.items():
        if module.split(".")[0] in SOLVE_PATH and not module.startswith("executors"):
            assert not heavy & {name.split(".")[0] for name in imported_names(path)}, module


# Installed libraries that the solve path may load: the three it names and what those need.
ALLOWED = {
    *("numpy", "h5py", "ortools"),
    *("absl", "google", "immutabledict", "pandas", "dateutil", "pytz", "tzdata", "six", "typing_extensions"),
}

BLOCK_ALL_BUT = """
import sys

class OnlyAllowed:
    allowed = {allowed!r} | set(sys.stdlib_module_names) | {{"hpcmpq"}}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.allowed:
            raise ModuleNotFoundError(name + " is not allowed on the solve path", name=name)

sys.meta_path.insert(0, OnlyAllowed())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_solve_path_imports_without_torch_pydantic_or_anything_else():
    names = [f"hpcmpq.{module}" for module in MODULES if module.split(".")[0] in SOLVE_PATH]
    names = [name for name in names if not is_in(name, ("hpcmpq.executors",))]
    code = BLOCK_ALL_BUT.format(allowed=ALLOWED) + "\n".join(f"import {name}" for name in names)
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_a_run_directory_is_solved_without_torch_pydantic_or_anything_else(tmp_path: Path):
    write_run(tmp_path / "run", solved=False)
    code = (
        BLOCK_ALL_BUT.format(allowed=ALLOWED)
        + "\nimport sys\nfrom hpcmpq.solve import main\nsys.exit(main())"
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


def test_importing_the_package_loads_nothing_but_itself():
    code = (
        "import sys; before = set(sys.modules); import hpcmpq; new = set(sys.modules) - before; "
        "print(sorted(name for name in new if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    done = run_python(code)
    assert done.stdout.strip() == "['hpcmpq']", done.stderr + done.stdout
