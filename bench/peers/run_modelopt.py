"""ModelOpt's `auto_quantize` (gradient) on the samples, groups and formats of a job; runs where ModelOpt is installed.

    python run_modelopt.py JOB.json ANSWER.json

Every budget is solved by ModelOpt from one set of scores. Integer formats round weights alone, in groups, by ModelOpt's
own ranges; nvfp4 and fp8_e4m3 are its own presets, which round inputs too. Leaving a layer unquantized is among the
choices where the job has 16 bits, and the output head does not count.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.quantization import tensor_quant
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from torch import Tensor
from transformers import AutoModelForCausalLM

SAMPLES_PER_PASS = 2

PRESETS = {"nvfp4": mtq.NVFP4_DEFAULT_CFG, "fp8_e4m3": mtq.FP8_DEFAULT_CFG}

UNQUANTIZED = 16
"""Bits of what it leaves as it is."""


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    batches = [
        {"input_ids": ids, "labels": ids}
        for ids in torch.from_numpy(np.load(job["samples"])).split(SAMPLES_PER_PASS)
    ]
    if not torch.cuda.is_available():
        tensor_quant.dynamic_block_quantize_op = fp4_blocks
    formats = [
        PRESETS.get(name) or integer(bits, job["group_size"])
        for name, bits in job["formats"].items()
        if bits != UNQUANTIZED
    ]
    layers = [layer for members in job["groups"].values() for layer in members]
    others = ["*lm_head*"]
    cost = {"excluded_module_name_patterns": others}
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": job["budgets"][0], "cost": cost},
        data_loader=batches,
        forward_step=lambda model, batch: model(**batch),
        loss_func=lambda output, batch: output.loss,
        quantization_formats=formats,
        module_search_spaces=[
            {
                "module_name_patterns": layers,
                "quantization_formats": formats,
                "allow_no_quant": UNQUANTIZED in job["formats"].values(),
            }
        ],
        disabled_layers=others,
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        method="gradient",
    )
    answer = {}
    for limit in job["budgets"]:
        config = mtq.get_auto_quantize_config(state, {"effective_bits": limit})
        bits_of = {
            entry["quantizer_name"].removesuffix(".weight_quantizer"): width(entry["cfg"]["num_bits"])
            for entry in config["quant_cfg"]
            if re.search(r"\.weight_quantizer$", entry["quantizer_name"]) and entry.get("cfg")
        }
        answer[limit] = {group: one(bits_of, members) for group, members in job["groups"].items()}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def integer(bits: int, group_size: int) -> dict[str, Any]:
    """A format of weights alone."""
    cfg = {"num_bits": bits, "block_sizes": {-1: group_size}}
    weights = {"quantizer_name": "*weight_quantizer", "cfg": cfg}
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, weights], "algorithm": "max"}


def fp4_blocks(inputs: Tensor, block_size: int, amax: Tensor, *number: int) -> Tensor:
    """What ModelOpt's kernel of dynamic blocks, which wants a GPU, computes of nvfp4, by ModelOpt's own packing."""
    assert number == (4, 2, 8, 4), f"e2m1 under scales in e4m3 alone, not {number}"
    packed, scale, common = NVFP4QTensor.quantize(
        inputs, block_size, weights_scaling_factor_2=amax.float().max() / (6 * 448)
    )
    return packed.dequantize(scale=scale, double_scale=common, block_sizes={-1: block_size})


def width(num_bits: int | list[int] | tuple[int, int]) -> int:
    """Bits of a format's codes; of floating point those of exponent and mantissa, and a sign."""
    return num_bits if isinstance(num_bits, int) else sum(num_bits) + 1


def one(bits_of: dict[str, int], members: list[str]) -> int:
    """The bits that all layers of a group have."""
    (bits,) = {bits_of.get(member, UNQUANTIZED) for member in members}
    return bits


if __name__ == "__main__":
    main()
