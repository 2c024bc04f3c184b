"""Faults of calibration jobs on three hosts of a Slurm: whatever happens, the same submission ends with the same bits.

    python -m bench.faults_on_hosts          200 faults, an hour at most; section `faults_on_hosts` of bench/RESULTS.md
    python -m bench.faults_on_hosts --first 7 --faults 8 --no-write        number 7 again, with the logs of its jobs

The hosts are network namespaces of this machine with names, addresses and disks of their own (`one_host_cluster.sh
up --hosts`, which needs root). Every fault is drawn from its number: an executor, what happens, and when. A job is
submitted again when it has ended without being done, and passes when the reduced result is that of one process without
faults, byte for byte. Outcomes are kept in `runs/faults_on_hosts.jsonl`: the same command goes on.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.distant_files import write_start_up
from bench.disturbed import flip, truncate
from bench.results import ROOT, table, write_section
from tests.slurm.conftest import cluster_environment, one_host_cluster
from tests.slurm.toy_jobs import ToyRun, output, toy_run

EXECUTORS = {
    "array": ("--array=0-2", "--nodes=1", "--exclusive", "slurm/calibrate_array.sbatch"),
    "mpi": ("--nodes=3", "--ntasks=3", "slurm/calibrate_mpi.sbatch"),
}
"""What sbatch is told. Three nodes of Ray take a minute to start here, and `tests/slurm` has them."""
UNIT_S, DONE_BEFORE, STARTS, PATIENCE_S = 0.3, 10, 5, 240.0
"""Seconds of a unit; units that are done when a job begins; submissions until it has to be done; seconds for each."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
PASSED = ("unhurt", "requeued", "again")


@dataclass(frozen=True)
class Site:
    """The cluster and what a run of the toy is without faults.

    Attributes:
        environment: In which Slurm's commands talk to it.
        folder: That hosts share.
        result: quadratic.h5.
        seconds: {executor: how long its job takes}.
    """

    environment: dict[str, str]
    folder: Path
    result: bytes
    seconds: dict[str, float]

    def processes(self, host: str) -> list[int]:
        """Those of jobs on a host."""
        network = (
            Path(self.environment["HPCMPQ_CLUSTER_DIR"], "run", "network").read_text(encoding="utf-8").strip()
        )
        listed = output(["ip", "netns", "pids", f"{network}-{host[4:]}"], self.environment).split()
        found = []
        for process in map(int, listed):
            with suppress(OSError):
                if b"SLURM_JOB_ID=" in Path(f"/proc/{process}/environ").read_bytes():
                    found.append(process)
        return found


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: `ending` is ``unhurt``, ``requeued`` (by Slurm or by itself), ``again`` (submitted
    again) or what is wrong.
    """

    number: int
    executor: str
    fault: str
    ending: str


def _cut(site: Site, job: str, draw: random.Random) -> None:
    """A cable out for so long that Slurm gives the host up, or not; what runs there goes on."""
    host = _host(draw)
    _script(site, "cut", host)
    time.sleep(draw.choice((draw.uniform(1, 6), draw.uniform(20, 35))))
    _script(site, "mend", host)


def _kill_daemon(site: Site, job: str, draw: random.Random) -> None:
    daemon = Path(site.environment["HPCMPQ_CLUSTER_DIR"], "run", f"slurmd.{_host(draw)}.pid")
    os.kill(int(daemon.read_text(encoding="utf-8")), signal.SIGKILL)
    time.sleep(draw.uniform(1, 20))
    _script(site, "up")


def _kill_host(site: Site, job: str, draw: random.Random) -> None:
    _send(site.processes(_host(draw)), signal.SIGKILL)


def _kill_one(site: Site, job: str, draw: random.Random) -> None:
    _send([draw.choice(site.processes(_host(draw)) or [0])], signal.SIGKILL)


def _stop(site: Site, job: str, draw: random.Random) -> None:
    chosen = site.processes(_host(draw))
    _send(chosen, signal.SIGSTOP)
    time.sleep(draw.uniform(0.5, 5))
    _send(chosen, signal.SIGCONT)


def _warn(site: Site, job: str, draw: random.Random) -> None:
    whom = draw.choice(([], ["--batch"], ["--full"]))
    _slurm(site, "scancel", *whom, f"--signal={draw.choice(('TERM', 'USR2'))}", job)


def _requeue(site: Site, job: str, draw: random.Random) -> None:
    _slurm(site, "scontrol", "requeue", job)


def _cancel(site: Site, job: str, draw: random.Random) -> None:
    _slurm(site, "scancel", job)


def _full(toy: ToyRun, draw: random.Random) -> str:
    """In its first start no file of the job grows beyond some blocks of 1,024 bytes."""
    return f'[ "${{SLURM_RESTART_COUNT:-0}}" != 0 ] || ulimit -f {draw.choice((0, 1, 2, 4, 8, 16))}'


def _distant(toy: ToyRun, draw: random.Random) -> str:
    """Hosts' clocks are wrong by up to two hours, and they see directories late."""
    folder = toy.run.path.parent / "distant"
    write_start_up(folder, 7200.0, draw.uniform(0.5, 3.0))
    return f"export PYTHONPATH={folder}:$PYTHONPATH"


def _flipped(toy: ToyRun, draw: random.Random) -> str:
    return f": {flip(toy.run.shards_path, draw)}"


def _shortened(toy: ToyRun, draw: random.Random) -> str:
    return f": {truncate(toy.run.shards_path, draw)}"


During = Callable[[Site, str, random.Random], None]
Before = Callable[[ToyRun, random.Random], str]
"""Also what the first submission's env.sh says."""
FAULTS: dict[str, tuple[Before | None, During | None]] = {
    "a host cut off, and back": (None, _cut),
    "a host's slurmd killed, and started again": (None, _kill_daemon),
    "all processes on a host killed": (None, _kill_host),
    "one process killed": (None, _kill_one),
    "stopped and continued on a host": (None, _stop),
    "told to stop (TERM or USR2)": (None, _warn),
    "requeued": (None, _requeue),
    "cancelled": (None, _cancel),
    "clocks that disagree, directories seen late, and a host killed": (_distant, _kill_host),
    "disk full": (_full, None),
    "a bit of a shard flipped": (_flipped, None),
    "a shard cut short": (_shortened, None),
}


def suffer(number: int, site: Site, say: Callable[[str], object]) -> Outcome:
    """Draw a fault, let it happen to a run that is partly done, and do as a user would."""
    draw = random.Random(number)
    executor, fault = draw.choice(list(EXECUTORS)), draw.choice(list(FAULTS))
    before, during = FAULTS[fault]
    toy = _prepared(site, "run")
    extra = before(toy, draw) if before else ""
    ending = ""
    for start in range(STARTS):
        job = _submit(site, toy, executor, extra if start == 0 else "")
        if start == 0 and during:
            time.sleep(draw.uniform(0, 1.1 * site.seconds[executor]))
            during(site, job, draw)
        if not _ended(site, job):
            ending = f"its job has not ended after {PATIENCE_S:.0f} s"
            break
        if toy.num_missing() == 0:
            ending = "again" if start else "requeued" if _restarted(site, job) else "unhurt"
            toy.hpcmpq("reduce", toy.run.path)
            if toy.run.quadratic_path.read_bytes() != site.result:
                ending = "another result without a word"
            break
    say(toy.log())
    _slurm(site, "scancel", job)
    _script(site, "up")
    return Outcome(number, executor, fault, ending or f"not done after {STARTS} submissions")


def _prepared(site: Site, name: str) -> ToyRun:
    """A planned run of which some units are done."""
    shutil.rmtree(site.folder / name, ignore_errors=True)
    toy = toy_run(site.folder / name, site.environment, UNIT_S)
    shutil.copytree(site.folder / "planned", toy.run.path)
    return toy


def _submit(site: Site, toy: ToyRun, executor: str, extra: str = "") -> str:
    env = toy.run.path.parent / "env.sh"
    settings = (ROOT / "slurm" / "env.sh").read_text(encoding="utf-8")
    env.write_text(f"{settings}\n{extra}\n", encoding="utf-8")
    (toy.run.path / "slurm").mkdir(exist_ok=True)
    log = f"--output={toy.run.path}/slurm/%x-%j.log"
    environment = {**toy.environment, "HPCMPQ_ENV": str(env), "HPCMPQ_MPI": "pmi2"}
    words = ["sbatch", "--parsable", "--time=10", log, *EXECUTORS[executor], str(toy.run.path)]
    return output(words, environment).strip()


def _tasks(site: Site, job: str) -> list[str]:
    shown = _slurm(site, "squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T")
    return shown.split()


def _ended(site: Site, job: str) -> bool:
    """Whether all tasks of the job end in time."""
    limit_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit_s:
        tasks = _tasks(site, job)
        if tasks and set(tasks) <= ENDED:
            return True
        time.sleep(0.5)
    return False


def _restarted(site: Site, job: str) -> bool:
    shown = _slurm(site, "scontrol", "show", "job", job, "--oneliner")
    return any(f" Restarts={count} " in shown for count in range(1, 9))


def _host(draw: random.Random) -> str:
    return f"node{draw.randint(1, 3)}"


def _script(site: Site, *words: str) -> None:
    done = one_host_cluster(site.environment, *words)
    if done.returncode != 0:
        raise RuntimeError(f"one_host_cluster.sh {' '.join(words)}: {done.stderr}")


def _slurm(site: Site, *words: str) -> str:
    """What a command of Slurm says, which may refuse: the job may have ended."""
    return subprocess.run(
        words, env=site.environment, capture_output=True, encoding="utf-8", timeout=60, check=False
    ).stdout


def _send(processes: list[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            if process:
                os.kill(process, number)


@contextmanager
def hosts() -> Iterator[Site]:
    """Three hosts, with the run of one process and each executor's time on them."""
    with tempfile.TemporaryDirectory(prefix="hpcmpq-hosts-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # which munge wants of all above its socket
        environment = cluster_environment(folder / "cluster", [folder, ROOT, Path(sys.prefix)])
        done = one_host_cluster(environment, "up", "--hosts")
        if done.returncode != 0:
            sys.exit(done.stderr.strip())
        try:
            yield _undisturbed(environment, folder)
        finally:
            one_host_cluster(environment, "down")


def _undisturbed(environment: Mapping[str, str], folder: Path) -> Site:
    whole = toy_run(folder / "whole", environment)
    whole.hpcmpq("plan", whole.config, "--run-dir", whole.run.path)
    whole.hpcmpq("calibrate", whole.run.path, "--workers", 1, "--at-most", DONE_BEFORE)
    shutil.copytree(whole.run.path, folder / "planned")
    whole.hpcmpq("calibrate", whole.run.path, "--workers", 1)
    whole.hpcmpq("reduce", whole.run.path)
    site = Site(dict(environment), folder, whole.run.quadratic_path.read_bytes(), {})
    for executor in EXECUTORS:
        begun, toy = time.monotonic(), _prepared(site, "run")
        if not _ended(site, _submit(site, toy, executor)) or toy.num_missing():
            raise RuntimeError(f"{executor} without a fault is not done: {toy.log()}")
        site.seconds[executor] = time.monotonic() - begun
    return site


def report(outcomes: list[Outcome]) -> str:
    """The table: kinds of faults by what became of them, and the executors that they met."""
    rows: list[list[object]] = []
    for fault in (*FAULTS, "all"):
        own = [o for o in outcomes if fault in (o.fault, "all")]
        endings = Counter(o.ending if o.ending in PASSED else "wrong" for o in own)
        rows.append([fault, len(own), *(endings[ending] for ending in (*PASSED, "wrong"))])
    met = Counter(o.executor for o in outcomes)
    header = (
        "fault",
        "times",
        "the job ended well",
        "it was requeued and did",
        "submitted again",
        "wrong or lost",
    )
    return (
        f"## Faults on three hosts\n\n`python -m bench.faults_on_hosts`: {len(outcomes)} faults at random moments of "
        "calibration jobs under Slurm on three hosts, which are network\nnamespaces of one machine with names, "
        f"addresses and disks of their own; {DONE_BEFORE} of 32 units are done before. After each the result has to be "
        f"that of one process, byte for byte.\nExecutors met: {', '.join(f'{name} {met[name]}' for name in EXECUTORS)}."
        f"\n\n{table(header, rows)}"
    )


def main() -> None:
    """Go on with the campaign, print what is wrong, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="number of the first fault")
    parser.add_argument("--faults", type=int, default=200, help="number after the last")
    parser.add_argument("--time-limit", type=float, default=3600.0, help="seconds")
    parser.add_argument("--no-write", action="store_true", help="print all that jobs say, and keep nothing")
    arguments = parser.parse_args()
    kept = ROOT / "runs" / "faults_on_hosts.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() and not arguments.no_write else []
    outcomes = {o.number: o for o in (Outcome(**json.loads(line)) for line in lines)}
    numbers = [n for n in range(arguments.first, arguments.faults) if n not in outcomes]
    begun = time.monotonic()
    with hosts() as site:
        for number in numbers:
            if time.monotonic() - begun > arguments.time_limit:
                break
            outcome = suffer(number, site, print if arguments.no_write else lambda _: None)
            outcomes[number] = outcome
            print(outcome, flush=True)
            if not arguments.no_write:
                kept.parent.mkdir(exist_ok=True)
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
    if not arguments.no_write:
        text = report([outcomes[key] for key in sorted(outcomes)])
        print(text)
        write_section("faults_on_hosts", text)


if __name__ == "__main__":
    main()
