"""llama.cpp on GGUF files; runs where llama-cpp-python and gguf are installed.

    python run_llama_cpp.py JOB.json ANSWER.json

JOB: {"quantize": [{"from", "to", "preset": name of a `LLAMA_FTYPE`}], "decode": [{"file", "expected": a GGUF file of
float32}], "samples": a .npy of token ids [N, T], "files": [...], "expected": a .npy of logits [N, T, V], or null for
those of the first file}; every key may be left out.
ANSWER: {"sizes": bytes of each preset's file, "types": {type: bytes} of each, "decoded": for each {"tensors", "equal":
those whose every weight ggml's own function decodes to the expected bits}, "files": for each {"kl", "nll": per sample,
"largest", "rms": differences of logits, "spread": standard deviation of the expected logits}}.

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
    quantize = job.get("quantize", [])
    for preset in quantize:
        quantized(preset)
    answer = {
        "sizes": [Path(preset["to"]).stat().st_size for preset in quantize],
        "types": [bytes_by_type(preset["to"]) for preset in quantize],
        "decoded": [decoded(pair["file"], pair["expected"]) for pair in job.get("decode", [])],
    }
    if job.get("files"):
        answer["files"] = compared(job)
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def quantized(preset: dict) -> None:
    """What `llama-quantize FROM TO PRESET` writes."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{preset['preset']}")
    failed = llama_cpp.llama_model_quantize(preset["from"].encode(), preset["to"].encode(), params)
    if failed:
        raise RuntimeError(f"llama_model_quantize to {preset['preset']} returned {failed}")


def bytes_by_type(path: str) -> dict[str, int]:
    """{type: bytes of all tensors that have it}."""
    found: collections.Counter[str] = collections.Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        found[tensor.tensor_type.name] += int(tensor.n_bytes)
    return dict(found)


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
    """Bits of the weights, uint32, as `dequantize_row_TYPE` of ggml's library makes them."""
    name = tensor.tensor_type.name
    if name == "F32":
        return bits(tensor)
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    rows = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
    decode = getattr(library, rows.get(name, f"dequantize_row_{name.lower().replace('_k', '_K')}"))
    decode.argtypes, decode.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    stored, weights = np.ascontiguousarray(tensor.data), np.empty(int(tensor.n_elements), np.float32)
    decode(stored.ctypes.data, weights.ctypes.data, weights.size)
    return weights.view(np.uint32)


def compared(job: dict) -> list[dict]:
    """Differences of every file's logits to the expected ones."""
    ids_NT = np.load(job["samples"])
    given = None if job.get("expected") is None else np.load(job["expected"], mmap_mode="r")
    models = [opened(path, ids_NT.shape[1]) for path in job["files"]]
    found = [collections.defaultdict(list) for _ in models]
    for sample, ids_T in enumerate(ids_NT):
        exact_TV = None if given is None else np.array(given[sample])
        for model, lists in zip(models, found, strict=True):
            logits_TV = logits(model, ids_T)
            exact_TV = logits_TV if exact_TV is None else exact_TV
            add(lists, ids_T, logits_TV, exact_TV)
    return [
        {
            "kl": lists["kl"],
            "nll": lists["nll"],
            "largest": max(lists["largest"]),
            "rms": float(np.sqrt(np.mean(lists["square"]))),
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
    lists: dict[str, list[float]], ids_T: np.ndarray, logits_TV: np.ndarray, exact_TV: np.ndarray
) -> None:
    """Per sample: KL(exact, file) and the negative log likelihood of the next token, means over positions, in nats."""
    found_TV, true_TV = log_softmax(logits_TV), log_softmax(exact_TV)
    lists["kl"].append(float((np.exp(true_TV) * (true_TV - found_TV)).sum(1).mean()))
    lists["nll"].append(float(-found_TV[np.arange(len(ids_T) - 1), ids_T[1:]].mean()))
    difference_TV = logits_TV - exact_TV
    lists["largest"].append(float(np.abs(difference_TV).max()))
    lists["square"].append(float(np.square(difference_TV).mean()))
    lists["spread"].append(float(exact_TV.std()))


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    moved_TV = logits_TV.astype(np.float64) - logits_TV.max(1, keepdims=True)
    return moved_TV - np.log(np.exp(moved_TV).sum(1, keepdims=True))


if __name__ == "__main__":
    main()
