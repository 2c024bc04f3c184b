"""Exports of the solved model, by name.

To add one: write a module here with `export(plan, variants, assignment, directory) -> str`, which writes into
`directory` (see `whole_directory`) and returns one line for people about what it wrote, and one line in
`EXPORTERS`. It must refuse what its format cannot hold exactly. `tests/export` loads the result of every exporter
with a real reader and compares outputs.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmpq.errors import UserError
from hpcmpq.plan import Plan
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.targets import TARGETS

if TYPE_CHECKING:
    from hpcmpq.quantized.variants import Variants

EXPORTERS = {
    "fake_quantized": "hpcmpq.export.fake_quantized:export",
    "compressed_tensors": "hpcmpq.export.compressed_tensors:export",
    "gguf": "hpcmpq.export.gguf:export",
    "onnx": "hpcmpq.export.onnx:export",
    "tool_configs": "hpcmpq.export.tool_configs:export",
}

WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data")
"""Ends of the names of files that hold weights."""

Exporter = Callable[[Plan, "Variants", Mapping[str, str], Path], str]


def export(run: RunDir, name: str) -> str:
    """Write the solved model in the format called `name` and return a line about it.

    `fake_quantized` goes to RUN/checkpoint, every other format to RUN/exports/NAME. Where the plan's target is of
    this format, the line compares the bytes of the weight files with `size_bytes` of the solution.

    Raises:
        UserError: If the format is unknown, cannot hold the solution, or nothing is solved yet.
    """
    from hpcmpq.quantized.variants import open_variants

    if name not in EXPORTERS:
        raise UserError(f"unknown export format {name!r}; known: {', '.join(EXPORTERS)}")
    plan = read_plan(run)
    solution = read_solution(run)
    directory = run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name
    if name != "fake_quantized" and any(group.products for group in plan.space.groups):
        raise UserError(
            f"{name} holds no formats of attention products; plan without groups.attention_products, or export "
            "fake_quantized"
        )
    module, attribute = EXPORTERS[name].split(":")
    exporter: Exporter = getattr(import_module(module), attribute)
    line = exporter(plan, open_variants(run, plan), solution["assignment"], directory)
    if name == "fake_quantized":
        return line
    num_bytes = weight_bytes(directory)
    if not num_bytes:
        return line
    predicted = solution["costs"]["size_bytes"]
    countable = not plan.config.get("target") and any(target.export == name for target in TARGETS.values())
    why = "; with a target in the config it counts the bytes of such a file" if countable else ""
    return (
        f"{line}: {num_bytes:,} bytes of weights, size_bytes says {predicted:,.0f} "
        f"({num_bytes / predicted - 1:+.2%}){why}"
    )


def weight_bytes(directory: Path) -> int:
    """Bytes of the files of an export that hold weights."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.suffix in WEIGHTS)
