"""The assignment in other tools' own forms."""

import json
import re

from hpcmpq.export import export
from hpcmpq.store.json_files import write_json
from tests.export.planned import llama, mixtral, plan_run, solve_by_turns

Q0 = "model.layers.0.self_attn.q_proj"


def test_all_tools_get_every_layer(tmp_path):
    from compressed_tensors.quantization import QuantizationScheme

    run, plan = plan_run(tmp_path, llama(), formats=["int3", "int4", "int8", "bf16"])
    assignment = solve_by_turns(run, plan)
    line = export(run, "tool_configs")
    assert "left out" not in line
    directory = run.path / "exports" / "tool_configs"
    assert json.loads((directory / "assignment.json").read_text()) == assignment
    assert len(set(assignment.values())) == 4
    bits = {"int3": 3, "int4": 4, "int8": 8, "bf16": 16}

    layers = json.loads((directory / "auto_round.json").read_text())
    assert {name: values["bits"] for name, values in layers.items()} == {
        name: bits[format] for name, format in assignment.items()
    }
    assert layers[Q0] == {"bits": 3, "group_size": 64, "sym": True, "data_type": "int"}

    rules = json.loads((directory / "gptqmodel.json").read_text())
    for name, format in assignment.items():
        [rule] = [rule for rule in rules if re.match(rule[2:], name)]
        assert rule[:2] == ("-:" if format == "bf16" else "+:")
        assert rules[rule].get("bits", 16) == bits[format]

    recipe = json.loads((directory / "llm_compressor.yaml").read_text())
    modifier = recipe["quant_stage"]["quant_modifiers"]["GPTQModifier"]
    schemes = [QuantizationScheme(**group) for group in modifier["config_groups"].values()]
    read = {layer: scheme.weights.num_bits for scheme in schemes for layer in scheme.targets}
    assert read == {name: bits[format] for name, format in assignment.items() if format != "bf16"}
    unquantized = {name for name, format in assignment.items() if format == "bf16"}
    assert set(modifier["ignore"]) == {*unquantized, "lm_head", "model.embed_tokens"}

    types = [line.split("=") for line in (directory / "llama_quantize.txt").read_text().split()]
    assert len(types) == len(assignment)
    [kind] = [kind for pattern, kind in types if re.search(pattern, "blk.0.attn_q.weight")]
    assert kind == "q3_K"


def test_a_tool_that_lacks_a_format_is_left_out_with_the_reason(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["int5", "fp8_e4m3"])
    solve_by_turns(run, plan)
    line = export(run, "tool_configs")
    written = {path.name for path in (run.path / "exports" / "tool_configs").iterdir()}
    assert written == {"assignment.json", "llm_compressor.yaml", "verification.json", "SHA256SUMS"}
    for reason in (
        "auto-round has no fp8_e4m3",
        "GPTQModel has no fp8_e4m3, int5",
        "llama-quantize has no fp8",
    ):
        assert reason in line


def test_ggmls_types_and_fp4_are_no_integers_and_llama_cpp_takes_its_own(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["q4_k", "iq4_xs", "q5_1", "nvfp4a16", "bf16"])
    names = ("q4_k", "iq4_xs", "q5_1", "bf16")
    assignment = {group.name: names[place % 4] for place, group in enumerate(plan.space.groups)}
    write_json(run.solution_path, {"assignment": assignment, "costs": {"size_bytes": 1.0}})
    line = export(run, "tool_configs")
    assert "auto-round has no iq4_xs, q4_k, q5_1" in line and "GPTQModel has no iq4_xs, q4_k, q5_1" in line
    kinds = (run.path / "exports" / "tool_configs" / "llama_quantize.txt").read_text().split()
    assert [line.partition("=")[2].lower() for line in kinds] == list(assignment.values())
    fp4 = dict.fromkeys(assignment, "nvfp4a16")
    write_json(run.solution_path, {"assignment": fp4, "costs": {"size_bytes": 1.0}})
    line = export(run, "tool_configs")
    assert line.startswith("assignment.json, llm_compressor.yaml in") and "auto-round has no nvfp4a16" in line


def test_experts_in_one_tensor_have_no_name_in_other_tools(tmp_path):
    run, plan = plan_run(tmp_path, mixtral(), formats=["int4"])
    solve_by_turns(run, plan)
    line = export(run, "tool_configs")
    assert line.startswith("assignment.json in")
    assert (
        line.count("experts.gate_up_proj is no module's weight") == 3
    )  # llama.cpp has no such architecture anyway
