"""Why losses of options of a mixture of experts do not add up: what is smooth, and what flips choices of experts.

    python -m bench.routing            writes section `routing` of bench/RESULTS.md

Every option of configs/mixture.yaml, random mixes and uniform formats, each run twice on 24 calibration samples: with
the experts that its own routers choose, and with those that the original's chose (weighted by its own routers).
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from bench.results import ROOT, table, write_section
from bench.workload import CACHE
from hpcmpq.config import read_config
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model
from hpcmpq.models.weights import Tensors, swapped
from hpcmpq.quadratic import flip_terms, quadratic_increase
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import SearchSpace

NUM_SAMPLES, MIXES = 24, 8
RANGES = {
    "2.5 (int2-3)": (2, 3), "3 (int2-4)": (2, 4), "3.5 (int3-4)": (3, 4), "4 (int3-5)": (3, 5), "int2-8": (2, 8),
    "5 (int4-6)": (4, 6),
}  # fmt: skip
UNIFORM = (2, 3, 4, 5)


@dataclass
class Routers:
    """The routers of a Qwen2-MoE, which may be told to choose as the original did.

    Attributes:
        original: What each router chose of the original, in the order in which they run.
        flipped: Share of positions at which each router of the last own pass chose others.
    """

    original: list[Tensor] = field(default_factory=list)
    flipped: list[float] = field(default_factory=list)
    mode: str = "record"
    _next: int = 0

    def watch(self, model: nn.Module) -> None:
        """Let them do as told from now on."""
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self._chosen)

    def begin(self, mode: str) -> None:
        """Before a pass: `record`, `own` or `original`."""
        self.mode, self._next = mode, 0
        self.flipped.clear()

    def _chosen(self, router: Any, inputs: Any, output: Any) -> Any:
        logits, scores, index = output
        if self.mode == "record":
            self.original.append(index)
            return output
        kept, self._next = self.original[self._next], self._next + 1
        if self.mode == "own":
            self.flipped.append(float((index.sort(1).values != kept.sort(1).values).any(1).float().mean()))
            return output
        scores = logits.float().softmax(-1).gather(1, kept)
        return logits, scores / scores.sum(-1, keepdim=True) if router.norm_topk_prob else scores, kept


@torch.no_grad()
def measure() -> dict[str, np.ndarray]:
    """Losses and products of features of all options, and losses of mixes, by routing."""
    config = read_config(ROOT / "configs" / "mixture.yaml")
    model = load_model(config.model)
    tokens = load_splits(config, ()).calibration[:NUM_SAMPLES].inputs["input_ids"]
    groups = find_groups(model, config.groups, {"input_ids": tokens[:1]})
    space = SearchSpace(groups, (config.formats,) * len(groups))
    variants = Variants(model, space, config.quantizer)
    routers = Routers()
    routers.watch(model)

    def run(tensors: Tensors, mode: str) -> Tensor:
        routers.begin(mode)
        with swapped(model, tensors):
            return model(input_ids=tokens).logits.double()

    original = run({}, "record")
    log_p = original.log_softmax(-1)
    root = (0.5 * log_p).exp()

    def loss(outputs: Tensor) -> float:
        return float((log_p.exp() * (log_p - outputs.log_softmax(-1))).sum(-1).mean())

    def features(outputs: Tensor) -> Tensor:
        scaled = root * (outputs - original)
        return (
            (scaled - root * (root * scaled).sum(-1, keepdim=True)).flatten() / tokens.numel() ** 0.5
        ).float()

    quantized = [variants.quantized(groups[o.group], o.format) for o in space.options]
    found: dict[str, Any] = {}
    for mode in ("own", "original"):
        phi_PF = torch.empty(space.num_options, original.numel())
        loss_P, flip_P = np.zeros(space.num_options), np.zeros(space.num_options)
        for p, tensors in enumerate(quantized):
            outputs = run(tensors, mode)
            loss_P[p], phi_PF[p] = loss(outputs), features(outputs)
            flip_P[p] = np.mean(routers.flipped or [0.0])
        quad_PP = (phi_PF @ phi_PF.T).double().numpy()
        quad_PP[space.group_P[:, None] == space.group_P[None]] = 0.0
        found |= {f"loss_{mode}": loss_P, f"quad_{mode}": quad_PP, f"flip_{mode}": flip_P}
    bits_P = np.array([FORMATS[option.format].num_bits for option in space.options])
    random, rows = np.random.default_rng(0), []
    for name, choice_G in chosen(space, bits_P, random):
        tensors = {name: t for p in choice_G for name, t in quantized[p].items()}
        own = loss(run(tensors, "own"))
        flipped = float(np.mean(routers.flipped))
        rows.append([name, own, loss(run(tensors, "original")), flipped, choice_G.tolist()])
    return {**found, "bits": bits_P, "rows": np.array(json.dumps(rows))}


def chosen(
    space: SearchSpace, bits_P: np.ndarray, random: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """(range, option of each group) of random mixes and uniform formats."""
    ranges = {**dict.fromkeys(RANGES), **{f"uniform int{bits}": None for bits in UNIFORM}}
    found = []
    for name in ranges:
        low, high = RANGES.get(name) or (int(name[-1]), int(name[-1]))
        inside = [
            np.flatnonzero((space.group_P == g) & (bits_P >= low) & (bits_P <= high))
            for g in range(len(space.groups))
        ]
        found += [
            (name, np.array([random.choice(own) for own in inside]))
            for _ in range(MIXES if name in RANGES else 1)
        ]
    return found


def section(found: dict[str, np.ndarray]) -> str:
    """The Markdown."""
    rows = json.loads(str(found["rows"]))
    flips_P = np.maximum(found["loss_own"] - found["loss_original"], 0.0)

    def own(c: np.ndarray) -> float:
        return quadratic_increase(found["loss_own"], found["quad_own"], c)

    def smooth(c: np.ndarray) -> float:
        return quadratic_increase(found["loss_original"], found["quad_original"], c)

    num_groups = len(rows[0][4])
    group_P = np.repeat(np.arange(num_groups), len(flips_P) // num_groups)
    kept_PP = found["quad_original"] + flip_terms(flips_P, group_P)
    models = {
        "singles and cross terms": own,
        "singles": lambda c: float(found["loss_own"][c].sum()),
        "smooth part, and sum of flips": lambda c: smooth(c) + float(flips_P[c].sum()),
        "smooth part, and root of squared flips": lambda c: (
            smooth(c) + float(np.sqrt((flips_P[c] ** 2).sum()))
        ),
        "as calibration measures it": lambda c: quadratic_increase(found["loss_own"], kept_PP, c),
    }
    lines = []
    for name in dict.fromkeys(row[0] for row in rows):
        those = [row for row in rows if row[0] == name]
        choices = [np.array(row[4]) for row in those]
        true, kept = (np.array([row[k] for row in those]) for k in (1, 2))
        cells = [
            name,
            f"{true.mean():.4f}",
            f"{kept.mean():.4f}",
            f"{100 * np.mean([row[3] for row in those]):.0f} %",
        ]
        cells.append(_agreement(np.array([smooth(c) for c in choices]), kept))
        lines.append(
            cells + [_agreement(np.array([model(c) for c in choices]), true) for model in models.values()]
        )
    ranks = []
    for model in models.values():
        parts = [[r for r in rows if r[0] == name] for name in RANGES]
        ranks.append(
            np.mean(
                [
                    _rank(np.array([model(np.array(r[4])) for r in p]), np.array([r[1] for r in p]))
                    for p in parts
                ]
            )
        )
    header = ["bits", "KL", "KL with the original's experts", "choices flipped", "smooth part of it", *models]
    mean = ", ".join(f"{name} {value:.3f}" for name, value in zip(models, ranks, strict=True))
    return (
        "## Experts: what adds up\n\n`python -m bench.routing`: configs/mixture.yaml, "
        f"{NUM_SAMPLES} calibration samples, {MIXES} random mixes in each range; predicted / measured, and Spearman's "
        "rank within the range. The smooth part is singles and cross terms measured with the experts that the original "
        "chose, compared with mixes run so; flips of an option are its own loss less that one. The last column is what "
        "calibration by `secant` makes of the two. Mean rank over the "
        f"ranges: {mean}.\n\n{table(header, lines)}"
    )


def _agreement(predicted: np.ndarray, measured: np.ndarray) -> str:
    ratio = f"{predicted.mean() / measured.mean():.2f}"
    return f"{ratio}, {_rank(predicted, measured):.2f}" if len(measured) > 1 else ratio


def _rank(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(spearmanr(predicted, measured).statistic)


def main() -> None:
    """Measure, unless it is done, print and write."""
    torch.set_num_threads(1)
    path = CACHE / "routing.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **measure())
    with np.load(path) as file:
        text = section(dict(file))
    print(text)
    write_section("routing", text)


if __name__ == "__main__":
    main()
