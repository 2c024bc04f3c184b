"""Evaluate a solved run directory with DeepSpeed: the model sharded over all ranks, the samples shared out.

    deepspeed --num_gpus 4 jobs/deepspeed_evaluate.py RUN    # four ranks on this machine, one GPU each
    mpiexec -n 4 python jobs/deepspeed_evaluate.py RUN
    srun --ntasks=4 python jobs/deepspeed_evaluate.py RUN    # on as many nodes as the job has

It is `hpcmpq evaluate RUN --engine deepspeed`, for launchers that want a Python file. See docs/evaluate.md.
"""

import sys
from pathlib import Path

# Works from a checkout that is not installed, too.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from hpcmpq.__main__ import main

if __name__ == "__main__":
    # The deepspeed launcher passes on what it has put into the environment already.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    sys.argv = ["hpcmpq", "evaluate", *arguments, "--engine", "deepspeed"]
    main()
