"""The card of an export, and the command that serves it."""

from dataclasses import replace
from pathlib import Path

from hpcmpq.export.model_card import card, serve_command, write_card
from hpcmpq.plan import Plan
from hpcmpq.settings import ModelConfig
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from tests.synthetic_run import write_run


def planned_for(target: str | None, path: Path, model: str = "m") -> Plan:
    plan = read_plan(RunDir(path / "run"))
    config = replace(plan.config, target=target, model=ModelConfig(path=model))
    return replace(plan, config=config)


def test_the_card_says_what_was_chosen_and_measured(tmp_path: Path):
    write_run(tmp_path / "run")
    plan, solution = planned_for("vllm", tmp_path), dict(read_solution(RunDir(tmp_path / "run")))
    solution |= {"measured_loss": 0.05, "measured_loss_stderr": 0.01}
    solution.pop("evaluated_loss", None)
    text = card(plan, solution, "compressed_tensors")
    assert "0.05 ± 0.02 (95 % interval)" in text
    assert "vllm serve ." in text
    used = set(solution["assignment"].values())
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.endswith(" % |")]
    assert {row[0].strip() for row in rows} == used
    assert abs(sum(float(row[2].strip(" %")) for row in rows) - 100) < 0.2
    layers = sum(len(group.members) for group in plan.space.groups)
    assert sum(int(row[1]) for row in rows) == layers


def test_the_originals_card_stays(tmp_path: Path):
    write_run(tmp_path / "run")
    plan, solution = read_plan(RunDir(tmp_path / "run")), read_solution(RunDir(tmp_path / "run"))
    (tmp_path / "README.md").write_text("the original")
    write_card(tmp_path, plan, solution, "gguf")
    assert (tmp_path / "README-original.md").read_text() == "the original"
    assert "README-original.md" in (tmp_path / "README.md").read_text()


def test_every_engine_has_its_command(tmp_path: Path):
    write_run(tmp_path / "run")
    plan, assignment = planned_for(None, tmp_path), read_solution(RunDir(tmp_path / "run"))["assignment"]
    assert serve_command("onnx", Path("a/b"), plan, assignment) is None
    spaced = serve_command("mlx", Path("my runs/$x"), plan, assignment)
    assert spaced == "mlx_lm.server --model 'my runs/$x'"


def test_a_server_is_named_where_it_takes_the_files(tmp_path: Path):
    write_run(tmp_path / "run")
    assignment = read_solution(RunDir(tmp_path / "run"))["assignment"]

    def commands(name: str, model: str = "m") -> list[str | None]:
        targets = (None, "transformers", "vllm", "tensorrt_llm", "llama_cpp")
        return [serve_command(name, Path("a"), planned_for(t, tmp_path, model), assignment) for t in targets]

    assert commands("compressed_tensors") == [None, None, "vllm serve a", None, None]
    assert commands("modelopt") == [None, None, None, "trtllm-serve a", None]
    assert commands("gguf", str(tmp_path)) == [None] * 5  # without a vocabulary
    (tmp_path / "vocab.gguf").touch()
    assert commands("gguf", str(tmp_path)) == ["llama-server -m a/model.gguf"] * 5
