"""A config that names an engine is narrowed to what it holds, before anything is measured."""

import pytest
from torch import nn

from hpcmpq.config import GroupsConfig, parse_config
from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.deployable import deployable_groups
from hpcmpq.models.groups import find_groups
from hpcmpq.space import Group, Member, Product
from hpcmpq.targets import TARGETS, check_model, find_target, narrowed

VLLM, LLAMA_CPP = TARGETS["vllm"], TARGETS["llama_cpp"]


def names_of(groups: tuple[Group, ...]) -> list[list[str]]:
    return [[m.parameter.removesuffix(".weight").rpartition(".")[2] for m in g.members] for g in groups]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_targets_name_known_formats_and_exporters(target):
    from hpcmpq.export import EXPORTERS

    assert set(target.formats) <= set(FORMATS)
    assert target.export in EXPORTERS


def test_formats_are_narrowed_group_by_group():
    groups = (Group("a", (Member("a.weight", 8, 64),)), Group("b", (Member("b.weight", 8, 48),)))
    names = ("int3", "int4", "int8", "fp8_e5m2", "bf16")
    assert narrowed(LLAMA_CPP, groups, names, Quantizer(group_size=32)) == (
        ("int4", "int8", "bf16"),
        ("bf16",),
    )
    assert narrowed(VLLM, groups[:1], names, Quantizer()) == (("int3", "int4", "int8", "bf16"),)


def test_a_group_that_can_hold_nothing_is_refused():
    groups = (Group("b", (Member("b.weight", 8, 48),)),)
    with pytest.raises(UserError, match=r"b.weight has 48 inputs, not a multiple of quantizer.group_size 32"):
        narrowed(LLAMA_CPP, groups, ("int4", "int8"), Quantizer(group_size=32))
    with pytest.raises(UserError, match="target llama_cpp holds none of the formats int2, int3"):
        narrowed(LLAMA_CPP, groups, ("int2", "int3"), Quantizer(group_size=32))


def test_models_that_a_file_cannot_describe_are_refused():
    for target in TARGETS.values():
        check_model(target, {"model_type": "qwen2"})
    check_model(VLLM, {"model_type": "bert"})
    with pytest.raises(UserError, match=r"gguf export knows the architectures llama, .* not 'bert'"):
        check_model(LLAMA_CPP, {"model_type": "bert"})
    with pytest.raises(UserError, match="rotary positions of type 'yarn'"):
        check_model(LLAMA_CPP, {"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "vlm"}, "unknown target 'vlm'; known: transformers, vllm, llama_cpp"),
        ({"target": "llama_cpp"}, "target llama_cpp holds groups of 32 weights, quantizer.group_size is 64"),
        ({"target": "vllm", "quantizer": {"symmetric": False}}, "symmetric codes only"),
        ({"target": "vllm", "model": {"factory": "a:b"}}, "target vllm needs a Hugging Face directory"),
    ],
)
def test_what_a_target_cannot_do_is_refused_when_the_config_is_read(values, message):
    given = {"model": {"path": "m"}, "calibration": {"data": "t.txt"}, **values}
    with pytest.raises(UserError, match=message):
        parse_config(given)


def test_products_of_activations_are_refused():
    groups = (Group("scores", (), 0, (Product("attention.scores"),)),)
    with pytest.raises(UserError, match="target vllm cannot round the factors of scores"):
        narrowed(VLLM, groups, ("int8", "fp8_e4m3"), Quantizer())


def test_layers_that_the_engine_fuses_share_a_group(tiny_model, tiny_inputs):
    groups = deployable_groups(tiny_model("llama"), GroupsConfig(), tiny_inputs("llama"), VLLM)
    block = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert names_of(groups) == block * 2
    own = GroupsConfig(tie=(("q_proj", "k_proj", "v_proj"),))
    assert deployable_groups(tiny_model("llama"), own, tiny_inputs("llama"), VLLM) == groups


def test_other_targets_leave_groups_alone(tiny_model, tiny_inputs):
    model, inputs = tiny_model("llama"), tiny_inputs("llama")
    for target in (None, LLAMA_CPP):
        assert deployable_groups(model, GroupsConfig(), inputs, target) == find_groups(
            model, GroupsConfig(), inputs
        )


def test_a_tie_that_splits_fused_layers_is_refused(tiny_model, tiny_inputs):
    config = GroupsConfig(tie=(("q_proj", "k_proj"),))
    with pytest.raises(UserError, match="groups.tie splits q_proj, k_proj, v_proj"):
        deployable_groups(tiny_model("llama"), config, tiny_inputs("llama"), VLLM)


def test_a_search_of_some_fused_layers_only_is_refused(tiny_model, tiny_inputs):
    config = GroupsConfig(exclude=("*.k_proj",))
    with pytest.raises(UserError, match=r"runs model.layers.0.self_attn.q_proj and .*k_proj as one matrix"):
        deployable_groups(tiny_model("llama"), config, tiny_inputs("llama"), VLLM)


def test_layers_that_are_not_linear_are_refused(tiny_model, tiny_inputs):
    model = tiny_model("gpt2")
    assert not isinstance(model.get_submodule("transformer.h.0.attn.c_attn"), nn.Linear)
    with pytest.raises(UserError, match="holds linear layers only, transformer.h.0.attn.c_attn is a Conv1D"):
        deployable_groups(model, GroupsConfig(), tiny_inputs("gpt2"), VLLM)


def test_an_unknown_target_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="unknown target 'x'; known: transformers"):
        find_target("x")
