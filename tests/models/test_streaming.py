"""A streamed model gives the same bits as one in memory, within the memory that `hpcmpq plan` predicts."""

import dataclasses

import pytest
import torch

from hpcmpq.calibrate.neighbourhood import Neighbourhood, around
from hpcmpq.errors import UserError
from hpcmpq.models import streaming
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups, num_fixed_bytes
from hpcmpq.models.load import forward, load_model
from hpcmpq.models.stored_weights import Weights
from hpcmpq.models.streaming import load_streamed, shapes_only
from hpcmpq.models.weight_digests import weights_fingerprint
from hpcmpq.quantized import side_by_side
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.side_by_side import find_walk
from hpcmpq.quantized.variants import Variants
from hpcmpq.sensitivity.secant import measure
from hpcmpq.settings import GroupsConfig, ModelConfig, SensitivityConfig
from hpcmpq.space import SearchSpace
from tests.allocations import peak_bytes
from tests.export.planned import CORRECTION, add_stored, deepseek_v3
from tests.models.streamed_secant import make_subject, secant
from tests.models_of_many_kinds import make

pytestmark = pytest.mark.slow

NUM_BLOCKS = 12


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert_mlm", "vit", "mixtral"])
def saved(request, tmp_path_factory):
    """Directory and inputs of a small model, its weights in many files."""
    model, inputs = make(request.param, torch.float32)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory, max_shard_size="8KB")
    return ModelConfig(path=str(directory)), inputs


@torch.no_grad()
def test_streamed_model_is_the_same_model(saved):
    config, inputs = saved
    model, streamed = load_model(config), load_streamed(config)
    assert torch.equal(forward(streamed.model, inputs), forward(model, inputs))
    assert all(p.is_meta for block in streamed.blocks for p in block.parameters())
    assert weights_fingerprint(streamed.model, streamed.weights) == weights_fingerprint(model)
    groups = find_groups(model, GroupsConfig(), inputs)
    with shapes_only(config, inputs) as (shapes, shape_inputs):
        assert find_groups(shapes, GroupsConfig(), shape_inputs) == groups
        assert num_fixed_bytes(shapes, groups) == num_fixed_bytes(model, groups)


@torch.no_grad()
def test_what_transformers_keeps_in_float32_is_not_rounded_on_the_way(tmp_path):
    deepseek_v3().bfloat16().save_pretrained(tmp_path)
    add_stored(tmp_path, {CORRECTION: 5 + 0.01 * torch.randn(4)})
    config = ModelConfig(path=str(tmp_path), dtype="bfloat16")
    inputs = {"input_ids": 3 * torch.arange(64)[None] % 256}
    model, streamed = load_model(config), load_streamed(config, read_ahead=True)
    assert streamed.model.get_buffer(CORRECTION).dtype == model.get_buffer(CORRECTION).dtype == torch.float32
    assert torch.equal(forward(streamed.model, inputs), forward(model, inputs))


def secant_around(model, space, samples, streamed=None):
    """Int4 in the place of int2 and int8, which take turns."""
    formats = {group.name: ("int2", "int8")[g % 2] for g, group in enumerate(space.groups)}
    beside = Neighbourhood(formats, tuple(range(1, space.num_options, 3)))
    settings = SensitivityConfig(options_per_wave=1000)
    subject = around(make_subject(model, space, streamed), beside, settings, samples[:1].inputs)
    return next(iter(measure(subject, samples, range(len(subject.space.groups)), 0)))


def test_streamed_secant_has_the_same_bits(saved):
    config, inputs = saved
    model = load_model(config)
    groups = find_groups(model, GroupsConfig(), inputs)
    space = SearchSpace(groups, (("int2", "int4", "int8"),) * len(groups))
    samples = Samples(inputs)[:2]
    in_memory = secant(model, space, samples)
    streamed = load_streamed(config)
    from_disk = secant(streamed.model, space, samples, streamed, options_per_wave=1000)
    assert torch.equal(from_disk.phi_NRF, in_memory.phi_NRF)
    assert (from_disk.increase_NR == in_memory.increase_NR).all()
    ahead = load_streamed(config, read_ahead=True)
    from_ahead = secant(ahead.model, space, samples, ahead, options_per_wave=1000)
    assert torch.equal(from_ahead.phi_NRF, in_memory.phi_NRF)
    assert (from_ahead.increase_NR == in_memory.increase_NR).all()
    around_disk = secant_around(streamed.model, space, samples, streamed)
    around_memory = secant_around(model, space, samples)
    assert torch.equal(around_disk.phi_NRF, around_memory.phi_NRF)
    assert (around_disk.increase_NR == around_memory.increase_NR).all()
    assert not streamed.originals
    formats = {group.name: ("int2", "int4")[g % 2] for g, group in enumerate(groups)}
    whole, read = make_subject(model, space).variants, make_subject(streamed.model, space, streamed).variants
    with torch.no_grad(), whole.assigned(formats), read.assigned(formats):
        quantized = forward(model, inputs)
        assert torch.equal(forward(streamed.model, inputs), quantized)
    original = forward(streamed.model, inputs)
    assert torch.equal(original, forward(model, inputs)) and not torch.equal(original, quantized)
    assert all(p.is_meta for block in streamed.blocks for p in block.parameters())


@torch.no_grad()
def test_models_side_by_side_read_every_block_once_and_have_the_bits_of_whole_passes(saved, monkeypatch):
    config, inputs = saved
    model, streamed = load_model(config), load_streamed(config)
    groups = find_groups(model, GroupsConfig(include=("*",)), inputs)
    space = SearchSpace(groups, (("int2", "int4", "w8a8"),) * len(groups))
    batches = [Samples(inputs)[:2].inputs, Samples(inputs)[2:].inputs]
    assignments = [
        {},
        {group.name: ("int2", "int4")[g % 2] for g, group in enumerate(groups)},
        {group.name: ("w8a8", "int4")[g % 2] for g, group in enumerate(groups)},
    ]
    walk = find_walk(make_subject(streamed.model, space, streamed).variants, inputs)
    assert walk is not None and [*walk.together(3, [batches, batches])] == [range(2)]
    read, reads = Weights.read, []
    monkeypatch.setattr(Weights, "read", lambda self, *given: reads.append(given[0]) or read(self, *given))
    ended = walk.through(assignments, batches)
    found = [[ended.outputs(m, b) for b in range(2)] for m in range(3)]
    assert sorted(reads) == sorted(name for owners in streamed._owners for _, _, name in owners)
    monkeypatch.setattr(side_by_side, "MAX_STATE_BYTES", 1)
    assert [*walk.together(3, [batches, batches])] == [range(1), range(1, 2)]
    whole = make_subject(model, space).variants
    for assignment, outputs in zip(assignments, found, strict=True):
        with whole.assigned(assignment):
            for batch, z_NTV in zip(batches, outputs, strict=True):
                assert torch.equal(z_NTV, forward(model, batch))
    assert not torch.equal(found[0][0], found[1][0]) and not torch.equal(found[1][0], found[2][0])
    assert all(p.is_meta for block in streamed.blocks for p in block.parameters())


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A Llama of 12 blocks and 10 MB, wide enough for its blocks to be most of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=NUM_BLOCKS,
            num_attention_heads=4,
            vocab_size=64,
        )
    )
    directory = tmp_path_factory.mktemp("deep")
    model.save_pretrained(directory, max_shard_size="1MB")
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return ModelConfig(path=str(directory), stream=True), num_bytes


def test_twelve_blocks_need_less_than_half_their_weights_and_one_chunk_of_states(deep):
    config, model_bytes = deep
    samples = Samples({"input_ids": torch.randint(0, 64, (1, 16))})
    with shapes_only(config, samples.inputs) as (shapes, inputs):
        groups = find_groups(shapes, GroupsConfig(), inputs)
    space = SearchSpace(groups, (("int2", "int4", "int8"),) * len(groups))
    streamed, load_peak = peak_bytes(lambda: load_streamed(config))
    result, peak = peak_bytes(lambda: secant(streamed.model, space, samples, streamed))
    batches = [{"input_ids": torch.randint(0, 64, (2, 16))} for _ in range(3)]
    assignments = [{}, {group.name: "int2" for group in groups}, {group.name: "int8" for group in groups}]
    walk = find_walk(make_subject(streamed.model, space, streamed).variants, batches[0])
    _, walk_peak = peak_bytes(lambda: walk.through(assignments, batches).outputs(2, 2))
    beside, around_peak = peak_bytes(lambda: secant_around(streamed.model, space, samples, streamed))
    state_bytes = space.num_options * 16 * 128 * 4
    feature_bytes = result.phi_NRF.nbytes
    assert load_peak < 0.2 * model_bytes
    assert peak < 0.5 * model_bytes + state_bytes + feature_bytes
    assert walk_peak < 0.4 * model_bytes
    assert around_peak < 0.5 * model_bytes + (state_bytes + feature_bytes) / 3
    assert beside.phi_NRF.any()
    in_memory = secant(load_model(dataclasses.replace(config, stream=False)), space, samples)
    assert torch.equal(result.phi_NRF, in_memory.phi_NRF)


def test_of_weights_outside_the_blocks_one_assignments_are_in_memory(tmp_path):
    """Embedding and head are nearly all of this model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=4096)).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), stream=True)
    batches = [{"input_ids": torch.randint(0, 4096, (1, 4))} for _ in range(2)]
    with shapes_only(config, batches[0]) as (shapes, inputs):
        groups = find_groups(shapes, GroupsConfig(include=("*",)), inputs)
    formats = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")
    space = SearchSpace(groups, (formats,) * len(groups))
    streamed = load_streamed(config)
    walk = find_walk(make_subject(streamed.model, space, streamed).variants, batches[0])
    assignments = [{group.name: name for group in groups} for name in formats]
    ended, walk_peak = peak_bytes(lambda: walk.through(assignments, batches))
    _, leave_peak = peak_bytes(lambda: [ended.outputs(m, b).sum() for b in range(2) for m in range(7)])
    outside = 2 * 4 * 4096 * 64
    assert walk_peak < 5 * outside and leave_peak < 5 * outside


def test_weights_outside_the_blocks_are_rounded_once_an_assignment_not_once_a_batch(tmp_path, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=64)).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), stream=True)
    samples = Samples({"input_ids": torch.randint(0, 64, (6, 4))})
    with shapes_only(config, samples[:1].inputs) as (shapes, inputs):
        groups = find_groups(shapes, GroupsConfig(include=("*",)), inputs)
    streamed = load_streamed(config)
    space = SearchSpace(groups, (("int2", "int3"),) * len(groups))
    variants = make_subject(streamed.model, space, streamed).variants
    rounded, own = [], Variants.rounded
    monkeypatch.setattr(
        Variants, "rounded", lambda self, m, f: rounded.append((m.parameter, f)) or own(self, m, f)
    )
    found = Comparison(variants, samples, ("kl",), 1).measure(
        [{}, *({group.name: name for group in groups} for name in ("int2", "int3"))]
    )
    heads = [entry for entry in rounded if entry[0] == "lm_head.weight"]
    assert len(heads) <= 2 * 2  # on entering and on leaving, of six batches
    assert float(found[0].values["kl"].max()) == 0.0 < float(found[2].values["kl"].min())


def test_a_model_that_cannot_be_streamed_says_what_to_do(tmp_path, saved):
    config, _ = saved
    with pytest.raises(UserError, match="model.path"):
        load_streamed(ModelConfig(factory="hpcmpq.examples.digits:model", stream=True))
    model, _ = make("llama", torch.float32)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        load_streamed(ModelConfig(path=str(tmp_path), stream=True))


def test_a_model_that_asks_for_values_is_not_told_to_take_batches(tmp_path):
    from transformers import XLMConfig, XLMWithLMHeadModel

    sizes = {"vocab_size": 40, "emb_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 16}
    XLMWithLMHeadModel(XLMConfig(**sizes)).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), stream=True)
    inputs = {"input_ids": torch.full((2, 6), 7)}
    with (
        shapes_only(config, inputs) as (shapes, shape_inputs),
        pytest.raises(UserError, match="asks for values .* set model.stream: false, or plan without --dry"),
    ):
        find_groups(shapes, GroupsConfig(), shape_inputs)


def test_blocks_that_are_streamed_are_those_that_run(saved, tmp_path, monkeypatch):
    """As where the largest list of a model of text and images is not the one that texts run through."""
    config, inputs = saved
    largest = streaming.largest_list
    monkeypatch.setattr(streaming, "largest_list", lambda model: largest(model)[:1])
    streamed = load_streamed(config)
    groups = find_groups(load_model(config), GroupsConfig(), inputs)
    space = SearchSpace(groups, (("int4",),) * len(groups))
    with pytest.raises(UserError, match="is not the one that runs; set model.stream: false"):
        secant(streamed.model, space, Samples(inputs)[:2], streamed)
    assert find_walk(make_subject(streamed.model, space, streamed).variants, inputs) is None


def test_a_weight_that_is_in_no_file_says_which(tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = make("mixtral", torch.float32)
    model.save_pretrained(tmp_path)
    kept = {name: t for name, t in load_file(tmp_path / "model.safetensors").items() if ".w2." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match="experts.down_proj under that name, or what transformers makes it of"
    ):
        load_streamed(ModelConfig(path=str(tmp_path), stream=True))
