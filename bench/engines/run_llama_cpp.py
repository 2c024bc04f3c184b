"""llama.cpp on GGUF files; runs where llama-cpp-python and gguf are installed.

    python run_llama_cpp.py JOB.json ANSWER.json

JOB: {"decode": [{"file", "expected": a GGUF file of float32}], "samples": a .npy of token ids [N, T], "files": [...],
"expected": a .npy of logits [N, T, V]}.
ANSWER: {"decoded": for each {"tensors", "equal": those whose every weight ggml's own function decodes to the expected
bits}, "files": for each {"kl": per sample, "ce": per sample, of the next token, "largest": difference of logits,
"spread": standard deviation of the expected logits}}.

Keys and values stay float32, one thread.
"""

import collections
import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {
        "decoded": [decoded(pair["file"], pair["expected"]) for pair in job["decode"]],
        "files": compared(job),
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def decoded(path: str, expected: str) -> dict[str, int]:
    """How many tensors ggml decodes to the expected bits."""
    exact = {tensor.name: tensor for tensor in gguf.GGUFReader(expected).tensors}
    tensors = gguf.GGUFReader(path).tensors
    if {tensor.name for tensor in tensors} != set(exact):
        raise RuntimeError(f"{path} and {expected} hold tensors of other names")
    equal = sum(np.array_equal(by_ggml(tensor), bits(exact[tensor.name])) for tensor in tensors)
    return {"tensors": len(tensors), "equal": int(equal)}


def bits(tensor: gguf.ReaderTensor) -> np.ndarray:
    if tensor.tensor_type.name != "F32":
        raise RuntimeError(f"{tensor.name} is {tensor.tensor_type.name}, not F32")
    return np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint32)


def by_ggml(tensor: gguf.ReaderTensor) -> np.ndarray:
    """Bits of the weights, uint32, as ggml decodes them."""
    name = tensor.tensor_type.name
    if name == "F32":
        return bits(tensor)
    return decoded_row(name, tensor.data, int(tensor.n_elements)).view(np.uint32)


def decoded_row(type_name: str, stored: np.ndarray, num_weights: int) -> np.ndarray:
    """Weights, float32, as `dequantize_row_TYPE` of ggml's library makes them of bytes."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    rows = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
    decode = getattr(library, rows.get(type_name, f"dequantize_row_{type_name.lower().replace('_k', '_K')}"))
    decode.argtypes, decode.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    stored, weights = np.ascontiguousarray(stored), np.full(num_weights, np.nan, np.float32)
    decode(stored.ctypes.data, weights.ctypes.data, num_weights)
    return weights


def compared(job: dict) -> list[dict]:
    """Differences of every file's logits to the expected ones."""
    ids_NT = np.load(job["samples"])
    expected_NTV = np.load(job["expected"], mmap_mode="r")
    models = [opened(path, ids_NT.shape[1]) for path in job["files"]]
    found = [collections.defaultdict(list) for _ in models]
    for ids_T, expected_TV in zip(ids_NT, expected_NTV, strict=True):
        for model, lists in zip(models, found, strict=True):
            add(lists, logits(model, ids_T), np.array(expected_TV), ids_T)
    return [
        {
            "kl": lists["kl"],
            "ce": lists["ce"],
            "largest": max(lists["largest"]),
            "spread": float(np.mean(lists["spread"])),
        }
        for lists in found
    ]


def opened(path: str, num_tokens: int) -> llama_cpp.Llama:
    """A model whose weights stay as they lie in the file: repacked for AMX they stop a process where it is masked."""
    defaults = llama_cpp.llama_model_default_params()
    defaults.use_extra_bufts = False
    llama_cpp.llama_cpp.llama_model_default_params = lambda: defaults
    return llama_cpp.Llama(
        path, logits_all=True, n_ctx=num_tokens, n_batch=num_tokens, n_threads=1, n_threads_batch=1,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False,
    )  # fmt: skip


def logits(model: llama_cpp.Llama, ids_T: np.ndarray) -> np.ndarray:
    """[T, V] float32."""
    model.reset()
    model.eval(ids_T.tolist())
    return np.array(model.scores[: len(ids_T)])


def add(
    lists: dict[str, list[float]], logits_TV: np.ndarray, exact_TV: np.ndarray, ids_T: np.ndarray
) -> None:
    """Of a sample: KL(exact, file), mean of positions, nats; largest difference of logits; spread of the exact ones."""
    found_TV, true_TV = log_softmax(logits_TV), log_softmax(exact_TV)
    lists["ce"].append(float(-found_TV[np.arange(len(ids_T) - 1), ids_T[1:]].mean()))
    lists["kl"].append(float((np.exp(true_TV) * (true_TV - found_TV)).sum(1).mean()))
    lists["largest"].append(float(np.abs(logits_TV - exact_TV).max()))
    lists["spread"].append(float(exact_TV.std()))


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    moved_TV = logits_TV.astype(np.float64) - logits_TV.max(1, keepdims=True)
    return moved_TV - np.log(np.exp(moved_TV).sum(1, keepdims=True))


if __name__ == "__main__":
    main()
