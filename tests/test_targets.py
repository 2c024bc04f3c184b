"""A config that names an engine is narrowed to what it holds, before anything is measured."""

import pytest
import torch
from torch import nn

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.deployable import deployable_groups
from hpcmpq.models.groups import find_groups
from hpcmpq.planning.search import search_space
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import Group, Member, Product
from hpcmpq.targets import TARGETS, check_model, find_target, narrowed
from hpcmpq.targets.gpus import GPUS, LEAST_CAPABILITY, computed_as_measured, menu

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
    with_zero_points = Quantizer(symmetric=False)  # of 8 outputs, 24 bits of int3 are no whole word
    assert narrowed(VLLM, groups[:1], names, with_zero_points) == (("int4", "int8", "bf16"),)
    with pytest.raises(UserError, match="a.weight has 8 outputs, whose zero points of 3 bits"):
        narrowed(VLLM, groups[:1], ("int3",), with_zero_points)


def test_a_group_that_can_hold_nothing_is_refused():
    groups = (Group("b", (Member("b.weight", 8, 48),)),)
    with pytest.raises(UserError, match=r"b.weight has 48 inputs, not a multiple of quantizer.group_size 32"):
        narrowed(LLAMA_CPP, groups, ("int4", "int8"), Quantizer(group_size=32))
    with pytest.raises(UserError, match="target llama_cpp holds none of the formats int2, int3"):
        narrowed(LLAMA_CPP, groups, ("int2", "int3"), Quantizer(group_size=32))


def test_static_ranges_of_inputs_are_refused_where_a_format_would_have_them():
    groups = (Group("a", (Member("a.weight", 128, 128),)),)
    static = Quantizer(activations="static")
    for target in (VLLM, TARGETS["tensorrt_llm"], TARGETS["transformers"]):
        with pytest.raises(
            UserError, match=f"target {target.name} holds no static ranges of inputs, which fp8_e4m3"
        ):
            narrowed(target, groups, ("fp8_e4m3", "mxfp8", "bf16"), static)
        blocks = ("mxfp8", "fp8_block", "nvfp4", "bf16")  # which scale inputs by themselves, whatever it says
        assert narrowed(target, groups, blocks, static) == (blocks,)
    assert narrowed(VLLM, groups, ("int4", "bf16"), static) == (("int4", "bf16"),)


def test_models_that_a_file_cannot_describe_are_refused():
    for target in TARGETS.values():
        check_model(target, {"model_type": "qwen2"})
    check_model(VLLM, {"model_type": "bert"})
    with pytest.raises(UserError, match=r"gguf export knows the architectures llama, .* not 'bert'"):
        check_model(LLAMA_CPP, {"model_type": "bert"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "vlm"}, "unknown target 'vlm'; known: transformers, vllm, llama_cpp, mlx"),
        ({"target": "llama_cpp"}, "target llama_cpp holds groups of 32 weights, quantizer.group_size is 64"),
        (
            {"target": "transformers", "quantizer": {"symmetric": False}},
            "symmetric codes only; .* target: vllm",
        ),
        ({"target": "vllm", "model": {"factory": "a:b"}}, "target vllm needs a Hugging Face directory"),
        ({"gpu": "h100"}, "set target: vllm, or leave out gpu"),
        ({"gpu": "h100", "target": "tensorrt_llm"}, "set target: vllm, or leave out gpu"),
        ({"target": "vllm", "gpu": "voodoo"}, "unknown gpu 'voodoo'; known: ampere, a100"),
        (
            {"target": "vllm", "gpu": "a100", "formats": ["fp8_e4m3", "mxfp8"]},
            "gpu a100 computes none of the formats fp8_e4m3, mxfp8 .* leave formats out for int4, int8, bf16",
        ),
    ],
)
def test_what_a_target_cannot_do_is_refused_when_the_config_is_read(values, message):
    given = {"model": {"path": "m"}, "calibration": {"data": "t.txt"}, **values}
    with pytest.raises(UserError, match=message):
        parse_config(given)


@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpus_menu_is_what_it_computes_as_measured(gpu):
    config = parse_config(
        {"model": {"path": "m"}, "calibration": {"data": "t.txt"}, "target": "vllm", "gpu": gpu}
    )
    assert config.formats == menu(gpu) == computed_as_measured(gpu, menu(gpu))
    assert set(menu(gpu)) <= set(VLLM.formats)
    assert {FORMATS[name].num_bits for name in menu(gpu)} == {4, 8, 16}


def test_newer_gpus_compute_what_older_ones_do_but_for_mxfp4_with_16_bit_inputs():
    assert set(LEAST_CAPABILITY) == set(VLLM.formats)
    by_age = [
        set(computed_as_measured(gpu, VLLM.formats)) for gpu in ("ampere", "ada", "hopper", "blackwell")
    ]
    assert all(old - {"mxfp4a16"} <= new for old, new in zip(by_age, by_age[1:], strict=False))
    # vLLM has one scheme for all weights in mxfp4, and on Blackwell its kernel rounds inputs.
    assert ["mxfp4a16" in names for names in by_age] == [True, True, True, False]
    assert by_age[1] - by_age[0] == {"fp8_e4m3", "fp8_block"}
    assert by_age[3] - by_age[2] == {"mxfp4", "mxfp8", "nvfp4"}


def test_formats_that_a_gpu_computes_otherwise_are_left_out_and_said(caplog):
    values = {"model": {"path": "m"}, "calibration": {"data": "t.txt"}, "target": "vllm", "gpu": "l40s"}
    config = parse_config({**values, "formats": ["int4", "mxfp4", "fp8_e4m3", "mxfp4a16"]})
    with caplog.at_level("INFO"):
        space = search_space(config, (Group("a", (Member("a.weight", 8, 64),)),), VLLM)
    assert space.formats == (("int4", "mxfp4a16", "fp8_e4m3"),)
    assert "vLLM on gpu l40s computes mxfp4 otherwise than measured: left out" in caplog.text


def test_a_cache_that_no_server_can_be_told_of_is_refused_before_anything_is_measured():
    values = {"model": {"path": "m"}, "calibration": {"data": "t.txt"}, "target": "vllm", "formats": ["int4"]}
    groups = (
        Group("a", (Member("a.weight", 8, 64),)),
        Group("attn.key_value_cache", (), None, (Product("attn.key_value_cache", cached=64, vectors=2),)),
    )
    mixed = parse_config({**values, "groups": {"kv_cache": ["fp8_e4m3", "bf16"]}})
    with pytest.raises(UserError, match="attn.key_value_cache is in no numbered block"):
        search_space(mixed, groups, VLLM)
    assert search_space(mixed, groups, None).formats[1] == ("fp8_e4m3", "bf16")
    alone = parse_config({**values, "groups": {"kv_cache": ["fp8_e4m3"]}})
    assert search_space(alone, groups, VLLM).formats == (("int4",), ("fp8_e4m3",))
    narrow = (groups[0], Group("attn.key_value_cache", (), 0, (Product("", cached=56, vectors=2),)))
    packed = parse_config({**values, "groups": {"kv_cache": ["bf16", "int4_per_token_head"]}})
    with pytest.raises(UserError, match="attn.key_value_cache has heads of 28 numbers"):
        search_space(packed, narrow, VLLM)
    assert search_space(packed, narrow, None).formats[1] == ("int4_per_token_head", "bf16")


def test_products_of_activations_are_refused():
    groups = (Group("scores", (), 0, (Product("attention.scores"),)),)
    with pytest.raises(UserError, match="target vllm cannot round the factors of scores"):
        narrowed(VLLM, groups, ("int8", "fp8_e4m3"), Quantizer())


@pytest.mark.slow
def test_layers_that_the_engine_fuses_share_a_group(tiny_model, tiny_inputs):
    groups = deployable_groups(tiny_model("llama"), GroupsConfig(), tiny_inputs("llama"), VLLM)
    block = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert names_of(groups) == block * 2
    own = GroupsConfig(tie=(("q_proj", "k_proj", "v_proj"),))
    assert deployable_groups(tiny_model("llama"), own, tiny_inputs("llama"), VLLM) == groups


SIZE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 1, "vocab_size": 50, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": 8, "kv_lora_rank": 8,
    "pad_token_id": 0, "first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
}  # fmt: skip
# Of each family, the layers that vLLM 0.32.0 builds as one, from its own class for the model.
FUSED = {
    "Qwen3_5": {"in_proj_qkv in_proj_z", "in_proj_a in_proj_b", "k_proj q_proj v_proj", "gate_proj up_proj"},
    "DeepseekV3": {"kv_a_proj_with_mqa q_a_proj", "gate_proj up_proj"},
    "Mixtral": {"k_proj q_proj v_proj"},
    "Phi3": set(),
    "OPT": {"k_proj q_proj v_proj"},
    "Bert": {"key query value"},
}
CLASSES = {"Qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"), "Bert": ("BertConfig", "BertForMaskedLM")}


@pytest.mark.parametrize("family", FUSED)
def test_vllm_ties_what_it_fuses_for_the_architecture(family):
    import transformers

    names = CLASSES.get(family, (f"{family}Config", f"{family}ForCausalLM"))
    values = {
        key: value
        for key, value in SIZE.items()
        if family == "Qwen3_5" or not key.startswith(("linear", "layer_"))
    }
    if family in ("OPT", "Bert"):
        values = {
            key: values[key]
            for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        }
    if family == "DeepseekV3":
        del values["head_dim"]
    torch.manual_seed(0)
    config = getattr(transformers, names[0])(**values)
    model = getattr(transformers, names[1])(config).eval().requires_grad_(False)
    model.config.architectures = [names[1]]  # as a saved one says
    inputs = {"input_ids": torch.randint(1, 50, (1, 7))}
    excluded = GroupsConfig(exclude={"Mixtral": ("*experts*",), "Qwen3_5": ("*conv1d",)}.get(family, ()))
    tied = {
        " ".join(sorted(names))
        for names in names_of(deployable_groups(model, excluded, inputs, VLLM))
        if len(names) > 1
    }
    assert tied == FUSED[family]


class Experts(nn.Module):
    """Two layers of experts in lists, as transformers 4 and models with code of their own keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"gate": nn.Linear(8, 2), "experts": nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(8, 8) for name in ("gate_proj", "up_proj", "down_proj")}) for _ in range(2)
        ), "gate_proj": nn.Linear(8, 8), "up_proj": nn.Linear(8, 8)}) for _ in range(2))  # fmt: skip
        self.head = nn.Linear(8, 3)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            share = layer["gate"](input).softmax(-1)
            share = share * (share >= share.topk(1).values)
            made = [e["down_proj"](e["gate_proj"](input) * e["up_proj"](input)) for e in layer["experts"]]
            input = (torch.stack(made, -1) * share.unsqueeze(-2)).sum(-1)
            input = input + layer["gate_proj"](input) * layer["up_proj"](input)
        return self.head(input)


def test_all_experts_of_a_layer_share_a_format_where_the_engine_wants_it(caplog):
    torch.manual_seed(0)
    with caplog.at_level("INFO"):
        groups = deployable_groups(Experts(), GroupsConfig(), {"input": torch.randn(1, 5, 8)}, VLLM)
    experts = "{experts.*.gate_proj,experts.*.up_proj,experts.*.down_proj}"
    assert [(group.name, len(group.members)) for group in groups] == [
        (f"layers.{layer}.{name}", count)
        for layer in range(2)
        for name, count in ((experts, 6), ("{gate_proj,up_proj}", 2))
    ]
    assert "is not known: those that it fuses in most models share a format" in caplog.text


def test_an_expert_that_no_token_chooses_is_not_left_behind_by_the_others(caplog):
    class Unchosen(Experts):
        """Never calls the second layer's last expert."""

        def __init__(self) -> None:
            super().__init__()
            self.layers[1]["experts"].append(
                nn.ModuleDict({name: nn.Linear(8, 8) for name in ("gate_proj", "up_proj", "down_proj")})
            )

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            kept = self.layers[1]["experts"]
            self.layers[1]["experts"] = kept[:2]
            try:
                return super().forward(input)
            finally:
                self.layers[1]["experts"] = kept

    inputs = {"input": torch.randn(1, 5, 8)}
    groups = deployable_groups(Unchosen(), GroupsConfig(), inputs, VLLM)
    [up] = [g for g in groups if any("1.experts.2.up_proj" in m.parameter for m in g.members)]
    assert sum("1.experts." in m.parameter and "up_proj" in m.parameter for m in up.members) == 3
    with pytest.raises(
        UserError,
        match=r"all experts of a layer in one format, .* does not search layers.1.experts.2.\w+_proj; exclude all",
    ):
        deployable_groups(Unchosen(), GroupsConfig(exclude=("layers.1.experts.2.*",)), inputs, VLLM)
    groups = deployable_groups(Unchosen(), GroupsConfig(exclude=("layers.1.experts.*",)), inputs, VLLM)
    assert not any("layers.1.{experts" in group.name for group in groups)


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


def test_embeddings_and_heads_are_searched_where_the_file_holds_them(tiny_model, tiny_inputs):
    model, inputs = tiny_model("llama"), tiny_inputs("llama")
    config = GroupsConfig(include=("*",))
    names = {group.name for group in deployable_groups(model, config, inputs, LLAMA_CPP)}
    assert {"model.embed_tokens", "lm_head"} <= names
    with pytest.raises(UserError, match="vllm holds linear layers only, model.embed_tokens is a Embedding"):
        deployable_groups(model, config, inputs, VLLM)


def test_an_unknown_target_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="unknown target 'x'; known: transformers"):
        find_target("x")
