"""Calibrate a run directory with all ranks of an MPI job: one hands out units, each other one measures.

    mpiexec -n 5 python jobs/mpi_calibrate.py RUN         # four workers on this machine
    srun --ntasks=17 python jobs/mpi_calibrate.py RUN     # sixteen workers, such as one per GPU of four nodes

It is `hpcmpq calibrate RUN --executor mpi`, for launchers that want a Python file. Start one rank more than
there are GPUs: rank 0 takes none. See docs/mpi.md.
"""

import sys
from pathlib import Path

# Works from a checkout that is not installed, too.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from hpcmpq.__main__ import main

if __name__ == "__main__":
    sys.argv = ["hpcmpq", "calibrate", *sys.argv[1:], "--executor", "mpi"]
    main()
