"""Memory that the stages of a streamed model really take, as the kernel counts it, against the plan's prediction.

Refinement, which walks as calibration and evaluation do, would take as long as all of them: of its worker the tensors
are counted in `test_cost_estimate.py`.
Limits of address space would not say so: building a model without weights takes addresses that nobody ever touches.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.stage import calibrate
from hpcmpq.config import parse_config
from hpcmpq.evaluate import evaluate
from hpcmpq.executors.in_process import InProcess
from hpcmpq.export import export
from hpcmpq.export.safetensors_shards import SafetensorsShards, room_for
from hpcmpq.planning.cost_estimate import PEAK_FACTOR
from hpcmpq.planning.stage import prepare
from hpcmpq.rounding.stage import reround
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import read_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

WIDTH, BLOCKS = 512, 11

ALLOWED = 1 / 3
"""Share of the model's weights that a stage may take beyond what the process has."""

OTHER_BYTES = 8e6
"""Resident beside tensors: pages of files, objects, memory that malloc keeps in pieces."""

BUDGETS = {"weight_bits": 6.0}


def write_model(folder: Path, width: int, num_blocks: int) -> int:
    """A Llama in small files, since pages of one that is mapped count, and a text; bytes of its weights."""
    (folder / "model").mkdir(parents=True)
    (folder / "text.txt").write_text("every block is read when it runs, and forgotten after. " * 40)
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=5 * width // 2, num_hidden_layers=num_blocks, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=256, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.device("meta"):
        bare = transformers.LlamaForCausalLM(config)
    shapes = {name: p.shape for name, p in bare.named_parameters()}
    shards = SafetensorsShards(folder / "model", room_for(list(shapes)), 2**22)
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        shards.add(
            name, 0.05 * torch.randn(shape, generator=generator) if len(shape) > 1 else torch.ones(shape)
        )
    shards.end()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder / "model")
    return sum(4 * shape.numel() for shape in shapes.values())


def stages(folder: Path) -> dict[str, Callable[[], object]]:
    """{what the plan calls it: a stage}, to be called one after the other."""
    values = {
        "model": {"path": str(folder / "model"), "stream": True, "device": "cpu"},
        "calibration": {
            "data": str(folder / "text.txt"), "num_samples": 1, "held_out": 2, "sequence_length": 8,
            "samples_per_pass": 1,
        },
        "groups": {"include": ["*.layers.[01].*.k_proj", "*.layers.[01].*.v_proj"]},
        "formats": ["int4", "int8"],
        "quantizer": {"range": "absmax"},
        "sensitivity": {"probes": 1, "options_per_pass": 2},
        "evaluation": {"num_samples": 1},
        "budgets": BUDGETS,
    }  # fmt: skip
    run = RunDir(folder / "run")

    def solved() -> None:
        reduce(run)
        solve(run, BUDGETS, settings_of(read_plan(run), time_limit_s=2.0))

    return {
        "plan": lambda: prepare(parse_config(values), run, ()),
        "calibrate": lambda: calibrate(run, InProcess(), lambda *_: None),
        "solve": solved,
        "reround": lambda: reround(run, "qep", None, lambda *_: None),
        "evaluate": lambda: evaluate(run),
        "export": lambda: export(run, "fake_quantized"),
    }


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def resident_peaks(folder: Path) -> dict[str, int]:
    """{stage: the most resident bytes beyond what this process had}."""
    found = {}
    for name, stage in stages(folder).items():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
        before = status("VmRSS")
        stage()
        found[name] = status("VmHWM") - before
    return found


def main(folder: Path) -> None:
    """Write {stage: bytes} of the large model to `peaks.json`."""
    write_model(folder / "small", 64, 2)
    resident_peaks(folder / "small")  # what is imported late is there from now on
    (folder / "peaks.json").write_text(json.dumps(resident_peaks(folder / "large")))


def test_stages_keep_to_a_third_of_the_weights_and_to_what_was_predicted(tmp_path: Path):
    weights = write_model(tmp_path / "large", WIDTH, BLOCKS)
    # in a process of its own: one in which other tests ran keeps memory of theirs in pieces
    subprocess.run(
        [sys.executable, "-m", "tests.planning.test_memory_limit", str(tmp_path)], cwd=ROOT, check=True
    )
    peaks = json.loads((tmp_path / "peaks.json").read_text())
    cost = read_json(tmp_path / "large" / "run" / "cost.json", "")
    predicted = {name: size for name, size in cost.items() if name.endswith("peak_bytes") and size}
    for name, peak in peaks.items():
        place = "peak_bytes" if name == "calibrate" else f"{name}_peak_bytes"
        expected = predicted.get(place, max(predicted.values()))
        print(f"{name}: {peak / 1e6:.1f} of {weights / 1e6:.0f} MB, predicted {expected / 1e6:.1f}")
        assert peak < ALLOWED * weights
        assert peak < PEAK_FACTOR * expected + OTHER_BYTES
    assert max(predicted.values()) < ALLOWED * weights


if __name__ == "__main__":
    main(Path(sys.argv[1]))
