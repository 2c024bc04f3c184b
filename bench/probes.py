"""Error of r random output projections per token against exact features.

python -m bench.probes [--samples 16]      writes section `probes` of bench/RESULTS.md
"""

import argparse

import numpy as np
import torch

from bench.results import table, write_section
from hpcmpq.calibrate.sums import add_up, products
from hpcmpq.examples.topics import training_text
from hpcmpq.formats import Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.sensitivity.secant import measure
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import GroupsConfig, ModelConfig
from hpcmpq.space import SearchSpace

FORMATS = tuple(f"int{bits}" for bits in range(2, 9))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(ModelConfig(path="configs/quickstart_model"))
    tokens = torch.tensor(list(training_text().encode()[: args.samples * 128])).reshape(-1, 128)
    samples = Samples({"input_ids": tokens})
    groups = find_groups(model, GroupsConfig(), samples[:1].inputs)
    space = SearchSpace(groups, (FORMATS,) * len(groups))
    variants = Variants(model, space, Quantizer())
    engine = make_engine("auto", variants, samples[:2].inputs)

    def quadratic(probes: int | None) -> tuple[np.ndarray, np.ndarray]:
        subject = Subject(model, space, variants, OBJECTIVES["kl"], probes, 4, 0, engine)
        arrays, _, _ = add_up(products(measure(subject, samples, range(len(groups)), 0)))
        spread = arrays["quad_square"] - arrays["quad"] ** 2 / args.samples
        return arrays["quad"], np.sqrt(np.maximum(spread, 0) * args.samples / (args.samples - 1))

    exact, stderr = quadratic(None)
    scale = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
    cross = space.group_P[:, None] != space.group_P[None, :]
    noise = np.sqrt(np.mean((stderr / scale)[cross] ** 2))
    rows = []
    for probes in (1, 4, 16):
        found, _ = quadratic(probes)
        error = ((found - exact) / scale)[cross]
        own = np.diagonal(found) / np.diagonal(exact) - 1
        rms = np.sqrt(np.mean(error**2))
        rows.append(
            [probes, f"{rms:.4f}", f"{np.abs(error).max():.4f}", f"{np.sqrt(np.mean(own**2)):.4f}",
             f"{np.abs(own).max():.4f}", f"{rms / noise:.2f}"]
        )  # fmt: skip
    header = [
        "r",
        "H_pq, rms",
        "H_pq, largest",
        "H_pp, rms",
        "H_pp, largest",
        "rms over standard error of samples",
    ]
    text = (
        f"## Output probes\n\n`python -m bench.probes`: quickstart, {args.samples} samples of 128 tokens, P = "
        f"{space.num_options}; errors of r random projections per token against exact features: of H_pq over "
        f"√(H_pp H_qq) for different groups, of H_pp over itself. `secant` takes its c from losses, without probes.\n\n"
        f"{table(header, rows)}"
    )
    print(text)
    write_section("probes", text)


if __name__ == "__main__":
    main()
