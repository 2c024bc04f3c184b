"""README.md of an export: what was quantized, at which budget, in which formats, and how close it stays."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmpq import __version__
from hpcmpq.plan import Plan
from hpcmpq.targets.kv_cache import CACHE_DTYPES, serve_options
from hpcmpq.targets.llama_cpp import VOCABULARY

ORIGINAL = "README-original.md"
"""The original's own card, where it has one."""

CARDS = ("README.md", ORIGINAL)
"""Files that people change."""

SERVED_BY = {
    "compressed_tensors": "vllm serve {}",
    "modelopt": "trtllm-serve {}",
    "mlx": "mlx_lm.server --model {}",
    "gguf": "llama-server -m {}/model.gguf",
}
"""{export: the command that serves a directory}."""

SERVED_IF_PLANNED = {"compressed_tensors": "vllm", "modelopt": "tensorrt_llm"}
"""{export: the target of runs whose files its server takes}: it wants layers that it fuses in one format."""


def serve_command(export: str, directory: Path, plan: Plan, assignment: Mapping[str, str]) -> str | None:
    """What to type next, or None where no server takes such an export of this run."""
    if export not in SERVED_BY or SERVED_IF_PLANNED.get(export, plan.config.target) != plan.config.target:
        return None
    if export == "gguf" and not (Path(str(plan.config.model.path)) / VOCABULARY).exists():
        return None
    return SERVED_BY[export].format(shlex.quote(str(directory))) + serve_options(
        plan.space.groups, assignment
    )


def write_card(directory: Path, plan: Plan, solution: Mapping[str, Any], export: str) -> None:
    """Write README.md; the original's, which was copied, keeps its text under another name."""
    place = directory / "README.md"
    if place.exists():
        place.rename(directory / ORIGINAL)
    place.write_text(card(plan, solution, export, (directory / ORIGINAL).exists()), encoding="utf-8")


def card(plan: Plan, solution: Mapping[str, Any], export: str, has_original: bool = False) -> str:
    """The text of the card.

    Args:
        plan: Of the run.
        solution: `solution.json`; losses that it lacks are not mentioned.
        export: Name of the export.
        has_original: Whether the original's card lies beside it.
    """
    model = plan.config.model
    name = Path(model.path).resolve().name if model.path is not None else str(model.factory)
    text = [
        f"# {name}, mixed precision",
        "",
        f"hpcmpq {__version__} chose a number format for every layer of `{name}`"
        f" and wrote this `{export}` export"
        + (f"; the original's own card is [{ORIGINAL}]({ORIGINAL})." if has_original else "."),
        "",
    ]
    if (command := serve_command(export, Path("."), plan, solution["assignment"])) is not None:
        text += [f"    {command}", ""]
    text += [
        "| Budget | Limit | Reached |",
        "|---|---|---|",
        *(
            f"| {each} | {limit:.6g} | {solution['costs'][each]:.6g} |"
            for each, limit in solution.get("budgets", {}).items()
        ),
        "",
        *_losses(plan, solution),
        "## Formats",
        "",
        "| Format | Layers | Share of the searched weights |",
        "|---|---|---|",
        *_formats(plan, solution["assignment"]),
        "",
        "The format of every layer is in `assignment.json`. The run that made it:",
        "",
        f"    hpcmpq export RUN --format {export}    # plan {plan.fingerprint[:16]}",
        "",
    ]
    return "\n".join(text)


def _losses(plan: Plan, solution: Mapping[str, Any]) -> list[str]:
    """A sentence with the measured loss and its 95 % interval, or with the predicted one."""
    objective = plan.config.objective
    for key, samples in (("evaluated_loss", "evaluation"), ("measured_loss", "held-out")):
        if key in solution and solution.get(f"{key}_stderr") is not None:
            width = 1.96 * solution[f"{key}_stderr"]
            return [
                f"Measured `{objective}` from the original on {samples} samples: {solution[key]:.4g} ± {width:.2g} "
                "(95 % interval).",
                "",
            ]
    if "predicted_loss" in solution:
        return [f"Predicted `{objective}`: {solution['predicted_loss']:.4g}; not measured.", ""]
    return []


def _formats(plan: Plan, assignment: Mapping[str, str]) -> list[str]:
    """A row for each format in use, the one of most weights first."""
    numel: dict[str, int] = {}
    layers: dict[str, int] = {}
    caches: list[str] = []
    for group in plan.space.groups:
        name = assignment[group.name]
        if group.is_cache:
            caches.append(CACHE_DTYPES[name])
            continue
        numel[name] = numel.get(name, 0) + group.numel
        layers[name] = layers.get(name, 0) + len(group.members)
    total = sum(numel.values()) or 1
    return [
        f"| {name} | {layers[name]} | {100 * numel[name] / total:.1f} % |"
        for name in sorted(numel, key=lambda name: -numel[name])
    ] + [f"| cache {name} | {caches.count(name)} | |" for name in dict.fromkeys(caches)]
