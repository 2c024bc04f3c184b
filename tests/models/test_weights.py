"""Weights as matrices, and swapping them in place."""

import pytest
import torch
from torch import nn

from hpcmpq.models.load import forward
from hpcmpq.models.weights import as_matrix, called_with, from_matrix, swapped
from hpcmpq.space import Member
from tests.models_of_many_kinds import Aliased


@pytest.mark.parametrize(
    ("shape", "transposed", "rows"), [((4, 6), False, 4), ((6, 4), True, 4), ((4, 3, 2, 2), False, 4)]
)
def test_matrix_and_back(shape, transposed, rows):
    tensor = torch.arange(24.0 if len(shape) == 2 else 48.0).reshape(shape).bfloat16()
    member = Member("w", rows, tensor.numel() // rows, transposed)
    matrix = as_matrix(tensor, member)
    assert matrix.shape == (rows, tensor.numel() // rows)
    back = from_matrix(matrix.float(), member, tensor)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    if transposed:
        assert torch.equal(matrix, tensor.T)


def test_swap_changes_outputs_and_restores_every_bit(tiny_model, tiny_inputs):
    model, inputs = tiny_model("gpt2"), tiny_inputs("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    before = forward(model, inputs)
    weight = model.get_parameter(name)
    old = weight.clone()
    with swapped(model, {name: weight * 2}):
        assert torch.equal(model.get_parameter(name), old * 2)
        assert not torch.equal(forward(model, inputs), before)
    assert model.get_parameter(name) is weight
    assert torch.equal(forward(model, inputs), before)


def test_swap_is_undone_after_an_exception(tiny_model):
    model = tiny_model("cnn")
    old = model[0].weight.clone()
    with pytest.raises(RuntimeError, match="stop"), swapped(model, {"0.weight": torch.zeros_like(old)}):
        assert not model[0].weight.any()
        raise RuntimeError("stop")
    assert torch.equal(model[0].weight, old)


@pytest.mark.parametrize("name", ["transformer.wte.weight", "lm_head.weight"])
def test_swap_of_a_tied_weight_is_seen_everywhere(tiny_model, name: str):
    model = tiny_model("gpt2")
    old = model.lm_head.weight.clone()
    with swapped(model, {name: old + 1}):
        assert torch.equal(model.transformer.wte.weight, old + 1)
        assert torch.equal(model.lm_head.weight, old + 1)
    assert torch.equal(model.lm_head.weight, old)
    assert torch.equal(model.transformer.wte.weight, old)


@pytest.mark.parametrize("name", ["up.weight", "both.0.weight"])
def test_a_call_with_other_weights_leaves_a_layer_under_two_names_as_it_was(name: str):
    block, x = Aliased.Block(), torch.randn(2, 6)
    weight, before = block.up.weight, block(x)
    found = called_with(block, {name: torch.zeros(8, 6)}, (x,))
    torch.testing.assert_close(found, x + block.down(block.up.bias.relu()))
    assert block.up.weight is weight
    assert torch.equal(block(x), before)


def test_a_call_with_other_weights_gives_them_to_all_layers_that_are_tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    found = called_with(model, {"1.weight": 2 * torch.eye(3)}, (torch.ones(1, 3),))
    assert torch.equal(found, torch.full((1, 3), 4.0))


def test_swap_restores_values_that_do_not_equal_themselves():
    model = nn.Linear(2, 1).requires_grad_(False)
    model.weight[0, 0] = float("nan")
    bits = model.weight.view(torch.int32).clone()
    with swapped(model, {"weight": torch.ones(1, 2)}):
        pass
    assert torch.equal(model.weight.view(torch.int32), bits)


def test_swap_refuses_before_it_changes_anything(tiny_model):
    model = tiny_model("cnn")
    old = model[0].weight.clone()
    good = torch.zeros_like(old)
    with (
        pytest.raises(ValueError, match="no parameter '9.weight'"),
        swapped(model, {"0.weight": good, "9.weight": good}),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"0.weight is \[4, 1, 3, 3\], got \[4, 1, 3, 1\]"),
        swapped(model, {"0.weight": good[..., :1]}),
    ):
        pass
    assert torch.equal(model[0].weight, old)
