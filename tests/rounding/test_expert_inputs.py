"""Codes of fused experts: fitted to the tokens that each expert was given, whichever way transformers runs them."""

import dataclasses
import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.executors.in_process import InProcess
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.models.searchable_layers import experts_one_by_one
from hpcmpq.quantized import stored_codes
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.quantizers import choose_qparams, decode, encode
from hpcmpq.quantizers.packing import pack
from hpcmpq.rounding import options, original_inputs, worker
from hpcmpq.rounding.linear_layers import check_linear
from hpcmpq.rounding.option_units import round_options, units_of
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.settings import GroupsConfig
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import SIZE, plan_run

pytestmark = pytest.mark.slow

Inner = Callable[[Tensor], Tensor]
SMALL = {**SIZE, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 48}


def gated(gate_up_NM: Tensor) -> Tensor:
    gate_NM, up_NM = gate_up_NM.chunk(2, dim=-1)
    return F.silu(gate_NM) * up_NM


def clamped_and_gated(gate_up_NM: Tensor) -> Tensor:
    gate_NM, up_NM = gate_up_NM[:, ::2].clamp(max=7.0), gate_up_NM[:, 1::2].clamp(-7.0, 7.0)
    return (up_NM + 1) * gate_NM * torch.sigmoid(1.702 * gate_NM)


def qwen2(ways: str = "eager") -> nn.Module:
    """Two layers of five experts, two chosen; in the first layer two pairs are chosen alike, and the fifth never."""
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(
        **SMALL, moe_intermediate_size=48, shared_expert_intermediate_size=48, num_experts=5, num_experts_per_tok=2,
        experts_implementation=ways,
    )  # fmt: skip
    model = transformers.Qwen2MoeForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(std=1.0)
        weight_EK = model.model.layers[0].mlp.gate.weight
        first_K, second_K = weight_EK[0].clone(), weight_EK[1].clone()
        weight_EK[:] = torch.stack([first_K, first_K, second_K, second_K, (first_K + second_K) / 2])
    return model


def gpt_oss(ways: str) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2, experts_implementation=ways
    )
    model = transformers.GptOssForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.normal_(std=0.1)
    return model


def llama4(ways: str) -> nn.Module:
    """Each expert is given all tokens, those that did not choose it as zeros."""
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        **SMALL, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=2, moe_layers=[1]
    )
    model = transformers.Llama4ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.05)
    return model


def inputs_of_experts(module: nn.Module, given: tuple[Tensor, ...], inner: Inner) -> dict[str, list[Tensor]]:
    """What each expert's two matrices are given, from what the module is called with and how it computes."""
    tokens_NK = given[0].flatten(0, -2)
    num_experts = module.gate_up_proj.shape[0]
    if len(given) == 1:
        rows = [
            x_NK[x_NK.abs().sum(-1) > 0] for x_NK in tokens_NK.reshape(num_experts, -1, tokens_NK.shape[-1])
        ]
    else:
        rows = [tokens_NK[(given[1] == expert).any(-1)] for expert in range(num_experts)]
    found: dict[str, list[Tensor]] = {"gate_up_proj": rows, "down_proj": []}
    for expert, x_NK in enumerate(rows):
        weight = module.gate_up_proj[expert]
        product = x_NK @ (weight if weight.shape[0] == x_NK.shape[-1] else weight.T)
        bias = getattr(module, "gate_up_proj_bias", None)
        found["down_proj"].append(inner(product if bias is None else product + bias[expert]))
    return found


@pytest.mark.parametrize(
    ("make", "inner"),
    [(qwen2, gated), (gpt_oss, clamped_and_gated), (llama4, gated)],
    ids=lambda x: x.__name__,
)
@pytest.mark.parametrize("ways", ["eager", "grouped_mm", "batched_mm"])
@torch.no_grad()
def test_sums_are_over_the_tokens_that_each_expert_was_given(make, inner, ways, monkeypatch):
    """With room for the sums of three experts at a time."""
    model = make(ways).eval()
    generator = torch.Generator().manual_seed(1)
    samples = Samples({"input_ids": torch.randint(0, 256, (6, 16), generator=generator)})
    place = "feed_forward" if make is llama4 else "mlp"
    module = model.get_submodule(f"model.layers.1.{place}.experts")
    seen: list[tuple[Tensor, ...]] = []
    handle = module.register_forward_pre_hook(lambda _m, given: seen.append(given))
    model(**samples.inputs)
    handle.remove()
    if ways == "batched_mm":
        experts_one_by_one(model)
    expected = inputs_of_experts(module, seen[0], inner)
    groups = find_groups(model, GroupsConfig(), samples[:2].inputs)
    members = [
        m for g in groups for m in g.members if m.parameter.startswith(f"model.layers.1.{place}.experts")
    ]
    monkeypatch.setattr(original_inputs, "SUMS_BYTES", 3 * 8 * 64**2)
    inputs = OriginalInputs(model, groups, list(samples.passes(4)), members)
    counted = []
    for [matrix], sums in inputs.of(members):
        x_NK = expected[matrix.member.parameter.rpartition(".")[2]][matrix.expert].double()
        assert sums.num_rows == len(x_NK)
        torch.testing.assert_close(sums.hessian_KK, x_NK.T @ x_NK, rtol=1e-4, atol=1e-5)
        weight = module.get_parameter(matrix.member.parameter.rpartition(".")[2])[matrix.expert]
        assert matrix.of(model).equal(weight.T if make is not qwen2 else weight)
        counted.append((matrix.member.parameter.rpartition(".")[2], matrix.expert))
    num_experts = module.gate_up_proj.shape[0]
    assert sorted(counted) == [(name, expert) for name in sorted(expected) for expert in range(num_experts)]
    assert sum(len(x_NK) for x_NK in expected["down_proj"]) == 6 * 16 * 2


@pytest.mark.parametrize("make", [qwen2, gpt_oss, llama4])
@torch.no_grad()
def test_experts_are_fitted_to_real_tokens_alone(make):
    """Samples of 9 tokens, padded to 16 in one batch, give the sums of the same that are not padded."""
    model = make("eager").eval()
    ids_NT = torch.randint(1, 256, (4, 9), generator=torch.Generator().manual_seed(1))
    padded = {
        "input_ids": F.pad(ids_NT, (0, 7)),
        "attention_mask": F.pad(torch.ones_like(ids_NT), (0, 7)),
    }
    groups = find_groups(model, GroupsConfig(include=("*experts*",)), {"input_ids": ids_NT})
    members = [member for group in groups for member in group.members]
    found = [
        {matrix: (sums.num_rows, sums.hessian_KK) for [matrix], sums in inputs.of(members)}
        for inputs in (
            OriginalInputs(model, groups, [Samples(given)], members)
            for given in (padded, {"input_ids": ids_NT})
        )
    ]
    assert sum(count for count, _ in found[0].values()) > 0
    for matrix, (count, hessian_KK) in found[0].items():
        expected, expected_KK = found[1][matrix]
        assert count == expected
        torch.testing.assert_close(hessian_KK, expected_KK, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory):
    """Codes of all experts of the Qwen2-MoE."""
    return plan_run(
        tmp_path_factory.mktemp("experts"), qwen2("grouped_mm"), torch.float32, formats=["int2", "int3"],
        quantizer={"rounding": "gptq", "group_size": 16}, groups={"include": ["*.experts.*"]},
    )  # fmt: skip


@torch.no_grad()
def test_experts_that_are_chosen_have_smaller_errors_than_rounded_to_the_nearest_and_others_the_same(planned):
    """Error on the inputs that codes are fitted to, |(Q − W) x|², of each expert."""
    run, plan = planned
    worker_inputs: list[OriginalInputs] = []
    from hpcmpq.rounding import worker as module

    original = module.OriginalInputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "OriginalInputs", lambda *a: worker_inputs.append(original(*a)) or worker_inputs[0]
        )
        worker.make_worker(run)
    [inputs] = worker_inputs
    members = [member for group in plan.space.groups for member in group.members]
    stored, quantizer = StoredCodes(run, plan.fingerprint), plan.config.quantizer
    better, same = [], []
    for matrices, sums in inputs.of(members):
        for matrix in matrices:
            weight_MK = matrix.of(inputs.model)
            whole_MK, qparams = stored.read(matrix.member, "int3", weight_MK)
            values_MK = decode(whole_MK, qparams, FORMATS["int3"], quantizer)
            height = len(weight_MK)
            own_MK = values_MK[matrix.expert * height : (matrix.expert + 1) * height]
            nearest = choose_qparams(weight_MK, FORMATS["int3"], quantizer)
            codes_MK = encode(weight_MK, nearest, FORMATS["int3"], quantizer)
            nearest_MK = decode(codes_MK, nearest, FORMATS["int3"], quantizer)
            if sums.num_rows < 32:
                assert own_MK.equal(nearest_MK)
                same.append((matrix.member.parameter, matrix.expert))
            else:
                errors = [
                    float(torch.trace(d @ sums.hessian_KK @ d.T))
                    for d in ((own_MK - weight_MK).double(), (nearest_MK - weight_MK).double())
                ]
                assert errors[0] < 0.8 * errors[1]
                better.append(matrix)
    assert len(better) + len(same) == 20 and len(better) > 8
    stem = "model.layers.0.mlp.experts"
    assert {(f"{stem}.gate_up_proj", 4), (f"{stem}.down_proj", 4)} <= set(same)
    counted = {member.parameter: stored.num_nearest(member) for member in members}
    assert sum(count or 0 for count in counted.values()) == len(same)


@pytest.mark.parametrize("how", ["streamed", "few sums at once"])
def test_streamed_and_with_little_room_they_are_the_same_bytes(planned, how, monkeypatch, tmp_path):
    run, plan = planned
    if how == "streamed":
        model = dataclasses.replace(plan.config.model, stream=True)
        changed = dataclasses.replace(plan, config=dataclasses.replace(plan.config, model=model))
        monkeypatch.setattr("hpcmpq.rounding.worker.read_plan", lambda run, **_: changed)
    else:
        monkeypatch.setattr(original_inputs, "SUMS_BYTES", 3 * 8 * 64**2)
    before = {path: path.read_bytes() for path in Path(run.path / "rounded").iterdir()}
    for path in before:
        path.unlink()
    work = worker.make_worker(run)
    for unit in units_of(plan):
        work(unit)
    assert {path: path.read_bytes() for path in Path(run.path / "rounded").iterdir()} == before


@pytest.mark.parametrize("changed", ["method", "dtype"])
def test_methods_and_dtypes_whose_experts_run_as_batched_products_have_nearly_the_same_codes(
    planned, changed, tmp_path
):
    """Attention, or the precision of all, has other last bits."""
    settings = {
        "method": {"sensitivity": {"method": "hessian"}},
        "dtype": {"model": {"path": str(tmp_path / "model"), "dtype": "float64"}},
    }
    other = plan_run(
        tmp_path, qwen2("grouped_mm"), torch.float32, formats=["int2", "int3"],
        quantizer={"rounding": "gptq", "group_size": 16}, groups={"include": ["*.experts.*"]}, **settings[changed],
    )  # fmt: skip
    [expected, made] = [StoredCodes(run, plan.fingerprint) for run, plan in (planned, other)]
    for member in (member for group in planned[1].space.groups for member in group.members):
        assert made.num_nearest(member) == expected.num_nearest(member)
        for name in ("int2", "int3"):
            codes_MK, expected_MK = (own.read(member, name, torch.empty(0))[0] for own in (made, expected))
            assert (codes_MK == expected_MK).float().mean() > 0.99


def test_experts_codes_are_joined_and_packed_one_format_after_another(planned, monkeypatch):
    """Bytes of single experts' codes that are in memory whenever a format of two is packed, beside those joined."""
    run, plan = planned
    live = [0]
    at_packing: list[tuple[int, int]] = []

    def watched(codes_MK: Tensor) -> Tensor:
        size = codes_MK.untyped_storage().nbytes()
        live[0] += size
        weakref.finalize(codes_MK.untyped_storage(), lambda: live.__setitem__(0, live[0] - size))
        return codes_MK

    def packing(codes_MK: Tensor, *given: int) -> Tensor:
        at_packing.append((live[0], codes_MK.numel()))
        return pack(codes_MK, *given)

    for name in ("encode", "compensated_codes"):
        make = getattr(options, name)
        monkeypatch.setattr(options, name, lambda *given, make=make: watched(make(*given).clone()))
    monkeypatch.setattr(stored_codes, "pack", packing)
    for path in Path(run.path / "rounded").iterdir():
        path.unlink()
    work = worker.make_worker(run)
    for unit in units_of(plan):
        work(unit)
    first, second = at_packing[::2], at_packing[1::2]
    assert len(first) == len(second) == 4
    assert all(bytes_alive == numel for bytes_alive, numel in first)
    assert all(bytes_alive == 0 for bytes_alive, _ in second)


def test_experts_rounded_to_the_nearest_are_counted(planned, caplog, tmp_path):
    run, _ = planned
    for path in Path(run.path / "rounded").iterdir():
        path.unlink()
    with caplog.at_level(logging.WARNING, "hpcmpq"):
        round_options(RunDir(run.path), InProcess(), lambda *_: None)
    assert "weights are rounded to the nearest, in whole or some of their experts (" in caplog.text


def test_checkpoints_of_other_tools_do_not_hold_fused_experts():
    model = qwen2()
    groups = find_groups(model, GroupsConfig(), {"input_ids": torch.zeros(1, 4, dtype=torch.int64)})
    member = next(m for g in groups for m in g.members if m.parameter.endswith("experts.down_proj"))
    check_linear(model, member)
    with pytest.raises(UserError, match="holds all experts of a layer"):
        check_linear(model, member, fused=False)
