"""The table of a model: held-out KL by budget and method on each text, with paired intervals against ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.peers.choices import OURS
from bench.peers.judge import Verdict
from bench.peers.refined import REFINED
from bench.results import table
from hpcmpq.evaluate.statistics import paired_difference


@dataclass
class Results:
    """Verdicts on one rounding.

    Attributes:
        rounding: ``nearest`` or ``gptq``.
        verdicts: {text: {method: {budget: verdict}}}.
        originals: {text: verdict on the original}.
        notes: What else there is to say, such as what each part cost.
    """

    rounding: str
    verdicts: dict[str, dict[str, dict[float, Verdict]]] = field(default_factory=dict)
    originals: dict[str, Verdict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def difference(own: Verdict, other: Verdict) -> str:
    """Another's mean KL over ours in per cent, with the 95 % interval of the paired difference."""
    found = paired_difference(other.kl_N, own.kl_N)
    scale = 100.0 / own.kl_N.mean()
    low, high = (scale * end for end in found["interval"] or (np.nan, np.nan))
    return f"{scale * found['difference']:+.1f} % ({low:+.1f} to {high:+.1f})"


def divergences(by_method: Mapping[str, Mapping[float, Verdict]], budgets: Sequence[float]) -> str:
    """Mean KL of every method and budget; bold where the lowest."""
    rows = []
    base = REFINED if all(limit in by_method.get(REFINED, {}) for limit in budgets) else OURS
    for method, by_budget in sorted(by_method.items(), key=lambda item: item[0] != base):
        row = [method]
        for limit in budgets:
            if limit not in by_budget:
                row.append("")
                continue
            kl = by_budget[limit].kl_N.mean()
            lowest = min(others[limit].kl_N.mean() for others in by_method.values() if limit in others)
            cell = f"**{kl:.4f}**" if kl == lowest else f"{kl:.4f}"
            own = by_method[base][limit]
            row.append(cell if method == base else f"{cell} {difference(own, by_budget[limit])}")
        rows.append(row)
    return table(["KL, nats", *(f"{limit:g} b" for limit in budgets)], rows)


def qualities(
    by_method: Mapping[str, Mapping[float, Verdict]], original: Verdict, budgets: Sequence[float]
) -> str:
    """Perplexity, top-1 agreement in per cent and 99th percentile of KL of every method and budget."""
    rows = [["original", *([f"{perplexity(original):.2f}"] * len(budgets))]]
    for method, by_budget in by_method.items():
        rows.append([method, *(_quality(by_budget[b]) if b in by_budget else "" for b in budgets)])
    return table(["perplexity / top-1 % / KL p99", *(f"{limit:g} b" for limit in budgets)], rows)


def perplexity(verdict: Verdict) -> float:
    """exp of the mean cross entropy over all tokens."""
    return float(np.exp(np.nanmean(verdict.ce_NT)))


def _quality(verdict: Verdict) -> str:
    top1, tail = 100 * np.nanmean(verdict.same_NT), np.nanquantile(verdict.kl_NT, 0.99)
    return f"{perplexity(verdict):.2f} / {top1:.1f} / {tail:.3g}"


def section(
    title: str, command: str, facts: str, results: Sequence[Results], budgets: Sequence[float]
) -> str:
    """The whole section of bench/RESULTS.md."""
    parts = [f"## {title}", f"`{command}`: {facts}"]
    for found in results:
        for text, by_method in found.verdicts.items():
            parts += [
                f"### Rounding {found.rounding}, {text}",
                divergences(by_method, budgets),
                qualities(by_method, found.originals[text], budgets),
            ]
        parts += found.notes
    return "\n\n".join(parts)
