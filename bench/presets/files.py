"""Files of llama.cpp's presets, and of mixes no larger than they are."""

import dataclasses
import shutil
from pathlib import Path

import gguf

from bench.engines.dequantized_gguf import write_dequantized
from bench.environments import answer
from bench.peers.calibration import Calibrated
from bench.peers.refined import share
from bench.results import ROOT
from bench.workload import CACHE, IMPORT_PATHS
from hpcmpq.executors.in_process import InProcess
from hpcmpq.export import export
from hpcmpq.plan import content_hash
from hpcmpq.planning.stage import prepare
from hpcmpq.rounding.option_units import round_options
from hpcmpq.rounding.stage import reround
from hpcmpq.settings import Config, Quantizer, to_values
from hpcmpq.solve.formulate import cost_values
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

SOURCE = ROOT / "configs" / "smollm2" / "smollm2-135m-instruct.gguf"

PRESETS = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")

MENU = ("q2_k", "q3_k", "iq4_xs", "iq4_nl", "int5", "q5_k", "q5_1", "q6_k", "int8")
"""Without int4 and q4_k, which iq4_nl is as large as, and q4_1, which loses as much in more bits. Layers with 576
inputs take those in blocks of 32 alone."""

SOLVE_S = 10.0

TIED = (("q_proj", "k_proj"), ("gate_proj", "up_proj"))


def mix_config(config: Config, num_samples: int) -> Config:
    """What is calibrated: embeddings and head too, with compensated rounding."""
    return dataclasses.replace(
        config,
        target="llama_cpp",
        formats=MENU,
        quantizer=Quantizer(group_size=32, rounding="gptq"),
        groups=dataclasses.replace(config.groups, tie=TIED, include=("*",)),
        calibration=dataclasses.replace(config.calibration, num_samples=num_samples, held_out=8),
        budgets={},
    )


SAME_SIZE = {
    "Q3_K": "q3_k", "Q4_0": "iq4_nl", "Q4_K": "iq4_nl", "Q5_0": "int5", "Q5_1": "q5_1", "Q5_K": "q5_k",
    "Q6_K": "q6_k", "Q8_0": "int8",
}  # fmt: skip
"""{type of a preset's tensor: the format of as many bytes}."""


def rounded_run(name: str, config: Config) -> RunDir:
    """A planned run with the codes of all its options, which need not be calibrated."""
    run = RunDir(CACHE / "peers" / f"{name}-{content_hash(to_values(config))[:8]}")
    prepare(config, run, IMPORT_PATHS)
    round_options(run, InProcess(), lambda *_: None)
    return run


def same_types_file(rounded: RunDir, preset: Path) -> Path:
    """The export with a format for every tensor that is as large as the preset's type, and our codes."""
    run, plan = _copy(rounded, f"types-{preset.stem}"), read_plan(rounded)
    path = run.path / "exports" / "gguf" / "model.gguf"
    if not path.exists():
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(plan.space.groups))  # more than blocks
        types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(preset).tensors}
        assignment = {}
        for group in plan.space.groups:
            own = {types[str(names.get_name(m.parameter, (".weight",)))] for m in group.members}
            (assignment[group.name],) = {SAME_SIZE[each] for each in own}
        costs = cost_values(plan, plan.space.choice(assignment))
        write_json(run.solution_path, {"assignment": assignment, "costs": costs})
        print(export(run, "gguf", verify=False), flush=True)  # the judge reads it
    return path


def unquantized_file(config: Config, folder: Path) -> Path:
    """The original as GGUF in float32, which llama.cpp quantizes, without a vocabulary, as our exports are."""
    path = folder / "float32.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / "unfinished.gguf"
        write_dequantized(SOURCE, Path(str(config.model.path)), unfinished, vocabulary=False)
        unfinished.rename(path)
    return path


def preset_files(python: Path, unquantized: Path, folder: Path) -> dict[str, Path]:
    """{preset: its file}, and what types it has in `types.json` beside them."""
    files = {preset: folder / f"{preset}.gguf" for preset in PRESETS}
    if not (folder / "types.json").exists():
        job = {"input": str(unquantized), "outputs": {preset: str(path) for preset, path in files.items()}}
        program = Path(__file__).parents[1] / "engines" / "run_quantize.py"
        write_json(folder / "types.json", answer(python, program, folder, job))
    return files


def mix_file(made: Calibrated, preset: str, num_bytes: int, rounds_again: bool) -> Path:
    """The export of a mix whose file is no larger."""
    run = _copy(made.run, f"{preset}-again" if rounds_again else preset)
    path = run.path / "exports" / "gguf" / "model.gguf"
    if not path.exists():
        solve(run, {"size_bytes": float(num_bytes)}, settings_of(made.plan, time_limit_s=SOLVE_S))
        if rounds_again:
            print(reround(run, None, None, lambda *_: None)["reround"]["history"][-1], flush=True)
        print(export(run, "gguf", verify=False), flush=True)  # the judge reads it
    return path


def types_of(folder: Path) -> dict[str, dict[str, int]]:
    """{preset: {type: tensors}}."""
    return dict(read_json(folder / "types.json", "python -m bench.presets"))


def _copy(made: RunDir, name: str) -> RunDir:
    """A run directory with what another has in common with it."""
    run = RunDir(made.path / "mixes" / name)
    share(made, run)
    if not run.plan_path.exists():
        shutil.copy(made.plan_path, run.plan_path)
    return run
