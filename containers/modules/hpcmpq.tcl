#%Module1.0
## Environment Modules: copy to MODULEPATH as hpcmpq/0.1.0 and set `root` to the virtual environment that hpcmpq is
## installed in. The modules are those that it was made with.
proc ModulesHelp { } {
    puts stderr "hpcmpq chooses a number format for every group of weights of a neural network."
    puts stderr "    hpcmpq submit config.yaml --run-dir RUN --slurm env=\$HPCMPQ_ENV"
}
module-whatis "hpcmpq 0.1.0: mixed-precision quantization on supercomputers"

set root /apps/hpcmpq/0.1.0

# prereq gcc/13 openmpi/5.0
conflict hpcmpq
prepend-path PATH $root/bin
setenv VIRTUAL_ENV $root
# The site's copy of slurm/env.sh, which jobs read.
setenv HPCMPQ_ENV $root/share/hpcmpq/slurm/env.sh
# Compute nodes have no internet.
setenv HF_HUB_OFFLINE 1
# Parallel file systems often have no locks.
setenv HDF5_USE_FILE_LOCKING FALSE
