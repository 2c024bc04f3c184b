"""Every stage on small random mixtures of experts of many families, in memory and streamed from their files.

    python -m bench.mixtures                  all that are not done yet; writes section `mixtures` of bench/RESULTS.md
    python -m bench.mixtures GptOss           these anew, printed only
    python -m bench.mixtures --done           writes the section from those that are done, tries none

A family is planned from the config that `hpcmpq init` writes for it, calibrated by the engine that is picked and by
whole passes, solved, refined, rounded again, evaluated and exported, every export read back; then all of that again
with `model: {stream: true}`. What comes of both is compared bit for bit. A family runs in a process of its own.
"""

import argparse
import dataclasses
import json
import logging
import multiprocessing
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from bench.families import against_whole_passes, export_cell, exported, numbered_sentences, starter_config
from bench.family_recipes import FAMILIES
from bench.results import ROOT, table, without_keys, write_section
from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.errors import Infeasible, UserError
from hpcmpq.evaluate.stage import evaluate
from hpcmpq.executors.in_process import InProcess
from hpcmpq.planning.stage import prepare
from hpcmpq.refine.stage import refine
from hpcmpq.rounding.stage import reround
from hpcmpq.settings import Config
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import read_shard

KEPT = ROOT / "runs" / "bench" / "mixtures"

MIXTURES = (
    "Mixtral", "Qwen3Moe", "Qwen3Next", "DeepseekV2", "DeepseekV3", "GptOss", "Llama4", "Olmoe", "GraniteMoe",
    "Qwen2Moe", "Phimoe", "Ernie4_5_Moe", "HunYuanMoEV1", "LongcatFlash", "Dbrx", "JetMoe", "GraniteMoeHybrid",
    "KimiLinear", "MiniMax", "Jamba", "NemotronH",
)  # fmt: skip

EXCLUDED = ("*conv1d*", "*short_conv*")
"""Convolutions, which no packed export holds, and some hybrids have."""

GROUP_SIZE = 32
"""Weights of a scale, as llama.cpp has them."""

EXPORTS = ("fake_quantized", "compressed_tensors", "gguf", "mlx", "tool_configs")

PASSING = ("seconds", "digest", "environment", "peak_bytes", "model_bytes", "proof_seconds", "solver_seconds")
"""Keys whose values are of a process, not of the result."""

STAGES = ("calibrate", "solve", "refine", "reround", "evaluate")


def try_mixture(name: str, folder: Path) -> dict[str, Any]:
    """The row of a family."""
    row: dict[str, Any] = {"family": name, "architecture": FAMILIES[name].architecture}
    config, import_paths = starter_config(name, FAMILIES[name], folder)
    config = dataclasses.replace(
        config,
        groups=_without_convolutions(config, folder),
        quantizer=dataclasses.replace(config.quantizer, group_size=GROUP_SIZE),
        refine=dataclasses.replace(config.refine, max_evaluations=8, link_points=3),
        evaluation=dataclasses.replace(config.evaluation, num_samples=2),
    )
    streamed = dataclasses.replace(config, model=dataclasses.replace(config.model, stream=True))
    runs = [RunDir(folder / place) for place in ("memory", "streamed")]
    row["memory"] = _stages(runs[0], config, import_paths, folder)
    row["difference"] = against_whole_passes(runs[0], folder / "again")
    row["streamed"] = _stages(runs[1], streamed, import_paths, folder)
    row["other"] = [] if "refused" in row["streamed"] else [stage for stage in STAGES if _other(stage, *runs)]
    row["other exports"] = [
        each
        for each in EXPORTS
        if "difference" in row["memory"].get(each, {}) and _files(runs[0], each) != _files(runs[1], each)
    ]
    return row


def _without_convolutions(config: Config, folder: Path) -> Any:
    names = json.dumps(_tensor_names(folder / "model"))
    found = tuple(pattern for pattern in EXCLUDED if pattern.strip("*") in names)
    return dataclasses.replace(config.groups, exclude=(*config.groups.exclude, *found))


def _tensor_names(directory: Path) -> list[str]:
    from hpcmpq.models.stored_weights import tensors_in

    return list(tensors_in(directory))


def _stages(run: RunDir, config: Config, import_paths: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """What came of the stages: `refused` where one says why not, or what each export is."""
    try:
        plan = prepare(config, run, import_paths)
        [unit] = plan.units
        said = Said()
        logging.getLogger("hpcmpq").addHandler(said)
        make_worker(run)(unit)
        found: dict[str, Any] = {"groups": len(plan.space.groups), "whole": said.whole}
        reduce(run)
        solve(run, dict(config.budgets), settings_of(plan, time_limit_s=2.0))
        refine(run, InProcess(), _unseen)
        found["rounded again"] = len(reround(run, None, None, _unseen)["reround"]["history"])
        evaluate(run, "torch")
    except (UserError, Infeasible) as error:
        return {"refused": str(error).replace(str(folder), "DIR")}
    return {**found, **{each: exported(run, each, folder) for each in EXPORTS}}


def _unseen(done: int, total: int) -> None:
    pass


class Said(logging.Handler):
    """Whether the package says that it runs whole passes."""

    whole = False

    def emit(self, record: logging.LogRecord) -> None:
        self.whole = self.whole or "whole forward pass" in record.getMessage()


def _other(stage: str, memory: RunDir, streamed: RunDir) -> bool:
    """Whether two runs have other results of a stage."""
    if stage == "calibrate":
        mine, theirs = (
            [read_shard(path).arrays for path in sorted(run.shards_path.iterdir())]
            for run in (memory, streamed)
        )
        return any(
            a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a)
            for a, b in zip(mine, theirs, strict=True)
        )
    keys = {
        "solve": ("assignment", "objective", "bound", "costs"),
        "refine": ("refine", "measured_loss", "portfolio"),
        "reround": ("reround",),
        "evaluate": ("loss", "kl", "perplexity"),
    }[stage]
    found = [
        read_json(run.evaluation_path if stage == "evaluate" else run.solution_path, "")
        for run in (memory, streamed)
    ]
    a, b = (without_keys({key: values.get(key) for key in keys}, PASSING.__contains__) for values in found)
    return bool(a != b)


def _files(run: RunDir, name: str) -> dict[str, Any]:
    """Tensors of an export, by name."""
    from safetensors import safe_open

    directory = run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name
    if name == "gguf":
        import gguf

        tensors = gguf.GGUFReader(directory / "model.gguf").tensors
        return {each.name: (int(each.tensor_type), each.data.tobytes()) for each in tensors}
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key).contiguous()
                found[key] = str(tensor.dtype), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def _work(name: str, path: Path) -> None:
    logger = logging.getLogger("hpcmpq")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        try:
            row = try_mixture(name, Path(folder))
        except Exception:
            row = {
                "family": name,
                "architecture": FAMILIES[name].architecture,
                "fault": traceback.format_exc(),
            }
    write_json(path, {**row, "seconds": time.process_time() - begun})


def row_of(name: str) -> dict[str, Any]:
    """The row of a family, from a process of its own."""
    path = KEPT / f"{name}.json"
    process = multiprocessing.get_context("fork").Process(target=_work, args=(name, path))
    process.start()
    process.join()
    if not path.exists():
        fault = f"the process ended with status {process.exitcode}"
        return {"family": name, "architecture": FAMILIES[name].architecture, "fault": fault}
    return dict(read_json(path, "the bench"))


def section(rows: list[dict[str, Any]]) -> str:
    """The Markdown of all rows; sentences are numbered, and stand below."""
    numbered, listed = numbered_sentences()

    lines = []
    for row in rows:
        name = row["family"]
        if "fault" in row:
            lines.append([name, f"fault {numbered(row['fault'].strip().split(chr(10))[-1], name)}"])
            continue
        memory, streamed = row["memory"], row["streamed"]
        if "refused" in memory:
            lines.append([name, f"refused {numbered(memory['refused'], name)}"])
            continue
        if "refused" in streamed:
            same = f"refused {numbered(streamed['refused'], name)}"
        else:
            same = ", ".join([*row["other"], *row["other exports"]]) or "nothing"
        engine = "whole passes" if memory["whole"] else "wavefront"
        exports = [export_cell(memory[each], name, numbered) for each in EXPORTS]
        lines.append([name, memory["groups"], engine, f"{row['difference']:.0e}", *exports, same])
    header = (
        "family",
        "groups",
        "engine",
        "largest difference from whole passes",
        *EXPORTS,
        "other when streamed",
    )
    return (
        "## Mixtures of experts through every stage\n\n"
        f"`python -m bench.mixtures`: {len(rows)} of {len(MIXTURES)} families of transformers with small random "
        "weights, as in the section on families, without searching convolutions: planned, calibrated, solved, refined, "
        "rounded again, evaluated by engine torch and exported, in memory and with `model: {stream: true}`. Numbers "
        "under an export: difference of its outputs from the run's model, as a share of their spread. The last column "
        "names what the streamed run has otherwise than the one in memory, bit for bit, among the shards of "
        "calibration, the solution, its refinement, what rounding again did, the evaluation, and the tensors of "
        "verified exports. "
        f"{sum(row.get('seconds', 0) for row in rows):.0f} CPU seconds.\n\n"
        f"{table(header, lines)}\n\n" + listed()
    )


def main() -> None:
    """Parse, try, print and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("families", nargs="*", choices=[*MIXTURES, []], help="by default all")
    parser.add_argument("--done", action="store_true", help="only write the section of those that are done")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.families or MIXTURES:
        path = KEPT / f"{name}.json"
        if arguments.families:
            path.unlink(missing_ok=True)
        if path.exists():
            rows.append(dict(read_json(path, "the bench")))
        elif not arguments.done:
            rows.append(row_of(name))
            print(json.dumps(rows[-1]), flush=True)
    text = section(rows)
    print(text)
    if not arguments.families:
        write_section("mixtures", text)


if __name__ == "__main__":
    main()
