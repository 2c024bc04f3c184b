"""Options keep the choices of experts that the original's routers made: whole passes and the wavefront agree."""

import numpy as np
import pytest
import torch

from bench.family_models import make_inputs, make_model
from bench.family_recipes import FAMILIES
from hpcmpq.formats import Quantizer
from hpcmpq.models.groups import find_groups
from hpcmpq.models.weights import swapped
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.response.kept_choices import KeptChoices
from hpcmpq.response.wavefront import Wavefront
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import SearchSpace

NAMES = (
    "Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "DeepseekV2", "DeepseekV3", "GptOss", "Llama4",
)  # fmt: skip


def opened(name: str, formats: tuple[str, ...] = ("int2",)) -> tuple[Variants, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, inputs = make_model(FAMILIES[name]), make_inputs(FAMILIES[name], 2, 6)
    groups = find_groups(model, GroupsConfig(), inputs)
    return Variants(model, SearchSpace(groups, (formats,) * len(groups)), Quantizer(group_size=16)), inputs


def outputs(
    kind: str, variants: Variants, inputs: dict, keep: bool
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    choices = KeptChoices()
    engine = make_engine(kind, variants, inputs, options_per_pass=2, options_per_wave=3, choices=choices)
    assert kind == "whole" or isinstance(engine, Wavefront)
    options = range(variants.space.num_options)
    if not keep:
        z0_NTV, parts = engine.respond(inputs, options)
        return z0_NTV, {p: z for members, zs in parts for p, z in zip(members, zs, strict=True)}
    with choices.kept():
        z0_NTV, parts = engine.respond(inputs, options)
        found = {p: z for members, zs in parts for p, z in zip(members, zs, strict=True)}
    assert kind == "whole" or engine.fallback is None or not engine.fallback._told
    return z0_NTV, found


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_wavefront_keeps_what_whole_passes_keep(name):
    variants, inputs = opened(name)
    own = outputs("whole", variants, inputs, keep=False)[1]
    z0_NTV, kept = outputs("whole", variants, inputs, keep=True)
    _, walked = outputs("auto", variants, inputs, keep=True)
    limit = 1e-4 * float(z0_NTV.abs().max())
    assert kept.keys() == walked.keys() == own.keys()
    for p in kept:
        assert float((walked[p] - kept[p]).abs().max()) < limit
    flipped = [p for p in own if float((own[p] - kept[p]).abs().max()) > limit]
    assert flipped  # two bits change some choice of random routers


@torch.no_grad()
def test_kept_choices_are_those_that_a_router_is_told():
    """The router's module is made to give the original's experts, weighted as it weighs them now."""
    variants, inputs = opened("Qwen3Moe")
    model = variants.model
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    assert len(routers) == 2
    told: dict[int, torch.Tensor] = {}

    def listen(module, args, output):
        told[id(module)] = output[2]

    def obey(module, args, output):
        logits, _, _ = output
        index = told[id(module)]
        weight = logits.float().softmax(-1).gather(-1, index)
        weight = weight / weight.sum(-1, keepdim=True)
        return logits, weight.to(logits.dtype), index

    handles = [router.register_forward_hook(listen) for router in routers]
    model(**inputs)
    for handle in handles:
        handle.remove()
    z0_NTV, kept = outputs("auto", variants, inputs, keep=True)
    for router in routers:
        router.register_forward_hook(obey)
    for p, option in enumerate(variants.space.options):
        with swapped(model, variants.quantized(variants.space.groups[option.group], "int2")):
            expected = model(**inputs).logits
        torch.testing.assert_close(kept[p], expected, rtol=0, atol=1e-4 * float(z0_NTV.abs().max()))
    assert model.config.norm_topk_prob


def test_without_keeping_nothing_is_recorded():
    choices = KeptChoices()
    x = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    with choices.recording("here"):
        x.topk(2)
    with choices.replaying("here"):
        assert x.neg().topk(2).indices.tolist() == [[1, 2], [0, 2]]
    with choices.kept():
        with choices.recording("here"):
            x.topk(2)
        with choices.replaying("here"):
            values, indices = torch.topk(x.neg(), 2, dim=-1)
        with choices.replaying("here"):  # two batches like the recorded one
            both = torch.cat([x.neg(), 2 * x]).topk(2)
    assert indices.tolist() == [[0, 2], [1, 2]] and values.tolist() == [[-3.0, -2.0], [-5.0, -4.0]]
    assert both.indices.tolist() == 2 * [[0, 2], [1, 2]]
    assert np.array_equal(both.values.numpy(), [[-3, -2], [-5, -4], [6, 4], [10, 8]])


def test_tokens_are_counted_by_sample_and_expert():
    """Two samples of two tokens; a choice among two groups of experts beside is no router's."""
    choices = KeptChoices(num_experts=3)
    assert choices.tokens(2) is None
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0], [0.0, 5.0, 4.0], [0.0, 5.0, -4.0]])
    with choices.kept():
        with choices.recording(0):
            torch.topk(scores[:, :2], k=1)
            scores.topk(1, dim=-1)
        with choices.recording(1):
            scores.neg().topk(2)
        found = choices.tokens(2)
    assert found.tolist() == [[[2, 0, 0], [0, 2, 2]], [[0, 2, 0], [2, 0, 2]]]
