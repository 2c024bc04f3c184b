"""`hpcmpq demo`: a whole run of a network that is installed with the package."""

import importlib.util
from pathlib import Path
from typing import Any

from hpcmpq.cli import arguments, console
from hpcmpq.cli.app import command
from hpcmpq.cli.stages import run
from hpcmpq.errors import UserError
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import replacing

CONFIG = """\
# A small CNN on scikit-learn's handwritten digits: 6 layers, 4 formats for each.
model: {factory: "hpcmpq.examples.digits:model"}
calibration: {data: "hpcmpq.examples.digits:calibration", num_samples: 64, held_out: 32, samples_per_pass: 32}
groups: {include: ["*"]}
formats: [int2, int3, int4, int8]
quantizer: {group_size: null}
budgets: {weight_bits: 4.0}
solver: {time_limit_s: 5}
evaluation: {data: "hpcmpq.examples.digits:evaluation", num_samples: 128}
"""


@command("hpcmpq demo --run-dir runs/demo")
def demo(run_dir: arguments.RunOption = Path("runs/demo")) -> dict[str, Any] | None:
    """Every stage on a small network and images that are installed: in seconds, to see what comes out."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "the demo takes its images from scikit-learn, which is not installed; run `pip install 'hpcmpq[examples]'`"
        )
    path = RunDir(run_dir).config_path
    if path.exists() and path.read_text(encoding="utf-8") != CONFIG:
        raise UserError(f"{run_dir} holds another run; name a new directory with --run-dir")
    with replacing(path) as attempt:
        attempt.write_text(CONFIG, encoding="utf-8")
    console.title("config")
    console.say_as_is(CONFIG)
    return run(path, run_dir, workers=1)
