"""Exports in the engines that serve them: what an engine computes against what was measured.

    python -m bench.engines vllm                    both models, vLLM's CPU build in an environment of its own
    python -m bench.engines llama_cpp               the same in llama.cpp, compiled once: about ten minutes of one core
    python -m bench.engines vllm --models quickstart

Writes section `engines_NAME` of bench/RESULTS.md. Environments and runs are kept under runs/bench/engines.
"""

import argparse

from bench.engines import llama_cpp_python, vllm_cpu
from bench.results import table, write_section

ENGINES = {"vllm": vllm_cpu, "llama_cpp": llama_cpp_python}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--models", default="quickstart,smollm2", help="names of configs in configs/")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    engine = ENGINES[args.engine]
    rows = [
        engine.row(case, args.samples, args.tokens)
        for case in engine.CASES
        if case.model in args.models.split(",")
    ]
    chosen = "" if args.models == parser.get_default("models") else f" --models {args.models}"
    text = "\n\n".join(
        [
            f"## Exports in {engine.NAME}",
            f"`python -m bench.engines {args.engine}{chosen}`, {args.samples} samples of {args.tokens} tokens of the "
            f"evaluation text. {engine.FACTS}",
            table(engine.COLUMNS, rows),
        ]
    )
    print(text)
    write_section(f"engines_{args.engine}", text)


if __name__ == "__main__":
    main()
