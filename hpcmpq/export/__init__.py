"""Exports of the solved model, by name.

To add one: write a module here, called as the export, with `export(plan, variants, assignment, directory) -> Written`,
which writes into the empty `directory` and says what it wrote, one line in `EXPORTERS`, and what reads it in
`hpcmpq.export.readers`. It must refuse what its format cannot hold exactly: in `check(subject)` all that config and
model say already, in `held(subject, group, formats)` formats of a group; planning asks both, see
`hpcmpq.export.holdable`. `tests/export` loads the result of every exporter with a real reader and compares outputs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmpq.plan import Plan
from hpcmpq.store.json_files import write_json
from hpcmpq.store.of_solution import ASSIGNMENT, VERIFICATION, exported_facts
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.store.sums import write_sums
from hpcmpq.tables import look_up, named_by
from hpcmpq.targets import TARGETS

if TYPE_CHECKING:
    from hpcmpq.export.verification import Verification
    from hpcmpq.export.written import Written
    from hpcmpq.quantized.variants import Variants

EXPORTERS = {
    "fake_quantized": "hpcmpq.export.fake_quantized:export",
    "compressed_tensors": "hpcmpq.export.compressed_tensors:export",
    "modelopt": "hpcmpq.export.modelopt:export",
    "gguf": "hpcmpq.export.gguf:export",
    "mlx": "hpcmpq.export.mlx:export",
    "onnx": "hpcmpq.export.onnx:export",
    "tool_configs": "hpcmpq.export.tool_configs:export",
}

STREAMING = ("fake_quantized", "compressed_tensors", "modelopt", "gguf", "mlx")
"""Those that write a streamed model block after block."""

WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data")
"""Ends of the names of files that hold weights."""

Exporter = Callable[[Plan, "Variants", Mapping[str, str], Path], "Written"]


def export(run: RunDir, name: str, verify: bool = True) -> str:
    """Write the solved model in the format called `name`, read it back, and return a line about it.

    `fake_quantized` goes to RUN/checkpoint, every other format to RUN/exports/NAME. Where the plan's target is of
    this format, the line compares the bytes of the weight files with `size_bytes` of the solution.

    Args:
        run: The run directory.
        name: One of `EXPORTERS`.
        verify: Whether its documented reader reads it back and its outputs are compared.

    Raises:
        UserError: If the format is unknown, cannot hold the solution, nothing is solved yet, or files of somebody's own
            lie in the directory.
        NotReproduced: If what is read back is not the run's model; nothing of the export is kept.
    """
    from hpcmpq.export.model_card import CARDS, serve_command, write_card
    from hpcmpq.export.whole_directory import replacing_export, written_cards

    exporter = look_up(EXPORTERS, name, "export format")
    plan = read_plan(run)
    solution = read_solution(run)
    directory = run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name
    with replacing_export(directory) as attempt:
        written, verification = _write(
            run, plan, name, named_by(exporter), solution["assignment"], attempt, verify
        )
        write_json(attempt / ASSIGNMENT, dict(solution["assignment"]))
        if name != "tool_configs":
            write_card(attempt, plan, solution, name)
        said = {**verification.to_values(), **exported_facts(solution), **written_cards(attempt)}
        write_json(attempt / VERIFICATION, said)
        write_sums(attempt, leaving_out=CARDS)
    line = f"{written.text} in {directory}{''.join(f', {note}' for note in written.notes)}, {verification}"
    num_bytes = 0 if name == "fake_quantized" else weight_bytes(directory)
    if not num_bytes:
        return line
    predicted = solution["costs"]["size_bytes"]
    countable = not plan.config.target and any(target.export == name for target in TARGETS.values())
    why = "; with a target in the config it counts the bytes of such a file" if countable else ""
    command = serve_command(name, directory, plan, solution["assignment"])
    return (
        f"{line}: {num_bytes:,} bytes of weights, size_bytes says {predicted:,.0f} "
        f"({num_bytes / predicted - 1:+.2%}){why}"
        + ("" if command is None else f"; serve it with `{command}`")
    )


def weight_bytes(directory: Path) -> int:
    """Bytes of the files of an export that hold weights."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.suffix in WEIGHTS)


def _write(
    run: RunDir,
    plan: Plan,
    name: str,
    exporter: Exporter,
    assignment: dict[str, str],
    attempt: Path,
    verify: bool,
) -> "tuple[Written, Verification]":
    """Write an export and read it back; the original leaves memory before the reader's model enters it."""
    from hpcmpq.export.holdable import ExportSubject, check_exportable
    from hpcmpq.export.readers import missing_reader, read_back, reader_name
    from hpcmpq.export.streamed_check import check_in_turn, expected_of_streamed, read_back_streamed
    from hpcmpq.export.tool_config_check import check_tool_configs
    from hpcmpq.export.verification import (
        Verification,
        compare,
        expected_behaviour,
        one_sample,
        searched_layers,
    )
    from hpcmpq.models.data.kept_samples import kept_samples, planned_splits

    variants = _opened(run, plan, name).under(assignment)
    check_exportable(name, ExportSubject(plan.config, plan.space, variants.model))
    written = exporter(plan, variants, assignment, attempt)
    if not verify:
        return written, Verification(None, "--no-verify was given")
    if name == "tool_configs":
        return written, check_tool_configs(plan, assignment, attempt)
    reader = written.reader or name
    if (reason := written.unreadable or missing_reader(reader)) is not None:
        return written, Verification(None, reason)
    if variants.streamed is not None and name != "fake_quantized":
        return written, check_in_turn(name, variants, assignment, attempt, written)
    samples = kept_samples(run, plan) or planned_splits(plan).calibration
    inputs = one_sample(samples, written.max_positions)
    if variants.streamed is not None:
        expected = expected_of_streamed(variants, assignment, inputs)
        del variants
        read = read_back_streamed(plan.config.model, attempt, inputs)
        return written, compare(name, reader_name(name), read, expected, written)
    layers = searched_layers(variants)
    expected = expected_behaviour(variants, assignment, written, inputs)
    del variants
    read = read_back(reader, plan.config, plan.import_paths, attempt, inputs, layers)
    return written, compare(name, reader_name(reader), read, expected, written)


def _opened(run: RunDir, plan: Plan, name: str) -> "Variants":
    """The options of a run, streamed where the model is and the exporter takes one block after the other."""
    from hpcmpq.models.streaming import load_streamed
    from hpcmpq.quantized.solved import open_solved

    if plan.config.model.stream and name in STREAMING:
        return open_solved(run, plan, streamed=load_streamed(plan.config.model))
    return open_solved(run, plan)
