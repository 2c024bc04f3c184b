"""ModelOpt's `auto_quantize` (gradient) on the samples, groups and formats of a job; runs where ModelOpt is installed.

    python run_modelopt.py JOB.json ANSWER.json

Every budget is solved by ModelOpt from one set of scores. Formats round weights alone, in groups, by ModelOpt's own
ranges; leaving a layer unquantized is not among the choices, and the output head does not count.
"""

import json
import re
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from transformers import AutoModelForCausalLM

SAMPLES_PER_PASS = 2


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    batches = [
        {"input_ids": ids, "labels": ids}
        for ids in torch.from_numpy(np.load(job["samples"])).split(SAMPLES_PER_PASS)
    ]
    formats = [
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {
                    "quantizer_name": "*weight_quantizer",
                    "cfg": {"num_bits": bits, "block_sizes": {-1: job["group_size"]}},
                },
            ],
            "algorithm": "max",
        }
        for bits in job["formats"].values()
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
            {"module_name_patterns": layers, "quantization_formats": formats, "allow_no_quant": False}
        ],
        disabled_layers=others,
        num_calib_steps=1,  # ranges of weights need no samples
        num_score_steps=len(batches),
        method="gradient",
    )
    answer = {}
    for limit in job["budgets"]:
        config = mtq.get_auto_quantize_config(state, {"effective_bits": limit})
        bits_of = {
            entry["quantizer_name"].removesuffix(".weight_quantizer"): entry["cfg"]["num_bits"]
            for entry in config["quant_cfg"]
            if re.search(r"\.weight_quantizer$", entry["quantizer_name"]) and entry.get("cfg")
        }
        answer[limit] = {group: bits_of[members[0]] for group, members in job["groups"].items()}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
