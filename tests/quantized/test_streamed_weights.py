"""Weights of a streamed model under an assignment: those of the same model in memory, bit for bit."""

from dataclasses import replace

import pytest
import torch

from hpcmpq.formats import FORMATS
from hpcmpq.models.load import load_model
from hpcmpq.models.streaming import load_streamed
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from tests.export.planned import plan_run, qwen2

pytestmark = pytest.mark.slow

TIE = [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]
"""Groups of several weights, which are read one after the other: some formats have a scale that all share."""

WEIGHTS_ALONE = [
    name for name, each in FORMATS.items() if each.activation is None and (each.block or (1, 1))[1] <= 64
]
"""Formats that 128 and 192 columns can be in."""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder, made = tmp_path_factory.mktemp("streamed"), qwen2(num_hidden_layers=2)
    config = {"formats": ["int4", "int8"], "groups": {"tie": TIE}, "quantizer": {"group_size": 32}}
    return plan_run(folder, made, **config)[1]


@pytest.mark.parametrize("name", WEIGHTS_ALONE)
@torch.no_grad()
def test_outputs_are_those_of_the_model_in_memory(planned: Plan, name: str):
    space = replace(planned.space, formats=tuple((name,) for _ in planned.space.groups))
    assignment = {group.name: name for group in space.groups}
    ids = torch.arange(16)[None]
    found = []
    for streamed in (None, load_streamed(planned.config.model)):
        model = load_model(planned.config.model) if streamed is None else streamed.model
        variants = Variants(model, space, planned.config.quantizer, streamed=streamed)
        with variants.assigned(assignment):
            found.append(model(input_ids=ids).logits)
    assert torch.equal(*found)
    assert not torch.equal(found[0], load_model(planned.config.model)(input_ids=ids).logits)
