# Copyright Spack Project Developers. See COPYRIGHT file for details.
#
# SPDX-License-Identifier: (Apache-2.0 OR MIT)

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyHpcmpq(PythonPackage):
    """Mixed-precision quantization on supercomputers: how many bits each layer gets, with a proof."""

    # In a repository of your site, packages/py_hpcmpq/package.py, with the address of your copy of the sources; or
    # from a checkout: spack develop --path /path/to/hpcmpq py-hpcmpq@main
    homepage = "file:///path/to/hpcmpq"
    git = "file:///path/to/hpcmpq"

    license("Apache-2.0")

    version("main", branch="main")

    variant("mpi", default=True, description="Work units over the ranks of an MPI job")
    variant("ray", default=False, description="Work units over the actors of a Ray cluster")
    variant("report", default=True, description="The report, with its figures")
    variant("export", default=False, description="Exports to GGUF, ONNX and compressed-tensors")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")

    depends_on("py-torch@2.6:2", type=("build", "run"))
    depends_on("py-transformers@4.56:", type=("build", "run"))
    depends_on("py-accelerate@1:", type=("build", "run"))
    depends_on("py-safetensors@0.4.5:", type=("build", "run"))
    depends_on("py-numpy@1.26:2", type=("build", "run"))
    depends_on("py-h5py@3.11:", type=("build", "run"))
    depends_on("py-scipy@1.11:", type=("build", "run"))
    depends_on("py-threadpoolctl@3.1:", type=("build", "run"))
    depends_on("py-ortools@9.11:9", type=("build", "run"))
    depends_on("py-pydantic@2.7:2", type=("build", "run"))
    depends_on("py-typer@0.12:", type=("build", "run"))
    depends_on("py-rich@13:", type=("build", "run"))
    depends_on("py-pyyaml@6:", type=("build", "run"))

    depends_on("py-mpi4py@4.0.1:", when="+mpi", type=("build", "run"))
    depends_on("py-ray@2.40:", when="+ray", type=("build", "run"))
    depends_on("py-matplotlib@3.8:", when="+report", type=("build", "run"))
    depends_on("py-jinja2@3.1:", when="+report", type=("build", "run"))
    depends_on("py-gguf@0.17:", when="+export", type=("build", "run"))
    depends_on("py-onnx@1.17:", when="+export", type=("build", "run"))
    depends_on("py-onnxscript@0.3:", when="+export", type=("build", "run"))
    depends_on("py-onnxruntime@1.20:", when="+export", type=("build", "run"))
    depends_on("py-compressed-tensors@0.18:", when="+export", type=("build", "run"))
