"""A ReFrame test of an installation: the digits run through every stage, its answer, and how long stages take.

    pip install reframe-hpc
    reframe -c bench/reframe_digits.py -r --performance-report -S hpcmpq_path=/path/to/hpcmpq -S checkout=$PWD

With `-C SITE_CONFIG` it runs on a site's partitions, for which the site sets references; those here are wide, for two
cores of any machine. ReFrame is no dependency of the package.
"""

import json
import os

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import performance_function, run_before, sanity_function, variable

STAGES = ("calibrate", "solve", "evaluate")


@rfm.simple_test
class DigitsRun(rfm.RunOnlyRegressionTest):
    """`hpcmpq run configs/digits.yaml` of a checkout."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    time_limit = "30m"
    sourcesdir = None
    hpcmpq_path = variable(str, value="hpcmpq")
    checkout = variable(str, value=os.getcwd())
    reference = {"*": dict.fromkeys(STAGES, (30.0, None, 2.0, "s"))}

    @run_before("run")
    def say_what_runs(self):
        """The command, with absolute paths: ReFrame starts it in a directory of its own."""
        self.executable = self.hpcmpq_path
        config = os.path.join(self.checkout, "configs", "digits.yaml")
        self.executable_opts = ["run", config, "--run-dir", "run"]

    @sanity_function
    def run_is_whole(self):
        """The report is written, every budget holds, and what was evaluated is what was solved."""
        solution = self._read("solution.json")
        return sn.all(
            [
                sn.assert_found(r"report in ", self.stdout),
                sn.assert_true(all(solution["costs"][k] <= v for k, v in solution["budgets"].items())),
                sn.assert_true(self._read("evaluation.json")["assignment"] == solution["assignment"]),
            ]
        )

    @performance_function("s")
    def calibrate(self):
        """Wall time of the stage."""
        return self._read("timings.json")["calibrate"]["seconds"]

    @performance_function("s")
    def solve(self):
        """Wall time of the stage."""
        return self._read("timings.json")["solve"]["seconds"]

    @performance_function("s")
    def evaluate(self):
        """Wall time of the stage."""
        return self._read("timings.json")["evaluate"]["seconds"]

    def _read(self, name):
        with open(os.path.join(self.stagedir, "run", name), encoding="utf-8") as file:
            return json.load(file)
