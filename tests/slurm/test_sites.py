"""Profiles of machines go before env.sh, and what they say holds."""

import subprocess
from pathlib import Path

import pytest

from hpcmpq.slurm.settings import parse_settings

ROOT = Path(__file__).resolve().parents[2]
SITES = sorted((ROOT / "slurm/sites").glob("*.sh"))


@pytest.mark.parametrize("site", SITES, ids=lambda path: path.stem)
def test_a_profile_before_env_sh_sets_what_it_says(site: Path, tmp_path: Path):
    """As its comment tells people to: with `cat`, and with settings that `--slurm` takes."""
    mine = tmp_path / "my_site.sh"
    mine.write_text(site.read_text() + (ROOT / "slurm/env.sh").read_text())
    show = f'set -eu; . {mine}; echo "${{SBATCH_PARTITION:-}} $HPCMPQ_SCRATCH $(type -t prepare_node)"'
    said = [
        subprocess.run(
            ["bash", "-c", show],
            env={"PATH": "/usr/bin:/bin", **given},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for given in ({"TMPDIR": "/local/job"}, {"SBATCH_PARTITION": "debug", "HPCMPQ_SCRATCH": "/mine"})
    ]
    assert all(words[-1] == "function" for words in said)
    assert said[1][:2] == ["debug", "/mine"], "what was set before wins"
    [settings] = [line for line in site.read_text().splitlines() if '--slurm "' in line]
    options = parse_settings([settings.split('"')[1]], "mpi").options["calibrate"]
    gpus = options.get("gpus_per_node") or options["gres"].removeprefix("gpu:")
    assert options["ntasks_per_node"] == gpus
    assert "November 2026" in site.read_text() and "nothing of ours ran there" in site.read_text()


def test_there_are_profiles():
    assert len(SITES) == 3
