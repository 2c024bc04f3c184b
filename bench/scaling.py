"""How calibration scales to 1,024 workers, and how well the prediction meets measured runs.

python -m bench.scaling             simulates plans of 8 B to 671 B; section `scaling` of bench/RESULTS.md
python -m bench.scaling --measure   predicts the quickstart on 1 and 2 workers and measures it; `makespan`
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import shared_workers, streamed_workers
from bench.results import ROOT, table, write_section
from hpcmpq.planning.dry import PASSED_BYTES, Device
from hpcmpq.planning.recommended import recommend
from hpcmpq.planning.scaling import Site, Workload, measured_workload, predict
from hpcmpq.quantizers.ranges import NUM_FACTORS
from hpcmpq.store.attempts import read_processes
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import pending

ASSUMED = """assumed, not measured: Llama shapes, seven formats, 128 samples of 512 tokens, `secant` with the
wavefront in bf16 on one GPU a worker that delivers 300 TFLOP/s, four GPUs per node; 60 s to start a container and
Python, then all workers together choose the ranges of all options, of 32 candidates at 2 TB/s; units vary by 10 %; a
file system of 50 GB/s, 5 GB/s per node. A unit is some blocks' groups on some samples. The model is in the GPU's
memory."""

RECOMMENDED = """The most workers, of up to 1,024, that `hpcmpq plan --workers` recommends: at least 80 % of their
time goes into units, here of four blocks and one sample. First every node reads the model from the file system; then,
`passed on`, one node does and sends it to two others, and so on, as `HPCMPQ_STAGE_BY=sbcast` of `slurm/env.sh` lets
Slurm do, at 5 GB/s a node."""

SPLIT = """Larger models on workers of several GPUs, which the package does not have: a worker is a process with one
GPU. These are the assumptions of earlier versions of this table: 2 GPUs a worker for 70 B, 16 for 405 B, 24 for 671
B, of whose tokens 37 B parameters run; 512 samples of 2,048 tokens in units of four blocks and one sample; nothing
but the start and reading the model before the first unit, and no ranges to choose. Seconds of a worker: there are too
few units nowhere, and the tail is short; where nodes pass the model on, 671 B has too little to do for 6,144 GPUs,
let alone 24,576, beside a minute of starting."""

NUM_SAMPLES, NUM_TOKENS, NUM_FORMATS, GROUPS_PER_BLOCK = 128, 512, 7, 7
FLOP_PER_S, STARTUP_S, SPREAD = 300e12, 60.0, 0.1
NUM_WORKERS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class Model:
    """A decoder of equal blocks; of a mixture of experts a token runs through `num_active` parameters."""

    name: str
    num_parameters: float
    num_blocks: int
    gpus_per_worker: int
    num_active: float = 0.0


SMALL = Model("8 B", 8e9, 32, 1)
LARGE = (
    Model("70 B", 70e9, 80, 2),
    Model("405 B", 405e9, 126, 16),
    Model("671 B, 37 B active", 671e9, 61, 24, 37e9),
)
CALIBRATIONS = ((128, 512), (512, 2048))
"""Samples and tokens of each."""


def unit_seconds(
    model: Model, blocks_per_unit: int, samples_per_unit: int, num_samples: int, num_tokens: int
) -> np.ndarray:
    """Seconds of every unit of a plan, [U].

    An option of block k sends one more state through the blocks k to the end; the original goes through all
    once per unit.
    """
    num_active = model.num_active or model.num_parameters
    forward_s = 2 * num_active * num_tokens / (FLOP_PER_S * model.gpus_per_worker)
    firsts = np.arange(0, model.num_blocks, blocks_per_unit)
    seconds = []
    for first in firsts:
        blocks = np.arange(first, min(first + blocks_per_unit, model.num_blocks))
        shares = (model.num_blocks - blocks) / model.num_blocks
        seconds.append(forward_s * (1 + GROUPS_PER_BLOCK * NUM_FORMATS * shares.sum()))
    num_parts = num_samples // samples_per_unit
    return np.tile(np.array(seconds) * samples_per_unit, num_parts)


def workload(
    model: Model,
    blocks_per_unit: int,
    samples_per_unit: int,
    num_samples: int = NUM_SAMPLES,
    num_tokens: int = NUM_TOKENS,
) -> Workload:
    """Units, start-up and bytes; a shard holds four float32 projections per token of each of its options."""
    num_options = blocks_per_unit * GROUPS_PER_BLOCK * NUM_FORMATS
    return Workload(
        unit_seconds(model, blocks_per_unit, samples_per_unit, num_samples, num_tokens),
        SPREAD,
        STARTUP_S,
        2 * model.num_parameters,
        4.0 * num_options * num_tokens * 4 * samples_per_unit,
    )


def simulate() -> list[list[str]]:
    """One row per shape of the units and number of workers."""
    rows = []
    site = Site()
    for blocks_per_unit, samples_per_unit in ((SMALL.num_blocks, 16), (SMALL.num_blocks, 1), (4, 4)):
        work = with_ranges(workload(SMALL, blocks_per_unit, samples_per_unit))
        for num_workers in NUM_WORKERS:
            made = predict(work, site, num_workers)
            rows.append(
                [
                    SMALL.name,
                    f"{blocks_per_unit} blocks × {samples_per_unit}",
                    str(len(work.seconds_U)),
                    f"{np.median(work.seconds_U):.3g}",
                    str(num_workers),
                    f"{made.makespan_s / 3600:.3g}",
                    f"{100 * made.efficiency:.0f} %",
                    "; ".join(f"{n} {s:.0f} s" for n, s in largest(made.losses)),
                ]
            )
    return rows


def with_ranges(work: Workload) -> Workload:
    """The workload of the small model with ranges that workers share, each chosen by one before the first unit."""
    numel = SMALL.num_parameters * NUM_FORMATS
    ranges_s = NUM_FACTORS * PASSED_BYTES * numel / Device().memory_bytes_per_s
    return replace(work, shared_s=ranges_s)


def recommendations() -> list[list[str]]:
    """The most workers of which four fifths work, in units of four blocks and a sample, by how nodes get the model."""
    rows = []
    for num_samples, num_tokens in CALIBRATIONS:
        work = with_ranges(workload(SMALL, 4, 1, num_samples, num_tokens))
        row = [SMALL.name, f"{num_samples} × {num_tokens}"]
        for passes_on in (False, True):
            site = Site(passes_on=passes_on)
            best = recommend(work, site, NUM_WORKERS[-1])
            row += [str(best.num_workers), f"{best.makespan_s / 3600:.3g}", f"{best.node_hours:.3g}"]
            at_256 = predict(work, site, 256)
            row.append(f"{100 * at_256.efficiency:.0f} %")
        rows.append(row)
    return rows


def bounds() -> list[list[str]]:
    """What the time of workers of several GPUs goes into."""
    rows = []
    for model in LARGE:
        for passes_on in (False, True):
            site = Site(workers_per_node=4 / model.gpus_per_worker, passes_on=passes_on)
            work = workload(model, 4, 1, *CALIBRATIONS[-1])
            for num_workers in (256, 1024):
                made = predict(work, site, num_workers)
                named = [
                    made.losses[name]
                    for name in ("starting", "reading the model", "too few units", "stragglers")
                ]
                rest = sum(made.losses.values()) - sum(named)
                rows.append(
                    [
                        model.name,
                        str(num_workers),
                        "passed on" if passes_on else "file system",
                        f"{100 * made.efficiency:.0f} %",
                        f"{made.ideal_s:.0f}",
                        *(f"{seconds:.0f}" for seconds in (*named, rest)),
                    ]
                )
    return rows


def largest(losses: dict[str, float]) -> list[tuple[str, float]]:
    """The two largest losses of a second or more."""
    return sorted(((n, s) for n, s in losses.items() if s >= 1.0), key=lambda loss: -loss[1])[:2]


def measure(config: Path) -> list[list[str]]:
    """Predict each run from its own first units, then measure it: what `plan --workers` promises a user."""
    rows = []
    for num_workers in (1, 2):
        with tempfile.TemporaryDirectory() as directory:
            run = RunDir(Path(directory))
            hpcmpq("plan", config, "--run-dir", run.path)
            hpcmpq("calibrate", run.path, "--workers", 1, "--at-most", 2)
            plan = read_plan(run)
            missing, _ = pending(plan, run)
            before = read_processes(run)
            site = Site(workers_per_node=num_workers, dispatch_s=0.0, create_s=0.0)
            made = predict(measured_workload(plan, before, missing), site, num_workers)
            hpcmpq("calibrate", run.path, "--workers", num_workers)
            after = read_processes(run)[-1]
            measured_s = after.attempts[-1].finished - after.started
            first_s = min(attempt.finished - attempt.seconds for attempt in after.attempts) - after.started
            rows.append(
                [
                    str(num_workers),
                    str(len(missing)),
                    f"{made.makespan_s - made.losses['starting']:.1f}",
                    f"{measured_s - first_s:.1f}",
                    f"{made.makespan_s:.1f}",
                    f"{measured_s:.1f}",
                ]
            )
    return rows


def hpcmpq(*arguments: object) -> None:
    """Run a command of the package with one thread per process."""
    subprocess.run(
        [sys.executable, "-m", "hpcmpq", "--quiet", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
    )


def main() -> None:
    """Print a table and keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure 1 and 2 workers instead of simulating"
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    arguments = parser.parse_args()
    if arguments.measure:
        title, command = "Predicted and measured makespan", "python -m bench.scaling --measure"
        note = (
            f"{arguments.config.relative_to(ROOT)} on {len(os.sched_getaffinity(0))} cores, load average "
            f"{os.getloadavg()[0]:.1f} at the start: two units measured by one worker, the others predicted."
        )
        header = (
            "workers",
            "units",
            "units: predicted s",
            "measured s",
            "with start-up: predicted s",
            "measured s",
        )
        rows = measure(arguments.config)
    else:
        title, command, note = "Simulated scaling", "python -m bench.scaling", ASSUMED
        header = ("model", "unit", "units", "median s", "workers", "hours", "efficiency", "largest losses")
        rows = simulate()
    shown = table(header, rows)
    print(shown)
    name = "makespan" if arguments.measure else "scaling"
    if not arguments.measure:
        columns = ("workers", "hours", "node hours", "of 256 workers")
        header = ("model", "samples × tokens", *columns, *(f"{column}, passed on" for column in columns))
        shown += f"\n\n{RECOMMENDED}\n\n{table(header, recommendations())}"
        shown += f"\n\n{streamed_workers.section()}\n\n{shared_workers.section()}"
        header = ("model", "workers", "model from", "efficiency", "units, s", "starting", "reading the model")
        shown += f"\n\n{SPLIT}\n\n{table((*header, 'too few units', 'tail', 'rest'), bounds())}"
        print(shown)
    write_section(name, f"## {title}\n\n`{command}`: {note}\n\n{shown}")


if __name__ == "__main__":
    main()
