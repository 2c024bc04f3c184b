"""Which weights are searched, in what groups, and the checks on patterns."""

import re

import pytest
import torch
from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.groups import find_groups, num_fixed_bytes
from hpcmpq.models.weights import as_matrix, from_matrix
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import Member
from tests.models_of_many_kinds import make


def found(tiny_model, tiny_inputs, name: str, **config):
    return find_groups(tiny_model(name), GroupsConfig(**config), tiny_inputs(name))


def names(groups) -> list[str]:
    return [group.name for group in groups]


LLAMA = [
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
]


def test_llama_has_every_linear_but_the_head(tiny_model, tiny_inputs):
    groups = found(tiny_model, tiny_inputs, "llama")
    assert names(groups) == [f"model.layers.{block}.{part}" for block in range(2) for part in LLAMA]
    assert [group.block for group in groups] == [0] * 7 + [1] * 7
    q_proj = groups[0].members[0]
    assert (q_proj.parameter, q_proj.num_rows, q_proj.num_columns, q_proj.transposed) == (
        "model.layers.0.self_attn.q_proj.weight", 16, 16, False,
    )  # fmt: skip
    assert q_proj.macs == 10 * 16 * 16  # tokens × M × K
    assert groups[1].members[0].num_rows == 8  # one key head of two


def test_gpt2_weights_are_transposed_and_its_head_is_tied_to_the_embedding(tiny_model, tiny_inputs):
    groups = found(tiny_model, tiny_inputs, "gpt2")
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names(groups) == [f"transformer.h.{block}.{part}" for block in range(2) for part in parts]
    member = groups[0].members[0]
    assert (member.transposed, member.num_rows, member.num_columns, member.macs) == (True, 48, 16, 7680)


def test_tied_weights_are_one_group_that_can_be_included(tiny_model, tiny_inputs):
    for pattern in ("lm_head", "transformer.wte"):
        groups = found(tiny_model, tiny_inputs, "gpt2", include=("*.c_fc", pattern))
        assert names(groups) == ["transformer.wte", "transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]
        (member,) = groups[0].members
        assert (member.parameter, member.num_rows, member.num_columns) == ("transformer.wte.weight", 256, 16)
        assert member.macs == 10 * 256 * 16  # the head's; the embedding only looks up
        assert groups[0].block is None


def test_encoder_leaves_out_embeddings_and_the_pooler_nothing_depends_on(tiny_model, tiny_inputs):
    groups = found(tiny_model, tiny_inputs, "bert")
    assert len(groups) == 12
    assert not any("pooler" in name or "embeddings" in name for name in names(groups))
    with pytest.raises(
        UserError, match=r"'pooler\.dense' matches only modules that the outputs do not depend"
    ):
        found(tiny_model, tiny_inputs, "bert", include=("pooler.dense",))


def test_classifiers_search_the_pooler_but_not_the_classifier(tiny_model, tiny_inputs):
    assert "bert.pooler.dense" in names(found(tiny_model, tiny_inputs, "bert_classifier"))
    assert "classifier" not in names(found(tiny_model, tiny_inputs, "bert_classifier"))
    included = found(tiny_model, tiny_inputs, "bert_classifier", include=("*",))
    assert names(included)[-1] == "classifier"


def test_masked_model_searches_the_transform_but_not_the_tied_decoder(tiny_model, tiny_inputs):
    groups = names(found(tiny_model, tiny_inputs, "bert_masked"))
    assert groups[-1] == "cls.predictions.transform.dense"
    assert len(groups) == 13


def test_vision_model_leaves_out_patch_projection_and_classifier(tiny_model, tiny_inputs):
    groups = found(tiny_model, tiny_inputs, "vit")
    assert len(groups) == 6
    assert all(".layers.0." in name or ".layer.0." in name for name in names(groups))
    assert groups[0].macs == 5 * 16 * 16  # four patches and the class token
    projection = found(tiny_model, tiny_inputs, "vit", include=("*patch_embeddings*",))
    assert [(member.num_rows, member.num_columns) for member in projection[0].members] == [(16, 3 * 8 * 8)]


def test_convolutions_count_output_positions_and_grouped_inputs(tiny_model, tiny_inputs):
    groups = found(tiny_model, tiny_inputs, "cnn", include=("*",))
    members = [group.members[0] for group in groups]
    assert [(m.num_rows, m.num_columns, m.macs) for m in members] == [
        (4, 9, 64 * 4 * 9),  # 8 × 8 positions
        (6, 2 * 9, 9 * 6 * 2 * 9),  # stride 2: 3 × 3 positions; two channel groups
        (5, 54, 5 * 54),
    ]
    assert names(found(tiny_model, tiny_inputs, "cnn")) == [
        "0",
        "2",
    ]  # without the layer that gives the outputs
    assert all(group.block is None for group in groups)


def test_head_called_by_name_is_left_out_behind_a_softmax():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.other = nn.Linear(4, 4)
            self.classifier = nn.Linear(4, 3)

        def forward(self, input):
            return self.classifier(self.other(self.fc(input))).log_softmax(-1)

    groups = find_groups(Net().eval(), GroupsConfig(), {"input": torch.ones(1, 4)})
    assert names(groups) == ["fc", "other"]


def test_model_that_forbids_gradients():
    class Net(nn.Sequential):
        @torch.no_grad()
        def forward(self, input):
            return super().forward(input)

    net = Net(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    assert names(find_groups(net.eval(), GroupsConfig(), {"input": torch.ones(1, 4)})) == ["0", "1"]


def test_weights_in_unknown_layers_are_pointed_out(caplog):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.stacked = nn.Parameter(torch.ones(2, 4, 4))
            self.last = nn.Linear(4, 2)

        def forward(self, input):
            return self.last(self.first(input) @ self.stacked.sum(0))

    assert names(find_groups(Experts().eval(), GroupsConfig(), {"input": torch.ones(1, 4)})) == ["first"]
    assert "52 % of the weights are in no linear layer" in caplog.text  # 32 of 62
    assert "first stacked" in caplog.text


def test_shared_module_is_counted_every_time_it_runs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.again = self.first
            self.twin = nn.Linear(4, 4)
            self.twin.weight = self.first.weight
            self.last = nn.Linear(4, 2)

        def forward(self, input):
            return self.last(self.twin(self.again(self.first(input))))

    groups = find_groups(Net().eval(), GroupsConfig(), {"input": torch.ones(1, 4)})
    assert names(groups) == ["first"]
    assert groups[0].macs == 3 * 16
    assert groups[0].numel == 16


def test_tie_fuses_modules_of_one_parent(tiny_model, tiny_inputs):
    tie = (("q_proj", "k_proj", "v_proj"), ("gate_*", "up_*"))
    groups = found(tiny_model, tiny_inputs, "llama", tie=tie)
    assert names(groups)[:4] == [
        "model.layers.0.self_attn.{q_proj,k_proj,v_proj}",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.{gate_proj,up_proj}",
        "model.layers.0.mlp.down_proj",
    ]
    assert [len(group.members) for group in groups] == [3, 1, 2, 1] * 2
    assert [group.block for group in groups] == [0] * 4 + [1] * 4


def test_include_and_exclude_are_wildcards_and_exclude_wins(tiny_model, tiny_inputs):
    groups = found(tiny_model, tiny_inputs, "llama", include=("*.mlp.*",), exclude=("model.layers.0.*",))
    assert names(groups) == [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"include": ("*.attention.*",)}, r"groups.include pattern '\*.attention.\*' matches no module; "
         r"there are model.embed_tokens, model.layers.0.self_attn.q_proj"),
        ({"exclude": ("model.layers.7.*",)}, r"groups.exclude pattern 'model.layers.7.\*' matches no module"),
        ({"exclude": ("*",)}, "groups leaves nothing to search; searchable modules are model.embed_tokens"),
        ({"tie": (("query", "key"),)}, "groups.tie pattern 'query' matches no searched module; "
         "last name parts are down_proj, gate_proj"),
        ({"tie": (("q_proj",), ("*_proj",))}, "groups.tie names model.layers.0.self_attn.q_proj in 2 rules"),
    ],
)  # fmt: skip
def test_wrong_patterns_are_explained(tiny_model, tiny_inputs, config, message):
    with pytest.raises(UserError, match=message):
        found(tiny_model, tiny_inputs, "llama", **config)


def test_long_lists_of_modules_are_cut():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    with pytest.raises(UserError, match="18, 19 and 10 more"):
        find_groups(model, GroupsConfig(include=("x",)), {"input": torch.ones(1, 2)})


def test_finding_groups_leaves_the_model_as_it_was(tiny_model, tiny_inputs):
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_groups(model, GroupsConfig(), tiny_inputs("llama"))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "cnn"])
def test_fixed_bytes_are_the_checkpoint_without_the_searched_weights(tiny_model, tiny_inputs, name: str):
    model = tiny_model(name)
    groups = find_groups(model, GroupsConfig(), tiny_inputs(name))
    searched = {member.parameter for group in groups for member in group.members}
    fixed = [p.numel() for key, p in model.named_parameters() if key not in searched]  # tied ones come once
    buffers = [b.numel() * b.element_size() for key, b in model.named_buffers() if key in model.state_dict()]
    assert num_fixed_bytes(model, groups) == 4 * sum(fixed) + sum(buffers)
    assert num_fixed_bytes(model, groups, torch.bfloat16) == 2 * sum(fixed) + sum(buffers)


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "cnn"])
def test_matrices_have_an_output_channel_per_row(tiny_model, tiny_inputs, name: str):
    """Scaling row m of the matrix scales output channel m of the layer and nothing else."""
    model = tiny_model(name)
    modules = dict(model.named_modules())
    for group in find_groups(model, GroupsConfig(include=("*",)), tiny_inputs(name)):
        (member,) = group.members
        parameter = model.get_parameter(member.parameter)
        matrix_MK = as_matrix(parameter, member)
        assert matrix_MK.shape == (member.num_rows, member.num_columns)
        module = modules[member.parameter.removesuffix(".weight")]
        if not isinstance(module, nn.Embedding | nn.Conv2d):
            inputs_K = torch.randn(member.num_columns, generator=torch.Generator().manual_seed(0))
            bias_M = torch.zeros(1) if module.bias is None else module.bias
            torch.testing.assert_close(module(inputs_K), matrix_MK @ inputs_K + bias_M)


@pytest.mark.parametrize(("name", "is_transposed"), [("mixtral", False), ("gpt_oss", True)])
def test_fused_experts_are_groups_of_all_experts_of_a_layer(name, is_transposed):
    model, inputs = make(name, torch.float32)
    groups = find_groups(model, GroupsConfig(include=("*.1.mlp.experts.*",)), inputs)
    assert names(groups) == [f"model.layers.1.mlp.experts.{part}_proj" for part in ("gate_up", "down")]
    assert [group.block for group in groups] == [1, 1]
    member = groups[0].members[0]
    macs, tensors = 7 * 2 * 2 * 24 * 16, 3 * 2  # gate and up of every expert
    expected = Member(groups[0].name, 3 * 2 * 24, 16, is_transposed, macs, active=2 / 3, tensors=tensors)
    assert member == expected
    weight = model.get_parameter(member.parameter)
    matrix_MK = as_matrix(weight, member)
    first_expert_MK = weight[0].t() if is_transposed else weight[0]
    assert torch.equal(matrix_MK[: 2 * 24], first_expert_MK)
    assert torch.equal(from_matrix(matrix_MK, member, weight), weight)


def test_attention_of_torch_is_searched_and_its_arithmetic_said_to_be_missing(caplog):
    model, inputs = make("attending", torch.float32)
    groups = find_groups(model, GroupsConfig(), inputs)
    assert names(groups)[:2] == [
        f"encoder.layers.0.self_attn.{part}" for part in ("in_proj_weight", "out_proj")
    ]
    assert "4 layers are used without being called, first encoder.layers.0.self_attn" in caplog.text


def test_a_model_without_layers_is_refused_with_its_largest_weight():
    recurrent = nn.LSTM(4, 4, batch_first=True).eval()
    with pytest.raises(UserError, match="no weight to search: .* its largest other weight is weight_ih_l0"):
        find_groups(recurrent, GroupsConfig(), {"input": torch.ones(1, 3, 4)})


def test_inputs_that_do_not_fit_the_model_are_refused_with_its_own_words():
    with pytest.raises(
        UserError, match=r"fails on a sample \(RuntimeError: .*given input \[1, 5\]: give what it"
    ):
        find_groups(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), GroupsConfig(), {"input": torch.ones(1, 5)}
        )


class Routed(nn.Module):
    """Experts in a list, and an `nn.Linear` that scores them; `soft` mixes them all instead of choosing."""

    def __init__(self, soft: bool, in_blocks: str = "experts") -> None:
        super().__init__()
        self.scores = nn.Linear(8, 3)
        self.stack = nn.Linear(8, 1)
        setattr(self, in_blocks, nn.ModuleList(nn.Linear(8, 8) for _ in range(3)))
        self.soft, self.in_blocks = soft, in_blocks

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        share = self.scores(input).softmax(-1)
        if not self.soft:
            with torch.no_grad():
                kept = (share + 0.1).topk(2, dim=-1).indices
            share = share * torch.zeros_like(share).scatter(-1, kept, 1.0)
        experts = torch.stack([expert(input) for expert in getattr(self, self.in_blocks)], -1)
        return (experts * share.unsqueeze(-2)).sum(-1) * self.stack(input).sigmoid()


class Model(nn.Module):
    """A layer, experts that are routed to, and a head."""

    def __init__(self, soft: bool, in_blocks: str = "experts") -> None:
        super().__init__()
        self.first, self.mixture = nn.Linear(8, 8), Routed(soft, in_blocks)
        self.head = nn.Linear(8, 3)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.head(self.mixture(self.first(input)))


@pytest.mark.parametrize(
    ("soft", "in_blocks", "kept_out"),
    [(False, "experts", {"scores", "stack"}), (True, "experts", {"scores", "stack"}), (False, "parts", {"scores"})],
    ids=["chosen by topk", "all mixed", "experts by no such name"],
)  # fmt: skip
def test_linear_layers_that_choose_experts_are_searched_only_by_name(soft, in_blocks, kept_out, caplog):
    model, inputs = Model(soft, in_blocks), {"input": torch.randn(1, 5, 8)}
    with caplog.at_level("INFO"):
        found = names(find_groups(model, GroupsConfig(), inputs))
    experts = [f"mixture.{in_blocks}.{number}" for number in range(3)]
    others = [f"mixture.{name}" for name in ("scores", "stack") if name not in kept_out]
    assert found == ["first", *others, *experts]
    assert f"{len(kept_out)} layers that choose or weigh experts stay as they are" in caplog.text
    included = find_groups(model, GroupsConfig(include=("*scores",)), inputs)
    assert names(included) == ["mixture.scores"]


SIZE = {
    "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50,
}  # fmt: skip
MIXTURES = {
    "Mixtral": {"num_local_experts": 3},
    "Qwen2Moe": {"num_experts": 3, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 8},
    "Olmoe": {"num_experts": 3, "num_experts_per_tok": 2},
    "GraniteMoe": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "JetMoe": {"num_local_experts": 3, "num_experts_per_tok": 2, "kv_channels": 8, "num_key_value_heads": 2},
    "HunYuanMoEV1": {"num_experts": 3, "moe_topk": 2, "head_dim": 8},
    "DeepseekV3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    },
    "LongcatFlash": {
        "n_routed_experts": 3, "zero_expert_num": 1, "moe_topk": 2, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 16,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        "head_dim": 4,
    },
    "Phimoe": {"num_local_experts": 3},
}  # fmt: skip


@pytest.mark.parametrize("family", MIXTURES)
def test_routers_of_transformers_are_not_searched(family):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZE, **MIXTURES[family]})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    found = names(find_groups(model, GroupsConfig(), {"input_ids": torch.randint(1, 50, (1, 7))}))
    parts = [name.rpartition("layers.")[2] for name in found]
    routing = re.compile(r"router|classifier|wg$|mlp\.gate$|shared_expert_gate")
    assert not [name for name in parts if routing.search(name)]
    assert sum(bool(re.search(r"q_proj|q_a_proj|kv_proj", name)) for name in parts) >= 2


def test_layers_that_choose_no_experts_are_still_searched(tiny_model, tiny_inputs):
    model, inputs = make("attending", torch.float32)
    assert any("linear1" in name for name in names(find_groups(model, GroupsConfig(), inputs)))
