"""Cut nodes against hand-drawn graphs and brute force; the partition of real models; pieces that run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcmpq.errors import UserError
from hpcmpq.models.groups import find_groups
from hpcmpq.models.outputs import forward
from hpcmpq.settings import GroupsConfig
from hpcmpq.timing.subgraphs import cut_nodes, partition, stages, trace_model
from hpcmpq.timing.subgraphs.pieces import boundary, build_piece, signature
from tests.models_of_many_kinds import CHAINS, make

pytestmark = pytest.mark.slow

HAND_DRAWN = {
    # in → a → b → out
    "chain": ({"in": "a", "a": "b", "b": ["out"]}, ["in", "a", "b", "out"]),
    # in → a → + → out, in → +
    "residual": ({"in": ["a", "+"], "a": ["+"], "+": ["out"]}, ["in", "+", "out"]),
    # x feeds q, k and v, which meet in the attention; o adds to the residual stream
    "attention": (
        {
            "in": ["norm", "+"],
            "norm": ["q", "k", "v"],
            "q": ["qk"],
            "k": ["qk"],
            "qk": ["av"],
            "v": ["av"],
            "av": ["o"],
            "o": ["+"],
            "+": ["out"],
        },
        ["in", "+", "out"],
    ),
    # two branches that never meet again before the end, with a chain in front
    "parallel": (
        {"in": ["s"], "s": ["a1", "b1"], "a1": ["a2"], "b1": ["out"], "a2": ["out"]},
        ["in", "s", "out"],
    ),
    # a long skip connection over two residual blocks leaves no cut between them
    "long skip": (
        {
            "in": ["a", "+1", "end"],
            "a": ["+1"],
            "+1": ["b", "+2"],
            "b": ["+2"],
            "+2": ["end"],
            "end": ["out"],
        },
        ["in", "end", "out"],
    ),
    # dead ends and side inputs are on no path from source to sink
    "side": (
        {"in": ["a", "dead"], "mask": ["b"], "a": ["b"], "b": ["out"], "dead": []},
        ["in", "a", "b", "out"],
    ),
}


@pytest.mark.parametrize("name", HAND_DRAWN)
def test_known_cuts(name: str):
    edges, expected = HAND_DRAWN[name]
    assert cut_nodes(edges, "in", "out") == expected


def test_stages_end_with_their_cut():
    edges, cuts = HAND_DRAWN["attention"]
    parts = stages(edges, "in", "out")
    assert [part[-1] for part in parts] == cuts
    assert set(parts[1]) == {"norm", "q", "k", "v", "qk", "av", "o", "+"}


@st.composite
def dags(draw: st.DrawFn) -> dict[int, list[int]]:
    """Random edges from smaller to larger numbers, renumbered so that numbers say nothing about the order."""
    size = draw(st.integers(2, 9))
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    kept = draw(st.lists(st.sampled_from(pairs), unique=True))
    name = draw(st.permutations(range(size)))
    edges: dict[int, list[int]] = {name[n]: [] for n in range(size)}
    for a, b in kept:
        edges[name[a]].append(name[b])
    edges[-1], edges[-2] = [name[0]], []  # source in front of the first, sink behind the last
    edges[name[size - 1]].append(-2)
    return edges


def connected(edges: dict[int, list[int]], without: int | None = None) -> bool:
    """Whether a path leads from -1 to -2 that avoids one node."""
    seen, stack = set(), [-1]
    while stack:
        node = stack.pop()
        if node not in seen and node != without:
            seen.add(node)
            stack.extend(edges[node])
    return -2 in seen


@given(dags())
def test_cuts_are_the_nodes_whose_removal_disconnects(edges: dict[int, list[int]]):
    if not connected(edges):
        with pytest.raises(ValueError, match="no path"):
            cut_nodes(edges, -1, -2)
        return
    expected = {node for node in edges if not connected(edges, without=node)}
    found = cut_nodes(edges, -1, -2)
    assert set(found) == expected
    assert (found[0], found[-1]) == (-1, -2)
    parts = stages(edges, -1, -2)
    assert [part[-1] for part in parts] == found
    inside = {node for part in parts for node in part}
    place = {node: k for k, part in enumerate(parts) for node in part}
    for a in inside:
        for b in edges[a]:
            if b in inside:  # an edge stays in its part, or starts at the cut right in front of it
                assert place[b] == place[a] or (place[b] == place[a] + 1 and a == parts[place[a]][-1])


def test_a_cycle_is_refused():
    with pytest.raises(ValueError, match="cycle"):
        cut_nodes({"in": ["a"], "a": ["b", "out"], "b": ["a"]}, "in", "out")


def partitioned(name: str):
    model, inputs = make(name, torch.float32)
    groups = find_groups(model, GroupsConfig(), inputs)
    trace = trace_model(model, groups, inputs)
    parts = partition(trace)
    return model, inputs, groups, trace, parts


LAYERS = {
    "llama": [
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
        "mlp.gate_proj mlp.up_proj mlp.down_proj",
    ],
    "gpt2": ["attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"],
    "bert": [
        "attention.self.query attention.self.key attention.self.value attention.output.dense",
        "intermediate.dense output.dense",
    ],
    "vit": ["attention.q_proj attention.k_proj attention.v_proj attention.o_proj", "mlp.fc1 mlp.fc2"],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_transformer_falls_into_attention_and_feed_forward(name: str):
    _, _, groups, trace, parts = partitioned(name)
    found = [
        " ".join(groups[g].name.split(f".{groups[g].block}.", 1)[1] for g in part.groups)
        for part in parts
        if part.groups
    ]
    assert found == LAYERS[name] * 3
    blocks = [{groups[g].block for g in part.groups} for part in parts if part.groups]
    assert blocks == [{0}, {0}, {1}, {1}, {2}, {2}]
    assert not parts[0].groups and not parts[-1].groups
    keys = [signature(trace, part) for part in parts if part.groups]
    assert keys[0] == keys[2] == keys[4], "equal blocks are recognised"
    assert keys[1] == keys[3] and len(set(keys)) in (2, 3), "the last may lack the next block's norm"


def test_a_residual_branch_is_one_part_and_a_plain_chain_one_part_per_layer():
    _, _, groups, _, parts = partitioned("residual")
    assert [[groups[g].name for g in p.groups] for p in parts if p.groups] == [["stem"], ["first", "second"]]
    _, _, groups, _, parts = partitioned("sequential")
    assert [[groups[g].name for g in p.groups] for p in parts if p.groups] == [["0"], ["3"]]


@pytest.mark.parametrize("name", CHAINS)
def test_parts_run_one_after_the_other_to_the_same_outputs(name: str):
    model, inputs, groups, trace, parts = partitioned(name)
    assert sorted(g for part in parts for g in part.groups) == list(range(len(groups)))
    assert [node for part in parts for node in part.nodes if node in trace.uses] == list(trace.uses)
    for part in parts[1:]:
        assert boundary(trace, part.nodes)[1] == (part.result,), "a sub-graph hands on a single value"
    values = {node: inputs[key] for key, node in trace.inputs.items()}
    with torch.no_grad():
        for part in parts:
            build_piece(trace, part.nodes, {}).run(values)
        expected = forward(model, inputs)
    torch.testing.assert_close(values[trace.output], expected)


def test_what_cannot_be_traced_is_refused_in_one_sentence():
    model, inputs = make("skipping", torch.float32)
    groups = find_groups(model, GroupsConfig(), inputs)
    with pytest.raises(UserError, match="Skipping cannot be traced into a graph"):
        trace_model(model, groups, inputs)
