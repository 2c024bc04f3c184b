"""auto-round's AutoScheme on the samples, groups and formats of a job; runs where auto-round is installed.

    python run_auto_round.py JOB.json ANSWER.json

Tied layers are its shared layers, and scales do not count, as in the job's budgets. Its loader of texts is replaced by
one of the job's samples, so that all tools see the same tokens.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from auto_round.auto_scheme import delta_loss
from auto_round.auto_scheme.gen_auto_scheme import AutoScheme, GenScheme
from auto_round.schemes import QuantizationScheme
from transformers import AutoModelForCausalLM

SAMPLES_PER_PASS = 2


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    ids = torch.from_numpy(np.load(job["samples"]))
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids.split(SAMPLES_PER_PASS)]
    delta_loss.get_dataloader = lambda *args, **kwargs: batches
    settings = AutoScheme(
        avg_bits=job["budgets"],
        options=[
            QuantizationScheme(
                bits=bits, group_size=job["group_size"], sym=True, data_type="int", act_bits=16
            )
            for bits in job["formats"].values()
        ],
        shared_layers=[members for members in job["groups"].values() if len(members) > 1],
        ignore_scale_zp_bits=True,
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=SAMPLES_PER_PASS,
        device_map="cpu",
        enable_torch_compile=False,
        low_gpu_mem_usage=False,
        low_cpu_mem_usage=False,
    )
    layers = [layer for members in job["groups"].values() for layer in members]
    found = GenScheme(
        settings, model, layers, {}, dataset=job["samples"], device_map="cpu", tokenizer=object()
    ).get_layer_config()
    answer = {
        limit: {group: found[limit][members[0]]["bits"] for group, members in job["groups"].items()}
        for limit in job["budgets"]
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
