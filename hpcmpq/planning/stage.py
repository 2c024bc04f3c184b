"""The plan stage: look at the model and the data, write `plan.json`."""

import dataclasses
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hpcmpq.calibrate.mended import FAULTS, check_mended, mended_facts
from hpcmpq.errors import DamagedFile, PlanMismatch, UserError
from hpcmpq.export.holdable import ExportSubject, check_exports
from hpcmpq.models.data.kept_samples import ROUNDING, ROUNDING_NAME, keep_samples
from hpcmpq.models.data.splits import Splits, load_splits
from hpcmpq.models.dequantized import unpacked
from hpcmpq.models.finite import check_finite_outputs
from hpcmpq.models.gguf_config import check_describable
from hpcmpq.models.original_marks import check_same_outputs, check_same_settings, original_marks
from hpcmpq.models.outputs import forward
from hpcmpq.models.stored_dtype import check_scales, stored_dtype
from hpcmpq.models.weight_digests import weight_marks
from hpcmpq.objective import check_labels
from hpcmpq.plan import CHOICES, WIDE, Plan, content_hash, plan_to_json
from hpcmpq.planning.balanced_samples import check_balance, choose_balanced
from hpcmpq.planning.cost_estimate import CostEstimate, estimate_cost, keep_cost
from hpcmpq.planning.facts import (
    TARGETS,
    check_same_facts,
    check_same_options,
    default_facts,
    find_environment,
    find_facts,
)
from hpcmpq.planning.original import Original, check_method, find_groups, load_original, say_of_experts
from hpcmpq.planning.peak_parts import ahead_bytes
from hpcmpq.planning.rounded_activations import check_activations, keep_ranges
from hpcmpq.planning.search import search_space, units_of
from hpcmpq.quantized.activations import needs_ranges
from hpcmpq.quantized.source_codes import SOURCE_CODES
from hpcmpq.rounding.options import check_rounding
from hpcmpq.sensitivity import find_method
from hpcmpq.settings import Config
from hpcmpq.solve.feasibility import check_solvable
from hpcmpq.store.json_files import placed_artefact, write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.targets import Target, find_target

log = logging.getLogger(__name__)


def prepare(config: Config, run: RunDir, import_paths: tuple[str, ...]) -> Plan:
    """Write `plan.json`, or check that the one there plans the same measurement.

    Raises:
        PlanMismatch: If the run directory was planned with another configuration.
        UserError: If the model, the data or a pattern is wrong.
        Infeasible: If no assignment meets the budgets.
    """
    check_method(config)
    config = dataclasses.replace(config, model=unpacked(config.model, run.original_path))
    target = find_target(config.target) if config.target else None
    if target:
        check_describable(target, Path(str(config.model.path)))
    original = load_original(config, import_paths)
    check_balance(config, original.model)
    planned = _planned_before(run)
    config = _with_samples_as_before(config, planned, run)
    config = _with_scales(config, target, planned)
    splits = load_splits(config, import_paths)
    found = find_groups(original, splits.calibration, target)
    groups = found.groups
    say_of_experts(config, found.chooses)
    space = search_space(config, groups, target)
    check_exports(ExportSubject(config, space, original.model), planned is not None)
    weights = original.fingerprint()
    first = splits.calibration[:1].to(original.device)
    with torch.no_grad():
        outputs_NTV = forward(original.model, first.inputs)
    check_finite_outputs(outputs_NTV)
    _check_objective(config, splits, outputs_NTV)
    check_activations(config, original.model, space)
    check_rounding(original.model, space, config.quantizer)
    if target and (target.export == "gguf" or config.quantizer.scales == "float16"):
        check_scales(original.model, space, torch.float16)
    splits, balanced = choose_balanced(original, splits, groups, planned)
    facts = find_facts(config, weights, splits, space, outputs_NTV.shape[-1], found.chooses)
    facts |= mended_facts(config, original.model, space, first.inputs)
    if planned is not None:
        check_mended(planned.facts, facts, str(run.path))
        newer = (TARGETS, ROUNDING, CHOICES, SOURCE_CODES, WIDE)
        mended = {name: planned.facts.get(name) for name in FAULTS}  # settings of nothing
        unknown = {name: facts[name] for name in newer if name in facts}
        check_same_facts(planned.facts, facts | mended, str(run.path), default_facts() | unknown)
        check_same_options(planned, space, config, str(run.path))
        check_same_settings(original.model, planned)
        check_same_outputs(planned, first.inputs, outputs_NTV)
        # Word for word, since what is measured already is named after them.
        facts, fingerprint, units = planned.facts, planned.fingerprint, planned.units
    else:
        fingerprint = content_hash(facts)
        units = units_of(config, fingerprint, len(groups), len(splits.calibration))
    plan = Plan(
        config=config,
        space=space,
        units=units,
        facts=facts, fingerprint=fingerprint, import_paths=import_paths,
        fixed_bytes=found.fixed_bytes,
        active_fixed_bytes=found.active_fixed_bytes,
        tokens_per_sample=found.tokens_per_sample,
        original_bits=found.original_bits,
        environment=find_environment(),
        weights=weight_marks(original.model, config.model.dtype),
        original=(planned.original if planned is not None else {})
        or original_marks(original.model, first.inputs, outputs_NTV),
        balanced=balanced,
    )  # fmt: skip
    check_solvable(plan)
    if not config.budgets:
        log.warning("budgets is empty, so nothing keeps the solution from the largest formats; name a budget")
    _keep(run, plan, config, original, splits)
    return plan


def _keep(run: RunDir, plan: Plan, config: Config, original: Original, splits: Splits) -> None:
    """Write the plan, what has to be measured once before it can be used, and what calibration will cost.

    The plan before other files: whoever is refused there, or while costs are estimated, has touched none of the one
    that stays.
    """
    size, calibration = config.calibration.samples_per_pass, splits.calibration
    cost = _cost(plan, config, original, splits)
    _place(run, plan)
    batches = (batch.to(original.device) for batch in calibration.passes(size))
    if needs_ranges(plan.space, config.quantizer):
        keep_ranges(run, plan, config, original.model, batches)
    keep_samples(run, calibration)
    if splits.rounding is not None and ROUNDING in plan.facts:
        keep_samples(run, splits.rounding, ROUNDING_NAME)
    keep_cost(run, cost, plan.fingerprint)


def _cost(plan: Plan, config: Config, original: Original, splits: Splits) -> CostEstimate | None:
    """What calibration will cost; None of methods that take derivatives."""
    if not find_method(config.sensitivity.method).forward_only:
        return None
    calibration = splits.calibration
    batch = calibration[: config.calibration.samples_per_pass].to(original.device)
    fitted = splits.rounding if splits.rounding is not None and ROUNDING in plan.facts else calibration
    sizes = original.block_bytes
    ahead = 0 if sizes is None else ahead_bytes(config, sizes[1])
    return estimate_cost(
        original.model, config, plan.space, plan.units, batch, original.block_bytes, len(fitted),
        splits.pool_bytes, CHOICES in plan.facts, ahead, original.streamed,
    )  # fmt: skip


def _place(run: RunDir, plan: Plan) -> None:
    """Write the plan in the place of none, a damaged one or one of the same measurement; of two at once one stays.

    Raises:
        PlanMismatch: If another process plans another measurement.
    """
    made_by = f"hpcmpq plan CONFIG --run-dir {run.path}"
    if not run.plan_path.exists():
        placed_artefact(run.plan_path, plan_to_json(plan), made_by)
    elif _planned_before(run) is None:
        claim = run.file("plan.claim.json")
        if _claimed(claim, plan.fingerprint, made_by) != plan.fingerprint:
            raise PlanMismatch(
                f"another process writes a plan of another measurement in the place of the damaged {run.plan_path}; "
                f"use a new run directory, or remove {claim} if that process has ended"
            )
        try:
            _check_alone(run, plan)  # it may be another's by now
            write_artefact(run.plan_path, plan_to_json(plan))
        finally:
            claim.unlink(missing_ok=True)
    _check_alone(run, plan)
    write_artefact(run.plan_path, plan_to_json(plan))


def _claimed(claim: Path, fingerprint: str, made_by: str) -> Any:
    """The plan that may be written; of one damaged claim, which no process that lives has made, ours."""
    values = {"fingerprint": fingerprint}
    with suppress(DamagedFile):
        return placed_artefact(claim, values, made_by)["fingerprint"]
    claim.unlink(missing_ok=True)  # two at once: one stays
    return placed_artefact(claim, values, made_by)["fingerprint"]


def _check_alone(run: RunDir, plan: Plan) -> None:
    """Refuse to go on where another process has planned another measurement meanwhile.

    Raises:
        PlanMismatch: If one has.
    """
    there = _planned_before(run)
    if there is not None and there.fingerprint != plan.fingerprint:
        raise PlanMismatch(
            f"another process has planned another measurement in {run.path} meanwhile; use a new run directory"
        )


def _check_objective(config: Config, splits: Splits, outputs_NTV: torch.Tensor) -> None:
    """Refuse outputs or labels that the objective, or the losses of labels, can make nothing of.

    Args:
        config: Of the run.
        splits: Its samples.
        outputs_NTV: Of the first.
    """
    num_positions, num_outputs = outputs_NTV.shape[1:]
    if num_outputs == 1 and config.objective != "mse":
        raise UserError(
            f"the model has one output, of which objective {config.objective} is always 0; set objective: mse"
        )
    first = splits.calibration.targets
    if first is not None and first[:1].numel() == num_positions:
        for part in (splits.calibration, splits.held_out, splits.evaluation):
            if part.labelled and part.targets is not None:
                check_labels(part.targets, num_outputs)


def _planned_before(run: RunDir) -> Plan | None:
    """The plan that is there; None where there is none, or a damaged one, which is then written anew."""
    if not run.plan_path.exists():
        return None
    try:
        return read_plan(run, with_times=False, screened=False)
    except DamagedFile:
        log.warning("%s is damaged; planning anew", run.plan_path)
        return None


def _with_samples_as_before(config: Config, planned: Plan | None, run: RunDir) -> Config:
    """The config; without special tokens for a run that was planned before they were: it keeps its samples."""
    before = planned is not None and planned.config.calibration.special_tokens is None
    if not before or not config.calibration.special_tokens:
        return config
    log.warning(
        "%s was planned before there was calibration.special_tokens: windows of text stay without the tokenizer's "
        "special tokens there; for windows that have them use a new run directory",
        run.path,
    )
    calibration = dataclasses.replace(config.calibration, special_tokens=None)
    return dataclasses.replace(config, calibration=calibration)


def _with_scales(config: Config, target: Target | None, planned: Plan | None) -> Config:
    """The config with scales as the target's file, or its engine, stores them; of a run planned before, as they were.

    Engines give scales the dtype of the model that they run, which is float16 where its config says so.
    """
    if target is None or (target.export != "gguf" and stored_dtype(config.model) != torch.float16):
        return config
    if planned is not None and planned.config.quantizer.scales != "float16":
        return config
    return dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, scales="float16"))
