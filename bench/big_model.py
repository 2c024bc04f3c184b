"""A model of a billion parameters through every stage, each process below 1.2 GB, every stage killed once and resumed.

    python -m bench.big_model [--layers 33] [--hidden 2048] [--inner 4096] [--limit-mb 1200] [--keep DIR]
    python -m bench.big_model --experts 32 --layers 52 --hidden 1024 --inner 384 --limit-mb 1800

Random weights of a Llama, or with `--experts` of a Qwen3-MoE, in bfloat16, in shards of 500 MB; few tokens and few
groups, since memory is the question. One run goes through undisturbed; in the other every stage gets SIGKILL when half
of that time has passed, and the same command again. Peaks are VmHWM of every process, pages of mapped files included;
one that exceeds the limit is killed, and the bench fails.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import table, without_keys, write_section
from hpcmpq.batch.memory import PROC, descendants, processes

STAGES: dict[str, list[str]] = {
    "plan": ["plan", "{config}", "--run-dir", "{run}"],
    "calibrate": ["calibrate", "{run}", "--workers", "1"],
    "reduce": ["reduce", "{run}"],
    "solve": ["solve", "{run}"],
    "refine": ["refine", "{run}", "--workers", "1"],
    "reround": ["reround", "{run}"],
    "export": ["export", "{run}"],
    "export compressed_tensors": ["export", "{run}", "--format", "compressed_tensors"],
    "evaluate": ["evaluate", "{run}"],
}

HEAD = 64
"""Width of an attention head; all queries together are half as wide as the hidden state."""

SEARCHED = 3
"""One block in so many has weights that are searched."""

KILLED_AT = 0.5
"""Share of the undisturbed time after which a stage is killed."""

CHOSEN = 8
"""Experts of a token."""

IMPORTS = "import time, torch, transformers.models.llama.modeling_llama, h5py, scipy; time.sleep(1)"

PASSING = ("digest", "seconds", "peak_bytes", "model_bytes", "environment", "proof_seconds", "solver_seconds")
"""Keys whose values are of a process, not of the result."""


@dataclass(frozen=True)
class Watched:
    """How a process ended, with all that it started."""

    status: int
    seconds: float
    peak_mb: float


def main() -> None:
    """Run the bench and write its section."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--layers", type=int, default=33)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=4096, help="of each expert where there are some")
    parser.add_argument(
        "--experts", type=int, default=0, help="a mixture of so many a layer; 0 for a dense model"
    )
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--limit-mb", type=float, default=1200.0)
    parser.add_argument("--keep", type=Path, help="work here, and leave it there")
    parser.add_argument("--print", action="store_true", help="only print the section")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="hpcmpq-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        text = bench(folder, options)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    print(text)
    if not options.print:
        write_section("big_mixture" if options.experts else "big_model", text)


def bench(folder: Path, options: argparse.Namespace) -> str:
    """The section."""
    num_bytes, num_parameters = write_model(folder / "model", options)
    config = write_config(folder, options)
    found = folder / "rows.json"  # of stages that an earlier bench in this folder got through
    rows = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    whole, killed = folder / "whole", folder / "killed"
    if "imports" not in rows:
        rows["imports"] = watched([sys.executable, "-c", IMPORTS], options.limit_mb).peak_mb
    for name, command in STAGES.items():
        if name in rows:
            continue
        alone = watched(filled(command, config, whole), options.limit_mb)
        check(alone, name)
        cut = watched(filled(command, config, killed), options.limit_mb, KILLED_AT * alone.seconds)
        again = watched(filled(command, config, killed), options.limit_mb)
        check(again, name)
        peak = max(alone.peak_mb, cut.peak_mb, again.peak_mb)
        after = f"{cut.seconds:.0f}" if cut.status < 0 else "done before"
        rows[name] = [f"{peak:.0f}", f"{alone.seconds:.0f}", after, f"{again.seconds:.0f}"]
        found.write_text(json.dumps(rows), encoding="utf-8")
        print(name, *rows[name], flush=True)
    results = {name: of for name, of in RESULTS.items() if not (options.experts and name == CODES)}
    different = [name for name, of in results.items() if of(whole) != of(killed)]
    if different:
        raise SystemExit(f"not equal: {', '.join(different)}")
    head = (
        "stage",
        "most of any process, MB",
        "undisturbed, s",
        "killed after, s",
        "the same command again, s",
    )
    experts, kind, searched = "", "Llama", "tied to a group, in int4 and int8 with GPTQ. "
    if options.experts:
        experts, kind = f" --experts {options.experts}", "Qwen3-MoE"
        searched = (
            "tied to a group, and the experts of the first of these blocks, in int4 and int8; each of the other blocks "
            f"has {options.experts} experts too, of which a token is given {CHOSEN}. "
        )
    return (
        f"## Every stage{' of a mixture' if options.experts else ''} under a limit of memory, killed once\n\n"
        f"`python -m bench.big_model{experts} --layers {options.layers} --hidden {options.hidden} --inner "
        f"{options.inner} --vocabulary {options.vocabulary} --limit-mb {options.limit_mb:.0f}`: a random {kind} of "
        f"{num_parameters / 1e6:.0f} million parameters, {num_bytes / 1e6:.0f} MB of safetensors in bfloat16 and twice "
        f"as much in float32, in which it is measured, with `model: {{stream: true}}`, "
        f"one thread a process; no process may exceed {options.limit_mb:.0f} MB of resident memory, program and "
        f"libraries included, which alone take {rows['imports']:.0f} MB. Keys, values and outputs of attention are "
        f"searched in one block of {SEARCHED}, {searched}"
        "Every stage was killed once with SIGKILL. "
        f"Equal to the undisturbed run, bit for bit: {', '.join(results)}.\n\n"
        + table(head, [[name, *rows[name]] for name in STAGES])
    )


def shapes_of(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of the model."""
    width, inner, heads = options.hidden, options.inner, options.hidden // (2 * HEAD)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (options.vocabulary, width),
        "model.norm.weight": (width,),
    }
    multiplied = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    own: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (heads * HEAD, width),
        "self_attn.k_proj": (heads // 4 * HEAD, width),
        "self_attn.v_proj": (heads // 4 * HEAD, width),
        "self_attn.o_proj": (width, heads * HEAD),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    if options.experts:
        own |= {
            "self_attn.q_norm": (HEAD,),
            "self_attn.k_norm": (HEAD,),
            "mlp.gate": (options.experts, width),
        }
        for expert in range(options.experts):
            own |= {f"mlp.experts.{expert}.{name}": shape for name, shape in multiplied.items()}
    else:
        own |= {f"mlp.{name}": shape for name, shape in multiplied.items()}
    for k in range(options.layers):
        shapes |= {f"model.layers.{k}.{name}.weight": shape for name, shape in own.items()}
    return shapes


def write_model(directory: Path, options: argparse.Namespace) -> tuple[int, int]:
    """The random model, tensor by tensor; bytes of its files and number of parameters."""
    import torch

    from hpcmpq.export.safetensors_shards import SafetensorsShards, room_for

    width, heads, shapes = options.hidden, options.hidden // (2 * HEAD), shapes_of(options)
    if not (directory / "config.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        shards = SafetensorsShards(directory, room_for(list(shapes)), 5 * 10**8)
        for name, shape in shapes.items():
            normal = torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)
            shards.add(name, normal.bfloat16())
        shards.end()
        values = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "vocab_size": options.vocabulary, "hidden_size": width, "intermediate_size": options.inner,
            "num_hidden_layers": options.layers, "num_attention_heads": heads, "num_key_value_heads": heads // 4,
            "head_dim": HEAD, "max_position_embeddings": 64, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip
        if options.experts:
            values |= {
                "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": options.experts,
                "moe_intermediate_size": options.inner, "num_experts_per_tok": CHOSEN, "norm_topk_prob": True,
            }  # fmt: skip
        (directory / "config.json").write_text(json.dumps(values), encoding="utf-8")
    num_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return num_bytes, sum(int(np.prod(shape)) for shape in shapes.values())


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """The config of both runs."""
    random = np.random.default_rng(0)
    np.save(folder / "tokens.npy", random.integers(0, options.vocabulary, (16, 8)))
    path = folder / "config.yaml"
    blocks = range(0, options.layers, SEARCHED)
    searched = [f"*.layers.{k}.self_attn.{name}_proj" for k in blocks for name in "kvo"]
    rounding = ", rounding: gptq"
    if options.experts:  # which are rounded to the nearest, for time
        searched.append("*.layers.0.mlp.experts.*")
        rounding = ""
    path.write_text(
        f"""\
model: {{path: {folder / "model"}, stream: true, dtype: float32, device: cpu}}
calibration: {{data: {folder / "tokens.npy"}, num_samples: 2, held_out: 2, sequence_length: 8,
  samples_per_pass: 1, samples_per_unit: 1, rounding_samples: 4}}
groups: {{include: {json.dumps(searched)}, tie: [[k_proj, v_proj, o_proj]]}}
formats: [int4, int8]
quantizer: {{group_size: 64, range: absmax{rounding}}}
sensitivity: {{options_per_pass: 2, probes: 1}}
solver: {{time_limit_s: 5}}
refine: {{max_evaluations: {len(blocks)}, link_points: 3}}
reround: {{method: qep}}
evaluation: {{num_samples: 2}}
budgets: {{weight_bits: 6.0}}
""",
        encoding="utf-8",
    )
    return path


def filled(command: list[str], config: Path, run: Path) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "-m", "hpcmpq", *(word.format(config=config, run=run) for word in command)]


def check(ended: Watched, name: str) -> None:
    """Stop where a stage failed or took too much."""
    if ended.status:
        raise SystemExit(f"{name} ended with {ended.status} at {ended.peak_mb:.0f} MB")


def watched(command: list[str], limit_mb: float, kill_after_s: float | None = None) -> Watched:
    """Run a command; kill it and all that it started after a time, or when a process exceeds the limit."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    start, peak = time.monotonic(), 0.0
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None:
        peak = max(peak, *resident_mb(process.pid), 0.0)
        late = kill_after_s is not None and time.monotonic() - start > kill_after_s
        if late or peak > limit_mb:
            for pid in descendants([process.pid], processes(PROC)[0]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    return Watched(process.returncode, time.monotonic() - start, peak)


def resident_mb(pid: int) -> Iterator[float]:
    """The most that a process and each of its descendants had in memory."""
    for each in descendants([pid], processes(PROC)[0]):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    yield int(line.split()[1]) / 1024


def of_json(name: str) -> Any:
    """Function from a run to what stays of one of its artefacts."""
    return lambda run: without_keys(
        json.loads((run / name).read_text(encoding="utf-8")), PASSING.__contains__
    )


def digests(folder: str, end: str = "safetensors") -> Any:
    """Function from a run to digests of the files in one of its folders."""

    def of(run: Path) -> dict[str, str]:
        found = {}
        for path in sorted((run / folder).glob(f"*.{end}")):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    return of


CODES = "codes of all options"

RESULTS = {
    CODES: digests("rounded", "h5"),
    "the quadratic model": lambda run: (run / "quadratic.h5").read_bytes(),
    "the refined solution, rounded again": of_json("solution.json"),
    "the evaluation": of_json("evaluation.json"),
    "the checkpoint": digests("checkpoint"),
    "the compressed checkpoint": digests("exports/compressed_tensors"),
}
"""What must be equal."""


if __name__ == "__main__":
    main()
