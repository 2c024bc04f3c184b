"""Nodes that are hosts: what a job's processes on them share, what not, and a host that is cut off for a while."""

import json
import re
from pathlib import Path

import pytest

from tests.slurm.toy_jobs import ROOT, output, toy_run

pytestmark = pytest.mark.slow

Hosts = dict[str, str]
NODES = {"node1", "node2", "node3"}


def on_each(hosts: Hosts, code: str, *words: str) -> dict[str, str]:
    """{what the node calls itself: what code of the shell says there}."""
    command = ["srun", "--nodes=3", "--ntasks=3", "bash", "-euc", f'said=$({code}); echo "$(hostname)|"$said']
    lines = output([*command, "bash", *words], hosts).splitlines()
    return dict(line.split("|") for line in lines)  # type: ignore[misc]


def test_a_host_has_names_addresses_and_files_of_its_own(hosts: Hosts, tmp_path: Path):
    addresses = on_each(hosts, "hostname -I")
    assert addresses.keys() == NODES
    assert {re.sub(r"10\.77\.\d+\.", "node", address.strip()) for address in addresses.values()} == NODES
    mark = "touch {0}/$(hostname); sleep 0.5; ls {0} | grep node | sort | paste -s -d,"
    for directory in ("/tmp", "/dev/shm"):
        assert on_each(hosts, mark.format(directory)) == {node: node for node in NODES}
    assert set(on_each(hosts, mark.format(tmp_path)).values()) == {"node1,node2,node3"}


@pytest.mark.parametrize("way", ["copy", "sbcast"])
def test_each_host_gets_a_copy_of_the_model(hosts: Hosts, tmp_path: Path, way: str):
    model, run = tmp_path / f"model-{way}", tmp_path / "run"
    (model / "a folder").mkdir(parents=True)
    (model / "weights").write_text("some")
    (model / "a folder" / "with more").write_text("")
    run.mkdir()
    (run / "plan.json").write_text(json.dumps({"config": {"model": {"path": str(model)}}}))
    alone = "stage_here() { return 1; }; " if way == "sbcast" else ""  # it does not fall back
    twice = f"stage_model {run}; stage_model {run}"
    copy = f'HPCMPQ_STAGE_BY={way}; . {ROOT}/slurm/env.sh; {alone}prepare_node; {twice}; echo "$HPCMPQ_MODEL_DIR"'
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/bash\nset -eu\n{copy} >{tmp_path}/copy\n")
    job = output(
        ["sbatch", "--parsable", "--nodes=3", "--ntasks=3", f"--output={tmp_path}/log", str(script)], hosts
    ).strip()
    toy_run(tmp_path / "toy", hosts).wait_for_job(job, "COMPLETED", "FAILED")
    staged = Path((tmp_path / "copy").read_text().strip())
    assert staged.is_relative_to("/tmp/hpcmpq-root") and not staged.exists(), "not on this machine's disk"
    assert on_each(hosts, 'cat "$1/weights"', str(staged)) == dict.fromkeys(NODES, "some")
    facts = {path.relative_to(model): path.stat() for path in model.rglob("*") if path.is_file()}
    for name, stat in facts.items():
        said = on_each(hosts, 'stat -c "%s %Y" "$1"', str(staged / name))
        assert said == dict.fromkeys(NODES, f"{stat.st_size} {int(stat.st_mtime)}")
    left = on_each(hosts, 'ls "$1"', str(staged.parent))
    assert all("partial" not in names for names in left.values())
