"""A run with error-compensated rounding: the codes are made once, and every stage uses the same ones."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.errors import CorruptShard, UserError
from hpcmpq.export import export
from hpcmpq.formats import FORMATS as TABLE
from hpcmpq.formats import Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.quantized.variants import Variants, open_variants
from hpcmpq.quantizers import choose_qparams, decode, encode
from hpcmpq.quantizers.codes import QParams
from hpcmpq.rounding.linear_layers import check_linear
from hpcmpq.rounding.options import make_codes, stored_formats
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.space import Member
from hpcmpq.store.h5_files import read_h5, write_h5
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run, solve_by_turns
from tests.export.readers import READERS
from tests.export.test_round_trips import fake_quantized_logits, tokens

pytestmark = pytest.mark.slow

GPTQ = {"rounding": "gptq", "group_size": 64}
FORMATS = ["int2", "int4", "int8", "bf16"]


def bytes_of(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / "rounded").iterdir()}


def test_every_weight_has_codes_and_planning_again_leaves_them_alone(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=FORMATS, quantizer=GPTQ)
    first = bytes_of(run)
    assert len(first) == len(plan.space.groups)
    path = next((run.path / "rounded").iterdir())
    path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in (run.path / "rounded").iterdir()}
    plan_run(tmp_path, llama(), formats=FORMATS, quantizer=GPTQ)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert bytes_of(run) == first


@torch.no_grad()
def test_variants_decode_the_stored_codes_and_lower_the_models_loss(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=FORMATS, quantizer=GPTQ)
    variants = open_variants(run, plan)
    group = plan.space.groups[0]
    codes_MK, qparams = variants.encoded(group.members[0], "int4")
    [weight] = variants.quantized(group, "int4").values()
    assert torch.equal(weight, decode(codes_MK, qparams, TABLE["int4"], variants.quantizer))
    nearest = Variants(variants.model, plan.space, type(variants.quantizer)(group_size=64))
    outputs = torch.tensor([list(b"ink stand on shelf 3. 4 bottles")])
    z0_NTV = variants.model(outputs).logits
    errors = {}
    for name, made in (("gptq", variants), ("nearest", nearest)):
        with made.assigned({g.name: "int2" for g in plan.space.groups}):
            errors[name] = float((made.model(outputs).logits - z0_NTV).square().mean())
    print(errors)
    assert errors["gptq"] < 0.8 * errors["nearest"]


def test_the_exported_checkpoint_holds_the_compensated_weights(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=FORMATS[:3], quantizer=GPTQ, target="vllm")
    assignment = solve_by_turns(run, plan)
    export(run, "compressed_tensors")
    with torch.no_grad():
        read = READERS["compressed_tensors"](run.path / "exports" / "compressed_tensors")(tokens())
    expected = fake_quantized_logits(run, plan, assignment)
    torch.testing.assert_close(read, expected, rtol=0, atol=2e-6)


def test_types_of_llama_cpp_are_compensated_measured_and_exported_as_they_are_stored(tmp_path):
    """What the package gguf decodes is closer to the original's outputs than what is nearest, by the stored codes."""
    gguf = pytest.importorskip("gguf", reason="needs the extra export")
    made = llama(intermediate_size=256)
    formats = ["q2_k", "q4_k", "iq4_nl", "q5_1"]
    settings = {"rounding": "gptq", "group_size": 32}
    run, plan = plan_run(
        tmp_path, made, torch.float32, formats=formats, quantizer=settings, target="llama_cpp"
    )
    assignment = solve_by_turns(run, plan)
    member = next(g.members[0] for g in plan.space.groups if "down_proj" in g.name)
    stored = StoredCodes(run, plan.fingerprint)
    weight_MK = load_model(plan.config.model).get_parameter(member.parameter)
    for name in formats:
        codes_MK, qparams = stored.read(member, name, weight_MK)
        nearest_MK = encode(
            weight_MK, choose_qparams(weight_MK, TABLE[name], Quantizer()), TABLE[name], Quantizer()
        )
        assert codes_MK.dtype == torch.int8 and not torch.equal(codes_MK, nearest_MK)
    export(run, "gguf")
    read = {t.name: t for t in gguf.GGUFReader(run.path / "exports" / "gguf" / "model.gguf").tensors}
    for block in range(2):
        name = f"model.layers.{block}.mlp.down_proj"
        codes_MK, qparams = stored.read(Member(f"{name}.weight", 128, 256), assignment[name], weight_MK)
        tensor = read[f"blk.{block}.ffn_down.weight"]
        decoded_MK = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(
            decoded_MK, decode(codes_MK, qparams, TABLE[assignment[name]], Quantizer()).numpy()
        )


PADDING = 100


def padded(samples: Samples, token: int) -> Samples:
    """The same samples with a tail of one token that their mask leaves out."""
    ids_NT = samples.inputs["input_ids"]
    tail_NT = torch.full((len(samples), PADDING), token)
    mask_NT = torch.cat([torch.ones_like(ids_NT), torch.zeros_like(tail_NT)], 1)
    return Samples({"input_ids": torch.cat([ids_NT, tail_NT], 1), "attention_mask": mask_NT})


def test_padding_changes_no_code(tmp_path):
    """Rows at masked positions are no inputs of a layer, so they play no part in its Σ x xᵀ."""
    run, plan = plan_run(tmp_path, llama(max_position_embeddings=256), formats=["int3"], quantizer=GPTQ)
    config = plan.config
    model = load_model(config.model)
    samples = load_splits(config).calibration
    codes = {}
    for name, these in (("plain", samples), ("padded", padded(samples, 7))):
        stored = StoredCodes(RunDir(tmp_path / name), plan.fingerprint)
        formats = stored_formats(plan.space, config.quantizer)
        members = list(formats)
        inputs = OriginalInputs(model, plan.space.groups, list(these.passes(3)), members)
        make_codes(stored, inputs, formats, config.quantizer)
        codes[name] = torch.cat([stored.read(m, "int3", torch.zeros(1))[0].flatten() for m in members])
    assert float((codes["plain"] == codes["padded"]).float().mean()) > 0.9999


def test_missing_damaged_and_foreign_codes_are_refused(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["int4"], quantizer=GPTQ)
    member = plan.space.groups[0].members[0]
    like = torch.zeros(1)
    with pytest.raises(UserError, match="belongs to another plan"):
        StoredCodes(run, "other").read(member, "int4", like)
    codes = StoredCodes(run, plan.fingerprint)
    [first, second] = [
        m for group in plan.space.groups for m in group.members if m.parameter.endswith("q_proj.weight")
    ]
    whole, others = codes._path(first).read_bytes(), codes._path(second).read_bytes()
    write_h5(tmp_path / "quadratic.h5", {"linear": np.zeros(3)}, {"fingerprint": plan.fingerprint})
    for foreign in (others, (tmp_path / "quadratic.h5").read_bytes()):
        codes._path(first).write_bytes(foreign)
        assert not codes.has(first) and codes.has(second)
        with pytest.raises(UserError, match="belongs to another plan or weight; run `hpcmpq calibrate"):
            codes.read(first, "int4", like)
    codes._path(first).write_bytes(whole)
    for path in (run.path / "rounded").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptShard):
        codes.read(member, "int4", like)
    for path in (run.path / "rounded").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="are missing; run `hpcmpq calibrate"):
        codes.read(member, "int4", like)


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_packed_and_those_of_earlier_versions_a_byte_each_are_read(tmp_path, symmetric):
    quantizer = Quantizer(group_size=8, symmetric=symmetric, rounding="gptq")
    stored, member = StoredCodes(RunDir(tmp_path), "this plan"), Member("layer.weight", 6, 21, False, 0)
    lowest, kind = (-4, torch.int8) if symmetric else (0, torch.uint8)
    codes_MK = torch.randint(lowest, lowest + 8, (6, 21), generator=torch.Generator().manual_seed(0)).to(kind)
    zero_MS = None if symmetric else torch.full((6, 3), 5, dtype=torch.int32)
    stored.write(member, [("int3", (codes_MK, QParams(torch.rand(6, 3), zero_MS)))], quantizer)
    read_MK, qparams = stored.read(member, "int3", torch.zeros(1))
    assert read_MK.dtype == kind and torch.equal(read_MK, codes_MK)
    assert zero_MS is None or torch.equal(qparams.zero_point, zero_MS)
    [path] = tmp_path.glob("rounded/*.h5")
    arrays, attributes = read_h5(path, "")
    assert arrays.pop("int3/packed").shape == (6, 2)
    write_h5(path, {**arrays, "int3/codes": codes_MK.numpy()}, {"fingerprint": attributes["fingerprint"]})
    old_MK, _ = stored.read(member, "int3", torch.zeros(1))
    assert old_MK.dtype == kind and torch.equal(old_MK, codes_MK)


def test_what_is_neither_linear_nor_an_embedding_is_refused():
    model = nn.Sequential(nn.Conv1d(4, 6, 1), nn.Embedding(8, 4), nn.Linear(4, 2))
    check_linear(model, Member("1.weight", 8, 4))
    check_linear(model, Member("2.weight", 2, 4))
    with pytest.raises(
        UserError, match="take linear layers, experts and embeddings only, 0.weight is of a Conv1d"
    ):
        check_linear(model, Member("0.weight", 6, 4))


def test_embeddings_are_rounded_to_the_nearest(tmp_path):
    groups = {"include": ["*.embed_tokens", "*.o_proj"]}
    run, plan = plan_run(tmp_path, llama(), formats=["int4"], quantizer=GPTQ, groups=groups)
    model = load_model(plan.config.model)
    stored, quantizer = StoredCodes(run, plan.fingerprint), plan.config.quantizer
    members = [member for group in plan.space.groups for member in group.members]
    nearest = {}
    for member in members:
        weight_MK = model.get_parameter(member.parameter)
        qparams = choose_qparams(weight_MK, TABLE["int4"], quantizer)
        codes_MK, _ = stored.read(member, "int4", weight_MK)
        expected_MK = encode(weight_MK, qparams, TABLE["int4"], quantizer)
        nearest[member.parameter] = torch.equal(codes_MK, expected_MK)
    assert len(members) == 3
    assert [name for name, same in nearest.items() if same] == ["model.embed_tokens.weight"]


@torch.no_grad()
def test_sensitivities_are_those_of_the_served_weights_with_the_same_bits_in_every_copy(tmp_path):
    """Units of one plan, measured in two copies of the run directory by workers that start at either end."""
    run, plan = plan_run(tmp_path, llama(), formats=FORMATS[:2], quantizer=GPTQ)
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    for place, units in ((run, plan.units), (copy, plan.units[::-1])):
        work = make_worker(place)
        for unit in units:
            work(unit)
    models = []
    for place in (run, copy):
        reduce(place)
        models.append(read_quadratic(place.quadratic_path))
    assert np.array_equal(models[0].linear_P, models[1].linear_P)
    assert np.array_equal(models[0].quad_PP, models[1].quad_PP)

    config = plan.config
    samples = load_splits(config).calibration
    comparison = Comparison(open_variants(run, plan), samples, ("kl",), 4)
    group = plan.space.groups[3].name
    [measured] = comparison.measure([{group: "int2"}])
    option = next(o for o in plan.space.options if o.group == 3 and o.format == "int2")
    assert models[0].linear_P[option.index] == pytest.approx(measured.values["kl"].mean(), rel=1e-4)
