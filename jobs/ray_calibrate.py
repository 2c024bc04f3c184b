"""Calibrate a run directory on a Ray cluster: what `ray job submit` starts.

    ray job submit --address http://HEAD:8265 --runtime-env jobs/ray_runtime_env.yaml --working-dir . \
        -- python jobs/ray_calibrate.py /shared/runs/a

The run directory must lie where all nodes see it. The package travels with the working directory, so nothing
needs to be installed on the nodes but its dependencies. What one worker takes (GPUs, memory) is set in the
runtime environment; see docs/ray.md.
"""

import os
import sys
from pathlib import Path

# Works from a checkout that is not installed, too.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from hpcmpq.__main__ import main

if __name__ == "__main__":
    if not os.environ.get("RAY_ADDRESS"):
        sys.exit("jobs/ray_calibrate.py runs inside `ray job submit`; elsewhere set RAY_ADDRESS")
    sys.argv = ["hpcmpq", "calibrate", *sys.argv[1:], "--executor", "ray"]
    main()
