"""llama.cpp on GGUF files: ggml's own decoding of every tensor, and what its CPU kernels compute."""

from pathlib import Path

import numpy as np
import torch

from bench.engines.dequantized_gguf import write_dequantized
from bench.engines.runs import Case, exported, logits
from bench.environments import answer, environment
from bench.workload import CACHE
from hpcmpq.export import weight_bytes
from hpcmpq.targets.llama_cpp import GGUF_TYPES

PACKAGE = "llama-cpp-python==0.3.36"
NAME = f"llama.cpp ({PACKAGE.replace('==', ' ')})"

BESIDE = ("numpy", "gguf==0.19.0")

BUILD = {
    "CMAKE_ARGS": " ".join(
        [
            "-DLLAVA_BUILD=OFF",
            "-DGGML_OPENMP=OFF",
            f"-DCMAKE_PROJECT_INCLUDE={Path(__file__).with_name('llama_cpp.cmake')}",
        ]
    ),
    "CMAKE_BUILD_PARALLEL_LEVEL": "2",
}
"""What is compiled: ggml and llama.cpp's library alone, about ten minutes of one core."""

MIXES = {
    "quickstart": (("int4", "int5", "int8", "bf16"), ("iq4_nl", "q4_1", "q5_1")),
    "smollm2": (tuple(GGUF_TYPES),),
}
"""{model: what its groups take by turns}; types in blocks of 256 fit no layer of the quickstart's."""

CASES = [
    Case(model, "llama_cpp", "gguf", formats, group_size=32)
    for model, mixes in MIXES.items()
    for formats in mixes
]

COLUMNS = (
    "model", "formats by turns", "tensors that ggml decodes to the measured bits", "file bytes",
    "the file's logits: largest difference, KL", "its weights in float32", "the unquantized model",
)  # fmt: skip

FACTS = (
    "Weights: every tensor of the file, decoded by ggml's own function, against the dequantized checkpoint. Logits: "
    "the largest difference, as a share of the standard deviation of the logits, and the mean KL divergence in nats, "
    "of llama.cpp on one CPU thread to transformers on that checkpoint in float32. llama.cpp's CPU kernels round the "
    "inputs of products of quantized weights to 8 bits; the next column is llama.cpp on a file of the same weights in "
    "float32, where they do not: what is left is the order of sums. Keys and values are float32, and weights are not "
    "repacked. Of SmolLM2's layers the down projections alone have a multiple of 256 inputs, so only they take types "
    "in blocks of that."
)


def row(case: Case, num_samples: int, num_tokens: int) -> list[str]:
    """One line of the table."""
    made = exported(case, num_samples, num_tokens)
    folder = made.directory.parent / "llama_cpp"
    folder.mkdir(exist_ok=True)
    files = {"exported": made.directory / "model.gguf", "float32": folder / "float32.gguf"}
    write_dequantized(files["exported"], made.checkpoint, files["float32"])
    np.save(folder / "samples.npy", made.samples_NT.numpy())
    exact_NTV = logits(made.checkpoint, made.samples_NT, torch.float32)
    np.save(folder / "expected.npy", exact_NTV.numpy())
    job = {
        "decode": [{"file": str(files["exported"]), "expected": str(files["float32"])}],
        "samples": str(folder / "samples.npy"),
        "expected": str(folder / "expected.npy"),
        "files": [str(path) for path in files.values()],
    }
    python = environment(CACHE / "engines" / PACKAGE, (*BESIDE, PACKAGE), settings=BUILD)
    said = answer(python, Path(__file__).with_name("run_llama_cpp.py"), folder, job)
    (decoded,) = said["decoded"]
    file_bytes = weight_bytes(made.directory)
    return [
        case.model,
        ", ".join(sorted(set(made.assignment.values()), key=case.formats.index)),
        f"{decoded['equal']} of {decoded['tensors']}",
        f"{file_bytes:,} ({file_bytes / made.size_bytes - 1:+.2%} of size_bytes)",
        *(f"{found['largest'] / found['spread']:.2g}, {np.mean(found['kl']):.2g}" for found in said["files"]),
        unquantized(exact_NTV, logits(made.original, made.samples_NT, torch.float32)),
    ]


def unquantized(exact_NTV: torch.Tensor, original_NTV: torch.Tensor) -> str:
    """The same figures of the original model: what quantization itself changed."""
    exact, other = exact_NTV.double().log_softmax(-1), original_NTV.double().log_softmax(-1)
    kl = float((exact.exp() * (exact - other)).sum(-1).mean())
    return f"{float((original_NTV - exact_NTV).abs().max() / exact_NTV.std()):.2g}, {kl:.2g}"
