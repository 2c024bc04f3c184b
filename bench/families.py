"""Every stage on small random models of many families of transformers: what the package makes of what it never saw.

    python -m bench.families                  all that are not done yet; writes section `families` of bench/RESULTS.md
    python -m bench.families Mamba GPT2       these, printed only
    python -m bench.families --again          all anew
    python -m bench.families --done           writes the section from those that are done, tries none

Each family: `init` and plan, one work unit by the engine that the package picks and by whole passes, both compared,
solve, and every export, which is read back. A family runs in a process of its own, so that one that crashes ends
nothing else, and its row is kept in runs/bench/families.
"""

import argparse
import dataclasses
import json
import logging
import multiprocessing
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.family_models import Family, make_inputs, make_model
from bench.family_recipes import FAMILIES
from bench.results import ROOT, table, write_section
from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.config import parse_config, read_config
from hpcmpq.errors import Infeasible, UserError
from hpcmpq.export import EXPORTERS, export
from hpcmpq.models.load import quiet_transformers
from hpcmpq.planning.stage import prepare
from hpcmpq.planning.starter import write_starter
from hpcmpq.settings import Config
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.of_solution import VERIFICATION
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import read_shard

KEPT = ROOT / "runs" / "bench" / "families"

SAMPLES, TOKENS = 12, 12
FORMATS = ("int4", "int8")

ONNX = ("Llama", "Qwen2", "Gemma2", "Phi", "GPT2", "Mixtral", "Mamba")
"""Families whose `onnx` export is tried, since torch takes many times as long for it as everything else takes."""

BUDGET = {"weight_bits": 6.0}

ROUNDING = 1e-3
"""Differences of the two engines above this share of the largest value are no rounding in float32."""

IMPORTED = (
    *("onnx", "onnxruntime", "onnxscript", "torch.onnx", "torch.export", "torch._dynamo", "gguf", "h5py"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto"),
    *(
        "transformers.integrations",
        "transformers.modeling_gguf_pytorch_utils",
        "compressed_tensors",
        "accelerate",
    ),
    *(
        "ortools.sat.python.cp_model",
        "hpcmpq.export.verification",
        "hpcmpq.export.gguf",
        "hpcmpq.models.streaming",
    ),
)
"""Once, before the first process is forked."""

FACTORY = """
import torch
from bench.family_models import make_inputs, make_model
from bench.family_recipes import FAMILIES


def model():
    return make_model(FAMILIES[{name!r}])


def data():
    return make_inputs(FAMILIES[{name!r}], {samples}, {tokens})
"""


class Said(logging.Handler):
    """Keeps what the package says."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def try_family(name: str, folder: Path, said: Said, onnx: bool) -> dict[str, Any]:
    """The row of a family, by column; `refused` where `init` or plan says in one sentence why not."""
    family = FAMILIES[name]
    row: dict[str, Any] = {"family": name, "architecture": family.architecture}
    try:
        config, import_paths = starter_config(name, family, folder)
        run = RunDir(folder / "run")
        plan = prepare(config, run, import_paths)
    except (UserError, Infeasible) as error:
        return {**row, "refused": str(error).replace(str(folder), "DIR")}
    row["groups"] = len(plan.space.groups)
    [unit] = plan.units
    said.lines.clear()
    make_worker(run)(unit)
    whole = [line for line in said.lines if "whole forward pass" in line]
    row["engine"] = "whole passes" if whole else "wavefront"
    row["why whole"] = whole[0] if whole else None
    row["difference"] = against_whole_passes(run, folder / "again")
    reduce(run)
    solve(run, BUDGET, settings_of(plan, time_limit_s=2.0))
    row["exports"] = {
        each: exported(run, each, folder) for each in EXPORTERS if each != "onnx" or onnx or name in ONNX
    }
    return row


def starter_config(name: str, family: Family, folder: Path) -> tuple[Config, tuple[str, ...]]:
    """What `init` writes for the model, made small; for a model that has no kind, by a factory."""
    small: dict[str, Any] = {"formats": FORMATS, "budgets": BUDGET}
    if family.factory:
        module = f"family_{re.sub(r'[^a-z0-9]', '_', name.lower())}"
        source = FACTORY.format(name=name, samples=SAMPLES, tokens=TOKENS)
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
        calibration = {"data": f"{module}:data", "num_samples": 4, "held_out": 2, "samples_per_unit": 4}
        values = {
            "model": {"factory": f"{module}:model"},
            "calibration": calibration,
            "quantizer": {"group_size": 32},
        }
        return parse_config({**values, **small, "formats": list(FORMATS)}), (str(folder),)
    with quiet_transformers():
        make_model(family).save_pretrained(folder / "model")  # type: ignore[operator]
    [inputs] = make_inputs(family, SAMPLES, TOKENS).values()
    np.save(folder / "data.npy", inputs.numpy())
    write_starter(folder / "model", folder / "config.yaml", str(folder / "data.npy"))
    config = read_config(folder / "config.yaml")
    calibration = dataclasses.replace(config.calibration, samples_per_unit=config.calibration.num_samples)
    return dataclasses.replace(config, calibration=calibration, **small), ()


def against_whole_passes(run: RunDir, again: Path) -> float:
    """Largest difference of the unit's arrays from those of whole passes, as a share of each array's largest value."""
    values = json.loads(run.plan_path.read_text(encoding="utf-8"))
    values["config"]["sensitivity"]["engine"] = "whole"
    del values["digest"]
    other = RunDir(again)
    write_json(other.plan_path, values)
    for path in run.path.iterdir():
        if path.is_file() and path != run.plan_path:
            (again / path.name).write_bytes(path.read_bytes())
    [unit] = read_plan(run).units
    make_worker(other)(unit)
    mine, theirs = (read_shard(each.shard_path(unit.id)).arrays for each in (run, other))
    assert mine.keys() == theirs.keys()
    return max(
        float(np.abs(mine[key] - theirs[key]).max() / (np.abs(theirs[key]).max() or 1.0))
        for key in mine
        if mine[key].dtype.kind == "f"
    )


def exported(run: RunDir, name: str, folder: Path) -> dict[str, Any]:
    """What came of an export: `difference` and `reader`, or why it was `refused` or is `unread`."""
    try:
        export(run, name)
    except UserError as error:
        return {"refused": str(error).replace(str(folder), "DIR")}
    except Exception:
        return {"fault": traceback.format_exc()}
    directory = run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name
    found = read_json(directory / VERIFICATION, "hpcmpq export")
    if not found["verified"]:
        return {"unread": found["reason"]}
    return {key: found[key] for key in ("difference", "reader") if key in found}


def _work(name: str, path: Path, onnx: bool) -> None:
    """Write a family's row."""
    said = Said()
    logger = logging.getLogger("hpcmpq")
    logger.setLevel(logging.INFO)
    logger.addHandler(said)
    logger.propagate = False
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        try:
            row = try_family(name, Path(folder), said, onnx)
        except Exception:
            row = {
                "family": name,
                "architecture": FAMILIES[name].architecture,
                "fault": traceback.format_exc(),
            }
    write_json(path, {**row, "seconds": time.process_time() - begun})


def rows_of(names: Iterable[str], again: bool, onnx: bool) -> list[dict[str, Any]]:
    """The rows of families, those that are kept from there."""
    names = list(names)
    for module in IMPORTED if again or not all((KEPT / f"{name}.json").exists() for name in names) else ():
        import_module(module)
    context = multiprocessing.get_context("fork")
    rows = []
    for name in names:
        path = KEPT / f"{name}.json"
        if again or not path.exists():
            path.unlink(missing_ok=True)
            process = context.Process(target=_work, args=(name, path, onnx))
            process.start()
            process.join()
            if not path.exists():
                fault = f"the process ended with status {process.exitcode}"
                rows.append({"family": name, "architecture": FAMILIES[name].architecture, "fault": fault})
                continue
        rows.append(read_json(path, "the bench"))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def faults(row: dict[str, Any]) -> list[str]:
    """What is a bug of the package in a row."""
    found = [row["fault"]] if "fault" in row else []
    if row.get("difference", 0.0) > ROUNDING:
        found.append(f"the engines differ by {row['difference']:.1e}")
    for name, outcome in row.get("exports", {}).items():
        if "fault" in outcome or "nothing of it is kept" in outcome.get("refused", ""):
            found.append(f"{name}: {outcome.get('fault') or outcome['refused']}")
    return found


def section(rows: list[dict[str, Any]]) -> str:
    """The Markdown of all rows; sentences are numbered, and stand below."""
    numbered, listed = numbered_sentences()

    lines = []
    for row in rows:
        name = row["family"]
        start = [name, row["architecture"], row.get("groups", "")]
        if "groups" not in row:
            kind = "refused" if "refused" in row else "fault"
            why = f"{kind} {numbered(row[kind].strip().split(chr(10))[-1], name)}"
            lines.append([*start, why, "", *[""] * len(EXPORTERS)])
            continue
        made = row["exports"]
        exports = [export_cell(made[each], name, numbered) if each in made else "" for each in EXPORTERS]
        lines.append([*start, row["engine"], f"{row['difference']:.0e}", *exports])
    header = ["family", "class", "groups", "engine", "largest difference from whole passes", *EXPORTERS]
    wavefront = sum(row.get("engine") == "wavefront" for row in rows)
    verified = sum("difference" in outcome for row in rows for outcome in row.get("exports", {}).values())
    return (
        f"## Families of models\n\n`python -m bench.families`: {len(rows)} families of transformers with small random "
        "weights, each planned from the config that `hpcmpq init` writes for it (a factory for models of pairs), with "
        f"formats {' and '.join(FORMATS)}, a work unit measured in float32 by the engine that is picked and by whole "
        "passes, solved, exported and read back. Numbers under an export: difference of its outputs from the run's "
        f"model, as a share of their spread; `onnx` was tried on "
        f"{len(ONNX)} families. {wavefront} run as a wavefront, {verified} exports are verified, "
        f"{sum(map(len, map(faults, rows)))} faults; {sum(row.get('seconds', 0) for row in rows):.0f} CPU seconds.\n\n"
        f"{table(header, lines)}\n\n" + listed()
    )


def export_cell(outcome: dict[str, Any], family: str, numbered: Callable[[str, str], str]) -> str:
    """How an export of a family went: the reader's largest difference, or the number of the last line of a sentence."""
    if "difference" in outcome:
        return f"{outcome['difference']:.0e}"
    if "reader" in outcome:
        return "yes"
    kind = next(key for key in ("refused", "unread", "fault") if key in outcome)
    return f"{kind} {numbered(outcome[kind].strip().split(chr(10))[-1], family)}"


def numbered_sentences() -> tuple[Callable[[str, str], str], Callable[[], str]]:
    """A function from a sentence and its family to the number of such sentences, and one to the list of all."""
    sentences: dict[str, list[str]] = {}

    def numbered(text: str, family: str) -> str:
        key = _without_names(text)
        known = [each for each in sentences if _without_names(each) == key] or [text]
        sentences.setdefault(known[0], []).append(family)
        return f"({list(sentences).index(known[0]) + 1})"

    def listed() -> str:
        return "\n".join(
            f"{number}. {text.replace('|', chr(92) + '|')} ({_listed(names)})"
            for number, (text, names) in enumerate(sentences.items(), 1)
        )

    return numbered, listed


def _without_names(text: str) -> str:
    """A sentence without what differs from model to model."""
    return re.sub(r"\b[A-Z]\w*[a-z]\w*\b|\b\w+(\.\w+)+\b|'[^']*'|\d[\d,.]*", "", text)


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def main() -> None:
    """Parse, try, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], help="by default all")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--done", action="store_true", help="only write the section of those that are done")
    parser.add_argument("--onnx", action="store_true", help="try the onnx export on all that are given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    names = arguments.families or list(FAMILIES)
    if arguments.done:
        names = [name for name in names if (KEPT / f"{name}.json").exists()]
    again = not arguments.done and (arguments.again or bool(arguments.families))
    rows = rows_of(names, again, arguments.onnx)
    for row in rows:
        for fault in faults(row):
            print(f"{row['family']}: {fault}")
    if not arguments.families:
        write_section("families", section(rows))


if __name__ == "__main__":
    main()
