"""The wavefront gives the outputs of one whole forward pass per option, for every kind of chain."""

import logging

import pytest
import torch
from torch import nn

from hpcmpq.formats import Quantizer
from hpcmpq.models.chain.chain import same_values
from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.groups import find_groups
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.block_options import Changes
from hpcmpq.response.engine import make_engine
from hpcmpq.response.wavefront import Wavefront
from hpcmpq.response.whole_model import WholeModel
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import SearchSpace
from tests.allocations import peak_bytes
from tests.models_of_many_kinds import CHAINS, make

pytestmark = pytest.mark.slow

FORMATS = ("int2", "int4", "int8")


def variants_of(model, inputs, include=("*",), tie=()) -> Variants:
    groups = find_groups(model, GroupsConfig(include=include, tie=tie), inputs)
    return Variants(model, SearchSpace(groups, (FORMATS,) * len(groups)), Quantizer(group_size=8))


@torch.no_grad()
def outputs(engine, inputs, options) -> tuple[torch.Tensor, torch.Tensor]:
    z0_NTV, parts = engine.respond(inputs, options)
    found = {p: z_NTV for members, z_QNTV in parts for p, z_NTV in zip(members, z_QNTV, strict=True)}
    assert sorted(found) == sorted(options)
    return z0_NTV, torch.stack([found[p] for p in options])


SINGLE = [(name, torch.float32, 1e-4) for name in ("llama", "mixtral", "residual")]


@pytest.mark.parametrize("name, dtype, limit", [*((n, torch.float64, 1e-10) for n in CHAINS), *SINGLE])
def test_equals_whole_passes_for_every_weight_with_embeddings_and_head(name, dtype, limit):
    model, inputs = make(name, dtype)
    variants = variants_of(model, inputs)
    options = list(range(variants.space.num_options))
    z0_NTV, z_PNTV = outputs(WholeModel(model, variants), inputs, options)
    engine = make_engine("auto", variants, inputs, options_per_pass=2, options_per_wave=7)
    assert isinstance(engine, Wavefront)
    again0_NTV, again_PNTV = outputs(engine, inputs, options)
    assert engine.vectorised
    rounding = 64 * torch.finfo(dtype).eps * z0_NTV.norm()
    assert (again0_NTV - z0_NTV).norm() <= rounding
    u_PNTV = z_PNTV - z0_NTV
    error_P = ((again_PNTV - again0_NTV) - u_PNTV).flatten(1).norm(dim=1)
    assert (error_P <= limit * u_PNTV.flatten(1).norm(dim=1) + rounding).all()
    assert (u_PNTV.flatten(1).norm(dim=1) > 10 * rounding).float().mean() > 0.5


def test_any_choice_of_options_passes_and_waves_gives_the_same_outputs():
    model, inputs = make("llama")
    variants = variants_of(model, inputs)
    all_options = list(range(variants.space.num_options))
    _, expected = outputs(make_engine("auto", variants, inputs), inputs, all_options)
    for per_pass, per_wave, options in [
        (1, 1, all_options[::5]),
        (3, 1000, all_options),
        (8, 4, all_options[7:30]),
    ]:
        engine = make_engine("auto", variants, inputs, options_per_pass=per_pass, options_per_wave=per_wave)
        _, found = outputs(engine, inputs, options)
        torch.testing.assert_close(found, expected[options], rtol=1e-11, atol=1e-13)


def test_a_group_tied_across_layers_of_a_block_moves_as_one():
    model, inputs = make("llama")
    variants = variants_of(model, inputs, include=("*_proj",), tie=(("q_proj", "k_proj", "v_proj"),))
    options = list(range(variants.space.num_options))
    _, expected = outputs(WholeModel(model, variants), inputs, options)
    _, found = outputs(make_engine("auto", variants, inputs), inputs, options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_weight_shared_by_two_blocks_is_quantized_in_both():
    model, inputs = make("sequential")
    model = (
        torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)], torch.nn.Linear(4, 3)).double().eval()
    )
    model.requires_grad_(False)
    model[2].weight = model[0].weight
    inputs = {"input": torch.randn(5, 4, dtype=torch.float64)}
    variants = variants_of(model, inputs)
    assert len(variants.space.groups) == 3
    options = list(range(variants.space.num_options))
    _, expected = outputs(WholeModel(model, variants), inputs, options)
    engine = make_engine("auto", variants, inputs)
    assert isinstance(engine, Wavefront)
    _, found = outputs(engine, inputs, options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_what_is_no_chain_falls_back_with_a_notice(caplog):
    model, inputs = make("skipping")
    with caplog.at_level(logging.INFO):
        engine = make_engine("auto", variants_of(model, inputs), inputs)
    assert isinstance(engine, WholeModel)
    assert "not a chain of blocks" in caplog.text


def test_an_encoder_that_all_blocks_of_a_decoder_read_is_walked_instead_of_the_decoder():
    model, inputs = make("bart")
    every = variants_of(model, inputs, include=("*.fc1",)).space.groups
    chain = find_chain(model, inputs, every)
    assert chain is not None
    assert chain.blocks == tuple(model.model.encoder.layers)
    decoder = find_chain(model, inputs, [group for group in every if "decoder" in group.name])
    assert decoder is not None
    assert decoder.blocks == tuple(model.model.decoder.layers)


def test_options_run_one_by_one_where_vmap_cannot(caplog):
    class Branching(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if bool(x.sum() > 0) else 1.0)

    model = (
        torch.nn.ModuleDict({"layers": torch.nn.ModuleList(Branching(4, 4) for _ in range(3))})
        .double()
        .eval()
    )

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model["layers"]

        def forward(self, input):
            for layer in self.layers:
                input = layer(input)
            return input

    chain_model = Model().eval().requires_grad_(False)
    inputs = {"input": torch.randn(5, 4, dtype=torch.float64)}
    variants = variants_of(chain_model, inputs)
    options = list(range(variants.space.num_options))
    engine = make_engine("auto", variants, inputs)
    assert isinstance(engine, Wavefront)
    with caplog.at_level(logging.INFO):
        _, found = outputs(engine, inputs, options)
    assert not engine.vectorised
    assert "one by one" in caplog.text
    _, expected = outputs(WholeModel(chain_model, variants), inputs, options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options", [[0, 3, 4, 5], [0, 1, 2]], ids=["one before several", "another block before"]
)
def test_a_block_that_mixes_samples_never_sees_several_options_as_one_batch(options):
    class Mixing(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x / x.norm())

    kinds = [*[torch.nn.Linear] * 3, Mixing, torch.nn.Linear]
    model = torch.nn.Sequential(*[kind(4, 4) for kind in kinds]).double().eval().requires_grad_(False)
    inputs = {"input": torch.randn(5, 4, dtype=torch.float64)}
    variants = variants_of(model, inputs)
    _, expected = outputs(WholeModel(model, variants), inputs, options)
    engine = make_engine("auto", variants, inputs)
    assert isinstance(engine, Wavefront)
    _, found = outputs(engine, inputs, options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_blocks_and_the_model_are_left_as_they_were():
    model, inputs = make("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variants = variants_of(model, inputs)
    outputs(make_engine("auto", variants, inputs), inputs, [0, 5, 9])
    assert same_values(before, dict(model.state_dict()))
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_residual_branches_are_never_cut():
    model, inputs = make("residual")
    chain = find_chain(model, inputs)
    assert chain is not None
    assert [sum(1 for _ in block.parameters()) for block in chain.blocks] == [2, 6, 2]


def test_weights_of_several_options_are_in_memory_once(monkeypatch):
    """Of seven options, beside the stack of them one in the making, and what rounding it takes."""
    monkeypatch.setattr("hpcmpq.quantized.variants.KEPT_BYTES", 0)
    torch.manual_seed(0)
    model, inputs = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3))), {"input": torch.randn(2, 256)}
    groups = find_groups(model, GroupsConfig(), inputs)
    formats = tuple(f"int{bits}" for bits in range(2, 9))
    variants = Variants(model, SearchSpace(groups, (formats,) * len(groups)), Quantizer(group_size=64))
    changes = Changes(find_chain(model, inputs, variants.space.groups), variants)
    (tensors, _, _), peak = peak_bytes(lambda: changes.inside(list(range(7)), 0))
    [(_, stacked)] = tensors.items()
    assert stacked.equal(torch.stack([next(iter(changes._quantized(p).values())) for p in range(7)]))
    assert peak < (7 + 6) * 4 * 256 * 256
