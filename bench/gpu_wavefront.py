r"""Secant by wavefront on a Llama of random weights: seconds, share of the measured matrix rate, peak memory.

    python -m bench.gpu_wavefront --hidden 4096 --intermediate 14336 --blocks 32 --heads 32 --kv-heads 8 \
        --vocabulary 128256 --options 3 7 --tokens 32768 --length 2048            # an 8 B shape on a GPU
    python -m bench.gpu_wavefront --hidden 256 --intermediate 768 --blocks 4 --vocabulary 1024 --tokens 256 \
        --length 128                                                               # the same on a CPU

Only `--timed-groups` groups (spread over the blocks) run, and the whole matrix is extrapolated from them by the
share of the model that each runs; 0 runs them all. The matrix rate is that of bfloat16 (float32 on a CPU)
products of [tokens, hidden] × [hidden, intermediate]. FLOPs are those of linear layers that options really run.
"""

import argparse
import time
from collections.abc import Callable

import torch

from hpcmpq.formats import Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.sensitivity.features import gram
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.sensitivity.sampled_positions import find_head
from hpcmpq.sensitivity.secant import measure
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import SearchSpace

FORMATS = {3: ("int2", "int4", "int8"), 7: tuple(f"int{bits}" for bits in range(2, 9))}
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (
        ("hidden", 256), ("intermediate", 768), ("blocks", 4), ("heads", 8), ("kv-heads", 8), ("vocabulary", 1024),
        ("tokens", 256), ("length", 128), ("per-pass", 1), ("timed-groups", 0), ("options-per-pass", 8),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--options", type=int, nargs="+", default=[3, 7], choices=[3, 7])
    parser.add_argument("--fused", action="store_true", help="q, k, v and gate, up share a format")
    parser.add_argument("--products", choices=["bfloat16", "float32"], help="default: bfloat16 on a GPU")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    products = args.products or ("bfloat16" if device.type == "cuda" else "float32")
    low = torch.bfloat16 if products == "bfloat16" else None
    model = random_llama(args, device)
    rate = matrix_rate(args, device, low or torch.float32)
    samples = Samples(
        {"input_ids": torch.randint(args.vocabulary, (args.per_pass, args.length), device=device)}
    )
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e9:.3f} B parameters on {device}, matrix rate {rate / 1e12:.2f} TFLOP/s")
    tie = FUSED if args.fused else ()
    groups = find_groups(model, GroupsConfig(tie=tie), samples[:1].inputs)
    probes = num_probes(None, args.vocabulary)
    head = find_head(None, args.vocabulary, probes, "kl", model, samples)
    for count in args.options:
        space = SearchSpace(groups, (FORMATS[count],) * len(groups))
        variants = Variants(model, space, Quantizer(group_size=128, range="absmax"))
        engine = make_engine(
            "auto", variants, samples.inputs, low_precision=low, options_per_pass=args.options_per_pass
        )
        subject = Subject(
            model=model,
            space=space,
            variants=variants,
            objective=OBJECTIVES["kl"],
            num_probes=probes,
            samples_per_pass=args.per_pass,
            seed=0,
            engine=engine,
            head=head,
        )
        step = max(1, len(groups) // args.timed_groups) if args.timed_groups else 1
        timed = range(0, len(groups), step)
        measure_groups(subject, samples, timed[:1], device)  # ranges, kernels
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = measure_groups(subject, samples, timed, device)
        all_macs = macs_run(model, space, range(len(groups)), args.blocks, through_head=head is None)
        macs = macs_run(model, space, timed, args.blocks, through_head=head is None)
        total = seconds * all_macs / macs * args.tokens / (args.per_pass * args.length)
        flops = 2 * macs * args.per_pass * args.length
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        memory = f", peak {peak / 2**30:.1f} GiB" if peak else ""
        print(
            f"{len(groups)} groups × {count} options: {seconds:.2f} s for {len(timed)} groups on "
            f"{args.per_pass * args.length} tokens, {flops / seconds / rate:.0%} of the matrix rate; "
            f"whole matrix on {args.tokens} tokens {total:.0f} s{memory}",
            flush=True,
        )


def random_llama(args: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """A Llama of the shape asked for, float32, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.blocks,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        vocab_size=args.vocabulary,
        max_position_embeddings=max(2048, args.length),
    )
    torch.manual_seed(0)
    with device:
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def measure_groups(subject: Subject, samples: Samples, groups: range, device: torch.device) -> float:
    """Seconds of the features and own products of some groups on one pass."""
    return seconds_of(
        lambda: [gram(part.phi_NRF[0]) for part in measure(subject, samples, groups, 0)], device
    )


def macs_run(
    model: torch.nn.Module, space: SearchSpace, groups: range, num_blocks: int, *, through_head: bool
) -> float:
    """Multiply-accumulates of one token in linear layers that the options of some groups run."""
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    total = sum(m.weight.numel() for m in linears)
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
    block = (total - head) / num_blocks
    macs = float(total)
    for g in groups:
        later = num_blocks - 1 - (space.groups[g].block or 0)
        inner = {m.parameter.rpartition(".weight")[0].rpartition(".")[2] for m in space.groups[g].members}
        macs += len(space.formats[g]) * (
            later * block + block * own_share(model, inner) + head * through_head
        )
    return macs


def own_share(model: torch.nn.Module, names: set[str]) -> float:
    """Share of a Llama block's products from the first of the named layers on; siblings are shared."""
    sizes = {
        n.rpartition(".")[2]: m.weight.numel()
        for n, m in model.model.layers[0].named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    order = list(sizes)
    siblings = next((set(fused) for fused in FUSED if names & set(fused)), names)
    after = order[max(order.index(n) for n in siblings) + 1 :]
    return sum(sizes[n] for n in (*names, *after)) / sum(sizes.values())


def matrix_rate(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products of the model's shape."""
    a = torch.randn(
        args.options_per_pass * args.per_pass * args.length, args.hidden, device=device, dtype=dtype
    )
    b = torch.randn(args.hidden, args.intermediate, device=device, dtype=dtype)
    seconds = min(seconds_of(lambda: a @ b, device) for _ in range(20))
    return 2 * a.shape[0] * args.hidden * args.intermediate / seconds


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of a call, waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
