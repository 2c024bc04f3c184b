"""Memory per rank and equality of numbers when evaluation is sharded: engine torch against DeepSpeed.

    python bench/sharded_evaluation.py [--ranks 1,2] [--layers 16]

A Llama with random weights, on CPU; a few minutes. Memory is what a process takes above the loaded program.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers

from tests.evaluate.solved_runs import TEXT, solved_run
from tests.executors.launch import ROOT, environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hpcmpq-bench-"))
    try:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=256, hidden_size=512, intermediate_size=1536, num_hidden_layers=options.layers,
            num_attention_heads=8, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
        values = {
            "model": {"path": str(folder / "model"), "device": "cpu"},
            "formats": ["int3", "int4"],
            "evaluation": {"num_samples": 8},
        }
        run = solved_run(folder / "run", values, TEXT)
        evaluate = [sys.executable, "-m", "hpcmpq", "evaluate", str(run.path)]
        mpiexec = str(Path(sys.executable).with_name("mpiexec"))
        commands = {"torch": evaluate}
        for count in options.ranks.split(","):
            commands[f"deepspeed, {count}"] = [mpiexec, "-n", count, *evaluate, "--engine", "deepspeed"]
        plain = None
        print(
            "| engine, ranks | piece of a rank, MB | most of a rank, MB | KL, quantized | largest difference |"
        )
        print("|---|---|---|---|---|")
        for name, command in commands.items():
            subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
            found = json.loads(run.evaluation_path.read_text(encoding="utf-8"))
            plain = plain or found
            piece = max(found.get("shard_bytes", [found["model_bytes"]])) / 1e6
            difference = max(
                abs(found[metric][model] - plain[metric][model])
                for metric in ("kl", "ce") for model in ("original", "quantized", "uniform")
            )  # fmt: skip
            peak, kl = max(found["peak_bytes"]) / 1e6, found["kl"]["quantized"]
            print(f"| {name} | {piece:.0f} | {peak:.0f} | {kl:.6g} | {difference:.1e} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
