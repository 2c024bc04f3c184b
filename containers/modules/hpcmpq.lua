-- Lmod: copy to MODULEPATH as hpcmpq/0.1.0.lua and set `root` to the virtual environment that hpcmpq is installed in.
-- The modules are those that it was made with; `module load hpcmpq` then puts `hpcmpq` and its Python first.
help([[
hpcmpq chooses a number format for every group of weights of a neural network, on one node or over Slurm, PBS, MPI or Ray.

    hpcmpq submit config.yaml --run-dir RUN --slurm env=$HPCMPQ_ENV
]])
whatis("Name: hpcmpq")
whatis("Version: 0.1.0")
whatis("Description: mixed-precision quantization on supercomputers")

local root = "/apps/hpcmpq/0.1.0"

-- depends_on("gcc/13", "openmpi/5.0")
conflict("hpcmpq")
prepend_path("PATH", pathJoin(root, "bin"))
setenv("VIRTUAL_ENV", root)
-- The site's copy of slurm/env.sh, which jobs read.
setenv("HPCMPQ_ENV", pathJoin(root, "share/hpcmpq/slurm/env.sh"))
-- Compute nodes have no internet.
setenv("HF_HUB_OFFLINE", "1")
-- Parallel file systems often have no locks.
setenv("HDF5_USE_FILE_LOCKING", "FALSE")
