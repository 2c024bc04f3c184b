"""Interactions between groups: the strongest pairs as a table and in words."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmpq.report.display import show
from hpcmpq.report.findings import Z95, Findings, kind
from hpcmpq.report.tables import Column, Table, share_of
from hpcmpq.space import Group

NUM_PAIRS = 20
NUM_EXPLAINED = 6
"""Pairs that are explained in words."""

MAX_POINTED = 512
"""Groups up to which the page holds every pair, to be pointed at."""

LARGEST_FLOAT16 = 60000.0


@dataclass(frozen=True)
class PairRow:
    """Two groups at their chosen formats.

    Attributes:
        first_alone: Predicted loss increase of the first group alone; `second_alone` of the second.
        loss: What they add together beyond the sum of both; negative where errors cancel.
        stderr: Standard error of `loss` over samples, 0 where not estimated.
        share: Of the predicted increase of the whole assignment, or None if that is zero.
    """

    first: Group
    first_format: str
    first_alone: float
    second: Group
    second_format: str
    second_alone: float
    loss: float
    stderr: float
    share: float | None


def pair_rows(findings: Findings) -> list[PairRow]:
    """The pairs of groups whose interaction is strongest at the chosen formats, strongest first."""
    space, pairs_GG, quadratic = findings.plan.space, findings.pairs_GG, findings.quadratic
    first_n, second_n = np.triu_indices(len(space.groups), 1)
    strength_n = np.abs(pairs_GG[first_n, second_n])
    order = [n for n in np.argsort(-strength_n, kind="stable")[:NUM_PAIRS] if strength_n[n] > 0]
    options_G = findings.choice_G
    return [
        PairRow(
            space.groups[i],
            findings.formats[i].name,
            float(quadratic.linear_P[options_G[i]]),
            space.groups[j],
            findings.formats[j].name,
            float(quadratic.linear_P[options_G[j]]),
            float(pairs_GG[i, j]),
            float(quadratic.stderr_quad_PP[options_G[i], options_G[j]]),
            share_of(float(pairs_GG[i, j]), findings.increase),
        )
        for i, j in zip(first_n[order], second_n[order], strict=True)
    ]


def pair_table(findings: Findings) -> Table:
    """The strongest interactions with what each group does alone."""
    rows = tuple(
        (
            pair.first.name,
            pair.first_format,
            pair.first_alone,
            pair.second.name,
            pair.second_format,
            pair.second_alone,
            pair.loss,
            pair.stderr,
            pair.share,
        )
        for pair in pair_rows(findings)
    )
    columns = (
        Column("group", "Group"),
        Column("format", "Format"),
        Column("alone", "Alone", "loss"),
        Column("other_group", "Other group"),
        Column("other_format", "Format"),
        Column("other_alone", "Alone", "loss"),
        Column("interaction", "Together beyond the sum", "loss"),
        Column("stderr", "± standard error", "loss"),
        Column("share", "Share of the predicted increase", "share"),
    )
    return Table("pairs", "The strongest interactions at the chosen formats, in loss.", columns, rows)


def all_pairs(findings: Findings, frame: list[float] | None) -> dict[str, Any] | None:
    """Every interaction at the chosen formats with its standard error, as plain values; None where there are none.

    Losses are float32. Errors, of which two digits say all, are float16 of their share of the largest.

    Args:
        findings: What the run found.
        frame: Of the map of interactions on its figure; None where there is no such figure.
    """
    groups, options_G = findings.plan.space.groups, findings.choice_G
    if frame is None or len(groups) > MAX_POINTED:
        return None
    upper = np.triu_indices(len(groups), 1)
    loss_n = findings.pairs_GG[upper]
    stderr_n = findings.quadratic.stderr_quad_PP[np.ix_(options_G, options_G)][upper]
    unit = float(stderr_n.max()) / LARGEST_FLOAT16 or 1.0
    return {
        "frame": frame,
        "groups": [group.name for group in groups],
        "formats": [form.name for form in findings.formats],
        "alone": [float(f"{findings.quadratic.linear_P[p]:.4g}") for p in options_G],
        "alone_stderr": [float(f"{findings.quadratic.stderr_linear_P[p]:.4g}") for p in options_G],
        "loss": _encoded(loss_n.astype("<f4")),
        "stderr": _encoded((stderr_n / unit).astype("<f2")),
        "stderr_unit": unit,
        "strongest": [int(part[np.argmax(np.abs(loss_n))]) for part in upper],
    }


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def explained_pairs(findings: Findings) -> list[tuple[str, str]]:
    """The strongest interactions: (what they do, how that comes about) for each pair."""
    names = {group.name: spoken_name(group) for group in findings.plan.space.groups}
    unique = len(set(names.values())) == len(names)
    found = []
    for pair in pair_rows(findings)[:NUM_EXPLAINED]:
        first, second = pair.first.name, pair.second.name
        shown = (names[first], names[second]) if unique else (first, second)
        effect = "add" if pair.loss > 0 else "take off"
        beside = "" if pair.share is None else f", {show(abs(pair.share), 'share')} of the predicted increase"
        found.append(
            (
                f"{shown[0]} in {pair.first_format} and {shown[1]} in {pair.second_format} together {effect} "
                f"{show(abs(pair.loss), 'loss')} beyond what each does alone{beside}.",
                _explain(pair),
            )
        )
    return found


def _explain(pair: PairRow) -> str:
    """Where a pair lies, what it costs apart and together, and whether calibration resolves that."""
    first, second = pair.first.block, pair.second.block
    if first is None or second is None:
        place = ""
    elif first == second:
        place = "In the same block. "
    else:
        distance = abs(second - first)
        place = "In neighbouring blocks. " if distance == 1 else f"{distance} blocks apart. "
    alone = pair.first_alone + pair.second_alone
    together = (
        f"Alone they cost {show(pair.first_alone, 'loss')} and {show(pair.second_alone, 'loss')}, both at once "
        f"{show(alone + pair.loss, 'loss')} instead of {show(alone, 'loss')}: "
        + (
            "their errors push the outputs the same way."
            if pair.loss > 0
            else "their errors partly cancel in the outputs."
        )
    )
    doubt = " Calibration samples differ on the sign." if abs(pair.loss) < Z95 * pair.stderr else ""
    return place + together + doubt


def spoken_name(group: Group) -> str:
    """A group within a sentence.

    Example:
        >>> spoken_name(Group("model.layers.12.mlp.up_proj", (), 12))
        'up_proj of block 12'
    """
    last = kind(group).rsplit(".", 1)[-1]
    return last if group.block is None else f"{last} of block {group.block}"


def cross_terms(findings: Findings) -> str:
    """What all interactions together contribute."""
    total = findings.solution["predicted_cross_terms"]
    if findings.solution["solver"]["drop_cross_terms"]:
        return "This solution was found with interactions left out (solver.drop_cross_terms)."
    if findings.increase <= 0:
        return f"All interactions together change the predicted loss by {show(total, 'loss')}."
    return (
        f"All interactions together {'add' if total >= 0 else 'take off'} {show(abs(total), 'loss')}, "
        f"{show(abs(total) / findings.increase, 'share')} of the predicted increase over the original. A method that "
        "looks at each group alone would miss that."
    )


def no_interactions(findings: Findings) -> str:
    """Why none is shown: none was measured, or none at the chosen formats is beyond noise."""
    if findings.interactions_measured:
        return (
            "No interaction at the chosen formats can be told from the noise of the calibration samples, so none "
            "acts (solver.shrink). More samples (calibration.num_samples) resolve smaller ones."
        )
    return (
        "There are no interactions in this model of the loss: the sensitivity "
        f"{findings.quadratic.method} looks at each group alone."
    )
