"""Mixtures of experts: what is searched of them by default, and how much of them a token reads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.family_models import make_inputs, make_model
from bench.family_recipes import FAMILIES
from hpcmpq.examples.topics import evaluation_text
from hpcmpq.formats import Quantizer
from hpcmpq.models.active_weights import active_shares, chooses_experts
from hpcmpq.models.groups import find_groups, num_fixed_bytes
from hpcmpq.models.load import load_model, quiet_transformers
from hpcmpq.models.stored_weights import find_weights
from hpcmpq.planning.original import say_of_experts
from hpcmpq.planning.rounded_activations import of_idle_experts
from hpcmpq.problem import Budget, Problem
from hpcmpq.settings import (
    CalibrationConfig,
    Config,
    GroupsConfig,
    ModelConfig,
    SensitivityConfig,
    SolverConfig,
)
from hpcmpq.solve.costs import active_bytes_cost, active_macs_cost, size_bytes_cost
from hpcmpq.solvers.exhaustive import ExhaustiveSolver
from hpcmpq.space import SearchSpace

PLAIN = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LATENT = [f"self_attn.{part}_proj" for part in ("q_a", "q_b", "kv_b", "o")] + ["self_attn.kv_a_proj_with_mqa"]
ONE = ["gate_proj", "up_proj", "down_proj"]

# Family: attention, where experts are in the last layer, the expert beside them, what chooses in that layer.
LAST_LAYER = {
    "Mixtral": (PLAIN, "mlp.experts", None, ["mlp.gate"]),
    "Qwen3Moe": (PLAIN, "mlp.experts", None, ["mlp.gate"]),
    "Qwen2Moe": (PLAIN, "mlp.experts", "mlp.shared_expert", ["mlp.gate", "mlp.shared_expert_gate"]),
    "DeepseekV2": (LATENT, "mlp.experts", "mlp.shared_experts", ["mlp.gate"]),
    "DeepseekV3": (LATENT, "mlp.experts", "mlp.shared_experts", ["mlp.gate"]),
    "GptOss": (PLAIN, "mlp.experts", None, ["mlp.router"]),
    "Llama4": (PLAIN, "feed_forward.experts", "feed_forward.shared_expert", ["feed_forward.router"]),
    "Olmoe": (PLAIN, "mlp.experts", None, ["mlp.gate"]),
    "GraniteMoe": (PLAIN, "block_sparse_moe.experts", None, ["block_sparse_moe.router"]),
}


@pytest.mark.parametrize("name", LAST_LAYER)
def test_experts_are_a_group_of_each_projection_and_routers_are_none(name):
    """All of these have four experts in a layer, of which two are chosen."""
    attention, experts, shared, choosing = LAST_LAYER[name]
    model = make_model(FAMILIES[name])
    groups = find_groups(model, GroupsConfig(), make_inputs(FAMILIES[name], 1, 6))
    own = {g.name.removeprefix("model.layers.1."): g for g in groups if g.name.startswith("model.layers.1.")}
    fused = [f"{experts}.gate_up_proj", f"{experts}.down_proj"]
    beside = [f"{shared}.{part}" for part in ONE] if shared else []
    assert sorted(own) == sorted(attention + fused + beside)
    assert {group: [m.active for m in own[group].members] for group in own} == {
        group: [0.5 if group in fused else 1.0] for group in own
    }
    for group in fused:
        [member] = own[group].members
        assert member.numel == model.get_parameter(f"model.layers.1.{group}").numel()
    for router in choosing:
        assert f"model.layers.1.{router}.weight" in dict(model.named_parameters())


@pytest.mark.parametrize("name", LAST_LAYER)
def test_each_weight_is_read_from_the_files_as_transformers_saved_it(name, tmp_path):
    """Experts are saved one by one, fused, or transposed, as the family has it; the model in memory is the oracle."""
    model = make_model(FAMILIES[name])
    with quiet_transformers():
        model.save_pretrained(tmp_path)
    weights = find_weights(model, tmp_path, torch.float32, torch.device("cpu"))
    state = dict(model.named_parameters())
    assert set(weights.aliases) | set(weights.joined) >= set(state)
    for parameter, value in state.items():
        assert torch.equal(weights.read(parameter), value)
        assert torch.equal(weights.rows(parameter, 1, 3), value[1:3])


def test_of_a_few_experts_nothing_else_is_read(tmp_path):
    """Two of four experts in layer 0: gate and up of each."""
    model = make_model(FAMILIES["Qwen2Moe"])
    with quiet_transformers():
        model.save_pretrained(tmp_path)
    joined = find_weights(model, tmp_path, torch.float32, torch.device("cpu")).joined
    seen: list[str] = []
    joined["model.layers.0.mlp.experts.gate_up_proj"].rows(
        1, 3, lambda name: seen.append(name) or torch.ones(64, 64), lambda tensor: tensor
    )
    stem = "model.layers.0.mlp.experts"
    assert sorted(seen) == [f"{stem}.{k}.{own}_proj.weight" for k in (1, 2) for own in ("gate", "up")]


class Listed(nn.Module):
    """Four experts as layers in a list, two chosen, and a table of which a row is read for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_experts_per_tok=2)
        self.embed = nn.Embedding(10, 8)
        self.router = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 10, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        weight, index = self.router(x).softmax(-1).topk(2)
        parts = torch.stack([expert(x) for expert in self.experts], -2)
        chosen = parts.gather(-2, index[..., None].expand(*index.shape, 8))
        return self.head(x + (weight[..., None] * chosen).sum(-2))


def test_active_bytes_and_macs_agree_with_a_hand_count():
    """Experts of 8 x 8 in int4 with a bfloat16 scale a row: 8·8·4/8 + 8·2 = 48 bytes, of which half are read."""
    model = Listed()
    groups = find_groups(model, GroupsConfig(), {"input_ids": torch.zeros(1, 3, dtype=torch.long)})
    space = SearchSpace(groups, (("int4", "int8"),) * 4)
    shares = active_shares(model)
    assert shares == {
        "embed.weight": 0.1,
        **{f"experts.{k}.{own}": 0.5 for k in range(4) for own in ("weight", "bias")},
    }
    fixed = num_fixed_bytes(model, groups, shares=shares)
    assert fixed == 4 * (8 + 4 * 8 + 4 * 8 // 2 + 80)  # a row, the router, half of the biases, the head
    quantizer = Quantizer(group_size=None)
    choice_G = space.choice({group.name: "int4" for group in groups})
    read = active_bytes_cost(space, quantizer, fixed).value(choice_G, space.offset_G)
    assert read == fixed + 4 * 48 / 2
    stored = size_bytes_cost(space, quantizer, fixed).value(choice_G, space.offset_G)
    assert stored == fixed + 4 * 48
    macs = active_macs_cost(space, 3).value(choice_G, space.offset_G)
    assert macs == 4 * 64 / 2 * 4 / 16


def test_what_a_token_reads_and_the_whole_are_budgets_at_once():
    """The shared expert of a Qwen2-MoE is read by each token, its routed ones half of the time.

    Within the bytes of int4 throughout, of all weights and of those that are read, one group of int8 needs another of
    int2: what is spent on the shared expert has to come from as many bytes that are read.
    """
    model = make_model(FAMILIES["Qwen2Moe"])
    config = GroupsConfig(include=("*.1.mlp.shared_expert.*_proj", "*.1.mlp.experts.*"))
    groups = find_groups(model, config, make_inputs(FAMILIES["Qwen2Moe"], 1, 6))
    space = SearchSpace(groups, (("int2", "int4", "int8"),) * len(groups))
    quantizer = Quantizer(group_size=64)
    costs = size_bytes_cost(space, quantizer, 1000), active_bytes_cost(space, quantizer, 600)
    uniform_G = space.choice({group.name: "int4" for group in groups})
    limits = [cost.value(uniform_G, space.offset_G) for cost in costs]
    shared = np.array([option.group for option in space.options])
    is_shared_P = np.array(["shared_expert" in groups[g].name for g in shared])
    bits_P = np.array([int(option.format[3:]) for option in space.options])
    loss_P = 4.0**-bits_P * np.where(is_shared_P, 100.0, 1.0)

    def solved(*budgets: int) -> np.ndarray:
        chosen = tuple(Budget(costs[b], limits[b]) for b in budgets)
        problem = Problem(loss_P, np.zeros((len(loss_P),) * 2), space.group_P, chosen)
        found = ExhaustiveSolver().solve(problem, time_limit_s=10.0, seed=0)
        assert found.choice_G is not None
        return found.choice_G

    both_G = solved(0, 1)
    for cost, limit in zip(costs, limits, strict=True):
        assert cost.value(both_G, space.offset_G) <= limit
    one_G = solved(0)
    assert costs[1].value(one_G, space.offset_G) > limits[1]
    assert loss_P[one_G].sum() < loss_P[both_G].sum()


@torch.no_grad()
def test_the_shipped_mixture_knows_its_text_and_no_expert_of_it_is_idle():
    """Trained with the loss of balance: the least chosen of a layer's eight experts gets 1 of 130 choices."""
    model = load_model(ModelConfig(path="configs/mixture_model"))
    tokens = torch.tensor(list(evaluation_text().encode()[:4096])).view(-1, 128)
    chosen: list[Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2]))
    assert float(model(input_ids=tokens, labels=tokens).loss) < 1.4
    shares = torch.stack([torch.bincount(each.flatten(), minlength=8) / each.numel() for each in chosen])
    assert shares.shape == (4, 8)
    assert shares.min() > 0.005 and shares.max() < 0.3


@pytest.mark.parametrize(
    ("method", "dropped", "said"),
    [
        ("secant", False, ""),
        ("pairwise", False, "solver.drop_cross_terms: true"),
        ("pairwise", True, ""),
        ("fisher", False, "secant measures it"),
    ],
)
def test_methods_that_take_flips_for_something_else_are_warned_of(method, dropped, said, caplog):
    settings = {"sensitivity": SensitivityConfig(method), "solver": SolverConfig(drop_cross_terms=dropped)}
    for chooses in (False, True):
        caplog.clear()
        say_of_experts(Config(ModelConfig(), CalibrationConfig(""), **settings), chooses)
        warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert [message.endswith(said) for message in warnings] == [True] * bool(said and chooses)


def test_models_that_choose_experts_are_known():
    inputs = {"input_ids": torch.zeros(1, 3, dtype=torch.long)}
    models = {name: make_model(FAMILIES[name]) for name in ("Llama", "Qwen2Moe", "GptOss")}
    models |= {"topk": Listed(), "no topk": Mixed(), "topk of some": OneByOne()}
    for name in ("topk", "topk of some"):
        del models[name].config  # as a factory's module has none
    chosen = {name for name, model in models.items() if chooses_experts(model, inputs)}
    assert chosen == {"Qwen2Moe", "GptOss", "topk", "topk of some"}


class Mixed(Listed):
    """All experts mixed, and a choice among other things."""

    def __init__(self) -> None:
        super().__init__()
        del self.config

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        parts = torch.stack([expert(x) for expert in self.experts], -2)
        return self.head((self.router(x).softmax(-1)[..., None] * parts).sum(-2)).topk(10).values


class OneByOne(Listed):
    """Experts that run if a token was given to them."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        weight, index = self.router(x).softmax(-1).topk(2)
        output = x.clone()
        for k, expert in enumerate(self.experts):
            rows = (index == k).any(-1)
            if rows.any():
                output[rows] += (weight * (index == k)).sum(-1)[rows][..., None] * expert(x[rows])
        return self.head(output)


def test_experts_that_the_first_sample_does_not_reach_are_searched_too():
    """One token, given to two of four experts: of the two products of 8 x 8 each expert has a half."""
    groups = find_groups(OneByOne(), GroupsConfig(), {"input_ids": torch.zeros(1, 1, dtype=torch.long)})
    assert [group.name for group in groups] == [f"experts.{k}" for k in range(4)]
    assert [group.macs for group in groups] == [32] * 4


def test_static_ranges_of_experts_that_no_sample_reaches_are_the_largest_of_the_others():
    names = [f"experts.{k}" for k in range(4)]
    maxima = {"experts.0": (1.0, 5.0), "experts.2": (3.0, 2.0), "router": (9.0, 9.0)}
    assert of_idle_experts(OneByOne(), names, maxima) == {"experts.1": (3.0, 5.0), "experts.3": (3.0, 5.0)}
