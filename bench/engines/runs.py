"""Solved runs for the engines: every group takes the next of a case's formats, so that each layer kind meets each."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.results import ROOT
from bench.workload import CACHE, IMPORT_PATHS
from hpcmpq.config import read_config
from hpcmpq.executors.in_process import InProcess
from hpcmpq.export import export
from hpcmpq.formats import Quantizer
from hpcmpq.models.data.splits import load_splits
from hpcmpq.plan import Plan, content_hash
from hpcmpq.planning.stage import prepare
from hpcmpq.rounding.option_units import round_options
from hpcmpq.settings import SensitivityConfig
from hpcmpq.solve.formulate import cost_values
from hpcmpq.store.json_files import write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that vLLM's `LlamaForCausalLM` joins (`packed_modules_mapping`)."""


@dataclass(frozen=True)
class Case:
    """One export for one engine.

    Attributes:
        model: Name of a config in `configs/`.
        target: Name of an engine in `hpcmpq.targets.TARGETS`.
        exporter: Name in `hpcmpq.export.EXPORTERS`.
        formats: What its groups take by turns.
        group_size: Columns that share a scale.
        symmetric: Whether integers have no zero points.
    """

    model: str
    target: str
    exporter: str
    formats: tuple[str, ...]
    group_size: int = 64
    symmetric: bool = True


@dataclass(frozen=True)
class Exported:
    """A case's files.

    Attributes:
        plan: Its plan.
        assignment: {group name: format name}.
        directory: What the engine loads.
        original: The model whose weights were rounded.
        checkpoint: The same weights, dequantized, as transformers reads them.
        size_bytes: What the plan says that the weight file takes.
        samples_NT: Token ids of the evaluation text.
    """

    plan: Plan
    assignment: dict[str, str]
    directory: Path
    original: Path
    checkpoint: Path
    size_bytes: float
    samples_NT: Tensor


def exported(case: Case, num_samples: int, num_tokens: int) -> Exported:
    """Plan, assign by turns and export a case, whatever of it is missing."""
    read = read_config(ROOT / "configs" / f"{case.model}.yaml")
    config = dataclasses.replace(
        read,
        target=case.target,
        formats=case.formats,
        quantizer=Quantizer(group_size=case.group_size, symmetric=case.symmetric, range="mse"),
        calibration=dataclasses.replace(
            read.calibration, num_samples=4, held_out=4, rounding_samples=None, sequence_length=num_tokens
        ),
        evaluation=dataclasses.replace(read.evaluation, num_samples=num_samples),
        sensitivity=SensitivityConfig("secant"),
        budgets={},
    )
    key = content_hash([dataclasses.asdict(case), num_samples, num_tokens])[:8]
    run = RunDir(CACHE / "engines" / f"{case.model}-{case.exporter}-{key}")
    if run.solution_path.exists():
        plan = read_plan(run)
    else:
        plan = prepare(config, run, IMPORT_PATHS)
        if plan.config.quantizer.stores_codes:
            round_options(run, InProcess(), lambda *_: None)
    assignment = by_turns(plan)
    costs = cost_values(plan, plan.space.choice(assignment))
    if not run.solution_path.exists():
        write_json(run.solution_path, {"assignment": assignment, "costs": costs})
    places = {"fake_quantized": run.checkpoint_path, case.exporter: run.path / "exports" / case.exporter}
    for name, place in places.items():
        if not place.exists():
            print(export(run, name), flush=True)
    return Exported(
        plan,
        assignment,
        places[case.exporter],
        kept if (kept := run.path / "original").exists() else Path(config.model.path),
        run.checkpoint_path,
        costs["size_bytes"],
        load_splits(plan.config, IMPORT_PATHS).evaluation.inputs["input_ids"],
    )


def by_turns(plan: Plan) -> dict[str, str]:
    """{group name: format name}: the formats by turns; every kind of layer begins with another."""
    space = plan.space
    kinds: dict[str, int] = {}
    taken = {}
    for group, names in zip(space.groups, space.formats, strict=True):
        kind = group.members[0].parameter.split(".")[-2]
        turn = kinds[kind] = kinds.get(kind, len(kinds) - 1) + 1
        taken[group.name] = names[turn % len(names)]
    return taken


@torch.no_grad()
def logits(checkpoint: Path, samples_NT: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, T, V] float32: what transformers computes in some dtype."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
    return torch.cat([model(row).logits.float() for row in samples_NT.split(1)])


def log_probabilities(checkpoint: Path, samples_NT: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, T, V] float32: of every token, from `logits`."""
    return torch.log_softmax(logits(checkpoint, samples_NT, dtype), -1)


def linear_layers(exported: Exported) -> dict[str, str]:
    """{name of a linear layer as vLLM builds a Llama: format name}; layers that it joins have one name."""
    whole = {part: name for name, parts in FUSED.items() for part in parts}
    found = {}
    for group in exported.plan.space.groups:
        for member in group.members:
            stem, _, last = member.parameter.removesuffix(".weight").rpartition(".")
            found[f"{stem}.{whole.get(last, last)}"] = exported.assignment[group.name]
    return found
