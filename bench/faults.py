"""A campaign of random faults: whatever happens to a stage, the same command ends with the same bits.

    python -m bench.faults                    1,000 faults, an hour at most; writes section `faults` of bench/RESULTS.md
    python -m bench.faults --faults 50        up to number 50 in all
    python -m bench.faults --executor mpi --faults 10  beside them, calibrations over three MPI ranks; or array, ray
    python -m bench.faults --first 7 --faults 8 --no-write     number 7 again, with all that was said

Every fault is drawn from its number: a stage of a run of three small layers, with codes of their own and two local
workers; what happens to it; and when. Of the other executors a calibration is disturbed: of three ranks of MPI, of two
tasks of an array, or on a Ray that runs beside, with two actors. Outcomes are kept in `runs/faults.jsonl`: the same
command goes on. A fault is passed when the stage, started again as often as it takes, leaves what the undisturbed run
has, less times; where it ends with a sentence that names another command, that one is run first. The campaign takes up
a fault of another version of the package only when the file is removed.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import h5py
from safetensors import SafetensorError
from safetensors.numpy import load

from bench.disturbed import ACTORS, FAULTS, NONE, Ended, become, run
from bench.forked_for import serving
from bench.results import ROOT, table, without_keys, write_section

STAGES = {
    "plan": "plan CONFIG --run-dir RUN",
    "calibrate": "calibrate RUN --workers 2",
    "reduce": "reduce RUN",
    "solve": "solve RUN",
    "refine": "refine RUN --workers 1",
    "export": "export RUN",
    "evaluate": "evaluate RUN",
}
EXECUTORS = {
    "local": "calibrate RUN --workers 2",
    "array": "calibrate RUN --workers 1",
    "mpi": "calibrate RUN --executor mpi",
    "ray": "calibrate RUN --executor ray",
}
CHECKS = {"calibrate": STAGES["calibrate"], "report": "report RUN"}
"""What looks at every shard, and at the rest."""
LIBRARIES = (
    *(f"hpcmpq.{stage}.stage" for stage in ("planning", "calibrate", "solve", "refine", "evaluate")),
    "hpcmpq.calibrate.worker", "hpcmpq.rounding.worker", "hpcmpq.refine.worker", "hpcmpq.export.fake_quantized",
    "ortools.sat.python.cp_model", "hpcmpq.cli",
)  # fmt: skip
CHANGING = {"digest", "peak_bytes", "environment"}
"""Keys of JSON files whose values follow from times, or are for people."""
COMPARED = (
    "plan.json", "samples.safetensors", "rounded/*.h5", "shards/*.h5", "quadratic.h5", "solution.json",
    "checkpoint/*.safetensors", "checkpoint/assignment.json", "evaluation.json", "evaluation_samples.npz",
)  # fmt: skip
STARTS = 5
"""How often a stage may start until it has to be done."""
PASSED = ("unhurt", "again", "named", "later")

Say = Callable[[str], object]


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        number: It was drawn from this.
        stage: What was running.
        fault: A name in `FAULTS`.
        damaged: The file, where one was damaged.
        executor: What ran its work units.
        ending: ``unhurt`` (ended well, with the same bits), ``again`` (the same command went on), ``named`` (another
            command had to run first, and the sentence said which), ``later`` (a damaged file that the stage does not
            read was mended when it was read), or what is wrong.
    """

    number: int
    stage: str
    fault: str
    damaged: str
    ending: str
    executor: str = "local"


@dataclass(frozen=True)
class Undisturbed:
    """A run after each stage, in directories of their names, and how long each took, in order.

    Work units of `calibrate` are run by the executor, whose processes a launcher starts if there is one.
    """

    folder: Path
    config: Path
    seconds: Mapping[str, float]
    executor: str = "local"
    launcher: tuple[str, ...] = ()

    def before(self, stage: str) -> Path:
        """The run as a stage finds it."""
        return self.folder / ("nothing", *self.seconds)[list(self.seconds).index(stage)]

    def run(self, stage: str, work: Path, fault: str | None, draw: random.Random) -> Ended:
        """A stage in a directory; `calibrate` by the executor."""
        shared = stage == "calibrate" and self.executor != "local"
        command = EXECUTORS[self.executor] if shared else {**STAGES, **CHECKS}[stage]
        words = [{"CONFIG": str(self.config), "RUN": str(work)}.get(word, word) for word in command.split()]
        chosen = NONE if fault is None else FAULTS[fault]
        launcher = self.launcher if shared else ()
        tasks = 2 if shared and self.executor == "array" else 1
        return run(words, chosen, draw, self.seconds.get(stage, 0.0), launcher, tasks)


@contextmanager
def launcher_of(executor: str) -> Iterator[tuple[str, ...]]:
    """The command that starts an executor's processes, which fork from this one; empty where there is none.

    Raises:
        SystemExit: If there is no mpiexec.
    """
    _read_libraries()
    if executor in ("local", "array"):
        yield ()
        return
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if executor == "mpi" and mpiexec is None:
        raise SystemExit("there is no mpiexec")
    from tests.executors.launch import mpich_memory_freed

    with mpich_memory_freed(), serving(become) as process:
        yield (str(mpiexec), "-n", "3", *process) if executor == "mpi" else process


def _read_libraries() -> None:
    """Once, so that every process which forks from this one has them."""
    for name in LIBRARIES:
        import_module(name)


@contextmanager
def cluster_of(executor: str) -> Iterator[None]:
    """A Ray of two places that clients find by their environment, where the executor is that."""
    if executor != "ray":
        yield
        return
    import ray._private.services
    from ray.cluster_utils import Cluster

    from tests.ray_cluster import ENVIRONMENT, node, patient

    ray._private.services.get_node = patient(ray._private.services.get_node)
    with tempfile.TemporaryDirectory(prefix="hq", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        os.environ.update({**ENVIRONMENT, "RAY_TMPDIR": temporary, ACTORS: "1"})
        cluster = Cluster(initialize_head=True, head_node_args={**node(), "num_cpus": 2})
        os.environ["RAY_ADDRESS"] = cluster.address
        try:
            yield
        finally:
            cluster.shutdown()


def undisturbed(
    folder: Path,
    stages: Sequence[str] = tuple(STAGES),
    executor: str = "local",
    launcher: tuple[str, ...] = (),
) -> Undisturbed:
    """The first stages without faults, kept after each; see `launcher_of`."""
    from tests.executors.tiny_model import CONFIG

    _read_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    text = CONFIG.format(method="secant", rounding="gptq", samples="more_samples")
    (folder / "config.yaml").write_text(f"{text}evaluation: {{num_samples: 8}}\n", encoding="utf-8")
    made = Undisturbed(folder, folder / "config.yaml", seconds, executor, launcher)
    work = folder / "run"
    (folder / "nothing").mkdir()
    for stage in stages:
        ended = made.run(stage, work, None, random.Random(0))
        if ended.status != 0:
            raise RuntimeError(f"{stage} without a fault ended with status {ended.status}: {ended.said}")
        seconds[stage] = ended.seconds
        shutil.copytree(work, folder / stage)
    shutil.rmtree(work)
    return made


def results(run_dir: Path) -> dict[str, str]:
    """{file: digest of what it says, less times}."""
    found = {}
    for pattern in COMPARED:
        for path in run_dir.glob(pattern):
            data = path.read_bytes()
            with suppress(ValueError, OSError, KeyError, RuntimeError, SafetensorError):  # damaged: as it is
                if path.suffix == ".json":
                    data = json.dumps(without_keys(json.loads(data), _is_changing), sort_keys=True).encode()
                elif path.suffix == ".h5":  # some of its bytes mean nothing
                    data = _contents(path)
                elif path.suffix == ".safetensors":
                    tensors = load(data)
                    data = b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))
            found[path.relative_to(run_dir).as_posix()] = hashlib.blake2b(data, digest_size=8).hexdigest()
    return found


def _is_changing(key: str) -> bool:
    return key in CHANGING or "seconds" in key


def _contents(path: Path) -> bytes:
    """All that an HDF5 file says."""
    said = []
    with h5py.File(path) as file:
        items = [("", file)]
        file.visititems(lambda name, item: items.append((name, item)))
        for name, item in items:
            said += [name, *(f"{key} {value!r}" for key, value in sorted(item.attrs.items()))]
            if isinstance(item, h5py.Dataset):
                said += [str(item.dtype), str(item.shape), repr(item[()].tolist())]
    return "\n".join(said).encode()


def suffer(number: int, whole: Undisturbed, say: Say = lambda _: None) -> Outcome:
    """Draw a fault, let it happen, and do as a user would."""
    draw = random.Random(number)
    stages = list(whole.seconds) if whole.executor == "local" else ["calibrate"]
    stage, fault = draw.choice(stages), draw.choice(list(FAULTS))
    if stage == "plan" and FAULTS[fault].before is not None:  # there is no file yet
        stage = draw.choice(stages[1:])
    work = whole.folder / "run"  # the same path each time, as plans name paths
    shutil.rmtree(work, ignore_errors=True)
    if stage != "plan":
        shutil.copytree(whole.before(stage), work)
    before = FAULTS[fault].before
    damaged = "" if before is None else before(work, draw)
    ending = _ending(stage, fault, damaged, whole, work, draw, say)
    return Outcome(number, stage, fault, damaged, ending, whole.executor)


def _ending(
    stage: str, fault: str, damaged: str, whole: Undisturbed, work: Path, draw: random.Random, say: Say
) -> str:
    """What became of a stage; of a damaged file that it does not read, what the stages after it make of it."""
    ending = _completed(stage, fault, damaged, whole, work, draw, say)
    left = _differing(work, whole.folder / stage)
    if ending in PASSED and left == {damaged}:
        stages = list(whole.seconds)
        for later in (*stages[stages.index(stage) + 1 :], *CHECKS):
            ending = _completed(later, None, damaged, whole, work, draw, say)
            if ending not in PASSED:
                return f"{later}: {ending}"
        left, ending = _differing(work, whole.folder / stages[-1]), "later"
    return f"other results without a word: {', '.join(sorted(left))}" if ending in PASSED and left else ending


def _completed(
    stage: str, fault: str | None, damaged: str, whole: Undisturbed, work: Path, draw: random.Random, say: Say
) -> str:
    """How a stage ended that was started as often as it takes, and whatever it named before it."""
    named = False
    for start in range(STARTS):
        ended = _run(stage, whole, work, fault if start == 0 else None, draw, say)
        if "Traceback" in ended.said:
            return "a traceback"
        if (
            ended.status == 2
            and whole.executor == "local"  # others say it in each process
            and len(re.findall(r"^hpcmpq: ", ended.said, flags=re.MULTILINE)) != 1
        ):
            return "not one sentence"
        # What starts other processes has a status of its own then.
        killed = start == 0 and (ended.status < 0 or whole.executor != "local")
        if ended.status not in (0, 2, 75) and not killed:
            return f"exit status {ended.status}"
        commands = [c for c in dict.fromkeys(re.findall(r"`hpcmpq ([a-z]+)", ended.said)) if c in STAGES]
        wrong = ended.status != 0 or (
            stage in whole.seconds and _differing(work, whole.folder / stage) - {damaged}
        )
        if not wrong or (ended.status == 0 and not commands):
            return "named" if named else "unhurt" if start == 0 else "again"
        for command in commands:
            if command != stage:
                named = True
                _run(command, whole, work, None, draw, say)
    return f"not done after {STARTS} starts"


def _differing(run_dir: Path, other: Path) -> set[str]:
    """Files whose contents, less times, are not the same."""
    found, expected = results(run_dir), results(other)
    return {name for name in {*found, *expected} if found.get(name) != expected.get(name)}


def _run(
    stage: str, whole: Undisturbed, work: Path, fault: str | None, draw: random.Random, say: Say
) -> Ended:
    ended = whole.run(stage, work, fault, draw)
    say(f"--- {stage}{f', {fault}' if fault else ''}: status {ended.status}\n{ended.said}")
    return ended


def report(outcomes: list[Outcome]) -> str:
    """The table: kinds of faults by what became of them, and the stages that they met."""
    rows: list[list[object]] = []
    for fault in (*FAULTS, "all"):
        own = [o for o in outcomes if fault in (o.fault, "all")]
        endings = Counter(o.ending if o.ending in PASSED else "wrong" for o in own)
        rows.append([fault, len(own), *(endings[ending] for ending in (*PASSED, "wrong"))])
    header = (
        "fault", "times", "ended well at once", "the same command went on", "after the command that it named",
        "not read by the stage, mended later", "wrong or lost",
    )  # fmt: skip
    met = Counter(o.stage for o in outcomes)
    stages = ", ".join(f"{stage} {met[stage]}" for stage in STAGES)
    by = Counter(o.executor for o in outcomes)
    executors = ", ".join(f"{by[executor]} {executor}" for executor in EXECUTORS)
    return (
        f"## Faults\n\n`python -m bench.faults`: {len(outcomes)} faults at random moments of stages of a small run, "
        f"by executor {executors};\n"
        "after each, the results have to be those of the undisturbed run, bit for bit, less times. "
        f"Stages met: {stages}.{_wrong(outcomes)}\n\n{table(header, rows)}"
    )


def _wrong(outcomes: list[Outcome]) -> str:
    """A sentence about each that did not pass."""
    wrong = [o for o in outcomes if o.ending not in PASSED]
    each = (f"number {o.number}, {o.fault}, before {o.stage}: {o.ending}" for o in wrong)
    return f"\nNot passed: {'; '.join(each)}." if wrong else ""


def main() -> None:
    """Go on with the campaign, print what is wrong, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="number of the first fault")
    parser.add_argument("--faults", type=int, default=1000, help="number after the last")
    parser.add_argument("--time-limit", type=float, default=3600.0, help="seconds")
    parser.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="of all but local, calibrations"
    )
    parser.add_argument("--no-write", action="store_true", help="print all that is said, and keep nothing")
    arguments = parser.parse_args()
    kept = ROOT / "runs" / "faults.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() and not arguments.no_write else []
    outcomes = {(o.executor, o.number): o for o in (Outcome(**json.loads(line)) for line in lines)}
    chosen = arguments.executor
    stages = tuple(STAGES) if chosen == "local" else ("plan", "calibrate")
    begun = time.monotonic()
    numbers = [n for n in range(arguments.first, arguments.faults) if (chosen, n) not in outcomes]
    with (
        tempfile.TemporaryDirectory(prefix="hpcmpq-faults-") as folder,
        launcher_of(chosen) as launcher,
        cluster_of(chosen),
    ):
        whole = undisturbed(Path(folder) / "whole", stages, chosen, launcher) if numbers else None
        for number in numbers:
            if whole is None or time.monotonic() - begun > arguments.time_limit:
                break
            outcome = suffer(number, whole, print if arguments.no_write else lambda _: None)
            outcomes[chosen, number] = outcome
            print(outcome, flush=True)
            if not arguments.no_write:
                kept.parent.mkdir(exist_ok=True)
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
    if not arguments.no_write:
        text = report([outcomes[key] for key in sorted(outcomes)])
        print(text)
        write_section("faults", text)


if __name__ == "__main__":
    main()
