"""Keys and values rounded as a server's cache holds them, against the formula; and how a solution is served."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.stage import calibrate
from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.executors.in_process import InProcess
from hpcmpq.export import export
from hpcmpq.export.decompressed import decompressed
from hpcmpq.models.groups import find_groups
from hpcmpq.models.kv_cache import check_widths
from hpcmpq.models.outputs import forward
from hpcmpq.plan import Plan
from hpcmpq.planning.stage import prepare
from hpcmpq.quantized.solved import open_solved
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.rounding.stage import reround
from hpcmpq.settings import GroupsConfig, Quantizer
from hpcmpq.solve.formulate import cost_values, plan_costs, uniform_choices
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.space import Group, Product, SearchSpace
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.targets.kv_cache import bytes_per_token, check_heads, serve_options
from tests.export.planned import TEXT, llama, opt, qwen3
from tests.four_bit_cache import kept, turned

CACHED = GroupsConfig(kv_cache=("fp8_e4m3", "bf16"))
INPUTS = {"input_ids": torch.randint(256, (3, 9), generator=torch.Generator().manual_seed(1))}


def rounded(x: torch.Tensor, name: str) -> torch.Tensor:
    """By the formula in vLLM's kernel: the largest absolute value of a token's head over the largest code."""
    if name == "bf16":
        return x.to(torch.bfloat16).to(x.dtype)
    array = x.detach().double().numpy()
    top = 127.0 if name == "w8a8" else 448.0
    scale = np.maximum(np.abs(array).max(-1, keepdims=True) / top, 1e-6)
    ratio = torch.from_numpy(array / scale)
    codes = ratio.round() if name == "w8a8" else ratio.float().to(torch.float8_e4m3fn).double()
    return (codes * torch.from_numpy(scale)).to(x.dtype)


def definition(formats: dict[int, str]):
    """Eager attention of a Llama whose layers keep keys and values in these formats."""

    def attend(module, query, key, value, attention_mask, scaling=None, **_):
        name = formats[module.layer_idx]
        if name == "int4_per_token_head":
            return packed(query, key, value, scaling), None
        key, value = rounded(key, name), rounded(value, name)
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        score = torch.einsum("nhtd,nhsd->nhts", query, key) * scaling
        future = torch.ones(score.shape[-2:]).triu(1).bool()
        weight = torch.softmax(score.masked_fill(future, -torch.inf), -1)
        return torch.einsum("nhts,nhsd->nthd", weight, value), weight

    return attend


def packed(query, key, value, scaling) -> torch.Tensor:
    """Attention over codes, as vLLM's kernel of 4 bits has it: queries are turned, and the output is turned back."""
    repeats, (samples, heads, length, size) = query.shape[1] // key.shape[1], query.shape
    block = size & -size
    out = np.zeros((samples, length, heads, size))
    for n, h in np.ndindex(samples, heads):
        keys, values = ([kept(row) for row in x[n, h // repeats].numpy()] for x in (key, value))
        for t in range(length):
            own = turned(query[n, h, t].numpy())
            score = [
                (own @ codes - own.sum() * zero) * scale * scaling / block
                for codes, zero, scale in keys[: t + 1]
            ]
            weight = np.exp(score - np.max(score)) / np.exp(score - np.max(score)).sum()
            summed = sum(
                w * scale * (codes - zero) for w, (codes, zero, scale) in zip(weight, values, strict=False)
            )
            out[n, t, h] = turned(summed, inverse=True) / block
    return torch.from_numpy(out).to(query.dtype)


@torch.no_grad()
@pytest.mark.parametrize("make", [llama, qwen3])
@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("fp8_e4m3", "bf16"), torch.float32),
        (("w8a8", "w8a8"), torch.float32),
        (("bf16", "int4_per_token_head"), torch.float64),  # with more digits both come to the same codes
    ],
)
def test_keys_and_values_are_rounded_as_defined(make, names, dtype):
    model = make().to(dtype).eval()
    groups = find_groups(model, GroupsConfig(kv_cache=tuple(dict.fromkeys(names))), INPUTS)
    caches = [group for group in groups if group.is_cache]
    assert [cache.block for cache in caches] == [0, 1]
    variants = Variants(model, SearchSpace(groups, (names,) * len(groups)), Quantizer())
    with variants.activations.rounded({cache.name: name for cache, name in zip(caches, names, strict=True)}):
        found_NTV = forward(model, INPUTS)
    own = make().to(dtype).eval()
    AttentionInterface.register("definition", definition(dict(enumerate(names))))
    own.set_attn_implementation("definition")
    torch.testing.assert_close(found_NTV, forward(own, INPUTS), rtol=1e-4, atol=1e-5)
    assert float((found_NTV - forward(make().to(dtype).eval(), INPUTS)).abs().max()) > 1e-5


def test_a_cache_counts_the_bytes_of_a_token():
    groups = find_groups(llama().eval(), CACHED, INPUTS)
    (cache, *_) = [group for group in groups if group.is_cache]
    # Two heads of 32 numbers, keys and values; a float32 scale with each of the four vectors.
    assert cache.products == (Product("model.layers.0.self_attn.key_value_cache", 0, 128, 4),)
    assert [group.name.rpartition(".")[2] for group in groups[:5]] == [
        *("q_proj", "k_proj", "v_proj"), "key_value_cache", "o_proj",
    ]  # fmt: skip


def planned(path, **values) -> tuple[RunDir, Plan]:
    llama().save_pretrained(path / "model")
    (path / "text.txt").write_text(TEXT)
    config = parse_config(
        {
            "model": {"path": str(path / "model")},
            "calibration": {"data": str(path / "text.txt"), "num_samples": 2, "held_out": 2, "sequence_length": 16},
            "formats": ["int4", "int8"],
            "quantizer": {"group_size": 32, "range": "absmax"},
            "groups": {"kv_cache": ["fp8-e4m3", "bf16"]},
            "target": "vllm",
            **values,
        }
    )  # fmt: skip
    run = RunDir(path / "run")
    return run, prepare(config, run, ())


@pytest.mark.slow
def test_a_budget_chooses_caches_and_the_export_says_how_to_serve_them(tmp_path):
    run, plan = planned(tmp_path, evaluation={"num_samples": 2})
    calibrate(run, InProcess(), lambda *_: None)
    quadratic = reduce(run).model
    assert (quadratic.linear_P[[o.index for o in plan.space.options if o.format == "fp8_e4m3"]] > 0).all()
    costs = plan_costs(plan)["kv_bytes_per_token"].linear_P
    by_format = {(o.format, plan.space.groups[o.group].is_cache): costs[o.index] for o in plan.space.options}
    assert by_format == {
        ("int4", False): 0, ("int8", False): 0, ("fp8_e4m3", True): 128 + 4 * 4, ("bf16", True): 256,
    }  # fmt: skip
    for choice_G in uniform_choices(plan.space).values():
        assert cost_values(plan, choice_G)["kv_bytes_per_token"] == 2 * 256
    solution = solve(run, {"weight_bits": 6.0, "kv_bytes_per_token": 400.0}, settings_of(plan))
    caches = {g.name: solution["assignment"][g.name] for g in plan.space.groups if g.is_cache}
    assert sorted(caches.values()) == ["bf16", "fp8_e4m3"]
    assert solution["costs"]["kv_bytes_per_token"] == 400.0
    assert evaluate(run)["uniform_format"] == "int8"
    said = export(run, "compressed_tensors")
    skipped = list(caches.values()).index("bf16")
    options = f"--kv-cache-dtype fp8_per_token_head --kv-cache-dtype-skip-layers {skipped}"
    assert said.endswith(f"exports/compressed_tensors {options}`")
    card = (run.path / "exports" / "compressed_tensors" / "README.md").read_text()
    assert f"vllm serve . {options}" in card and "| cache fp8_per_token_head | 1 | |" in card
    assert "the same" in said or "differ" in said  # read back, without the caches
    with pytest.raises(UserError, match="gguf says nothing of a cache"):
        export(run, "gguf")


@torch.no_grad()
def test_every_engine_rounds_a_cache_of_4_bits_with_the_same_numbers():
    model = llama().double().eval()
    groups = find_groups(model, GroupsConfig(kv_cache=("int4_per_token_head", "bf16")), INPUTS)
    formats = tuple(("int4_per_token_head", "bf16") if g.is_cache else ("int4", "int8") for g in groups)
    variants = Variants(model, SearchSpace(groups, formats), Quantizer(group_size=32, range="absmax"))
    options = [option.index for option in variants.space.options]
    found = {}
    for name in ("whole", "auto"):
        _, parts = make_engine(name, variants, INPUTS, options_per_pass=3).respond(INPUTS, options)
        found[name] = {p: z for members, z_Q in parts for p, z in zip(members, z_Q, strict=True)}
    for option in variants.space.options:
        one, other = (found[name][option.index] for name in found)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        if option.format == "int4_per_token_head":
            with variants.assigned({groups[option.group].name: option.format}):
                torch.testing.assert_close(one, forward(model, INPUTS), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("cache", "served"),
    [
        ("int4_per_token_head", "int4_per_token_head"),
        ("w8a8", "int8_per_token_head"),
        ("fp8_e4m3", "fp8_per_token_head"),
    ],
)
def test_a_cache_beside_weights_that_are_not_searched_is_exported(tmp_path, cache, served):
    groups = {"kv_cache": [cache, "bf16"], "exclude": ["*self_attn*"]}
    run, plan = planned(tmp_path, groups=groups)
    caches = [group for group in plan.space.groups if group.is_cache]
    assert [group.block for group in caches] == [0, 1]
    assignment = {group.name: "int8" for group in plan.space.groups}
    assignment |= {caches[0].name: cache, caches[1].name: "bf16"}
    write_json(run.solution_path, {"assignment": assignment, "costs": {"size_bytes": 1.0}})
    said = export(run, "compressed_tensors")
    assert f"--kv-cache-dtype {served} --kv-cache-dtype-skip-layers 1`" in said
    card = (run.path / "exports" / "compressed_tensors" / "README.md").read_text()
    assert f"| cache {served} | 1 | |" in card and "| cache auto | 1 | |" in card
    verified = json.loads((run.path / "exports" / "compressed_tensors" / "verification.json").read_text())
    assert verified["tolerance"] == 1e-3  # the files round no inputs


@pytest.mark.slow
def test_an_export_has_the_weights_that_were_rounded_again(tmp_path, monkeypatch):
    run, plan = planned(tmp_path)
    calibrate(run, InProcess(), lambda *_: None)
    reduce(run)
    solve(run, {"weight_bits": 4.0, "kv_bytes_per_token": 400.0}, settings_of(plan))
    monkeypatch.setattr("hpcmpq.rounding.stage.is_better", lambda *_: True)
    assert reround(run, "gptq", None, lambda *_: None)["reround"]["codes"] is not None
    assignment = read_solution(run)["assignment"]
    export(run, "compressed_tensors")
    found = decompressed(run.path / "exports" / "compressed_tensors", torch.float32)
    again, before = open_solved(run, plan).under(assignment), open_solved(run, plan)
    for group in (group for group in plan.space.groups if group.members):
        tensors = again.quantized(group, assignment[group.name])
        old = before.quantized(group, assignment[group.name])
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor), name
            assert not torch.equal(old[name], tensor), name


def test_served_without_options_where_all_caches_are_wide():
    caches = [Group(f"{n}", (), n, (Product("", cached=8, vectors=2),)) for n in (0, 1)]
    assert serve_options(caches, {"0": "bf16", "1": "bf16"}) == ""
    assert serve_options(caches, {"0": "w8a8", "1": "w8a8"}) == " --kv-cache-dtype int8_per_token_head"
    lone = [Group("a", (), None, caches[0].products), caches[1]]
    with pytest.raises(UserError, match="a is in no numbered block"):
        serve_options(lone, {"a": "bf16", "1": "w8a8"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"groups": {"kv_cache": ["int8"]}},
            "kv_cache names int8; it takes int4_per_token_head, w8a8, fp8_e4m3, bf16",
        ),
        (
            {"groups": {"kv_cache": ["w8a8", "fp8_e4m3"]}},
            "takes one format of 4 or 8 bits and bf16 beside it",
        ),
        (
            {"groups": {"kv_cache": ["int4_per_token_head", "w8a8", "bf16"]}},
            "takes one format of 4 or 8 bits and bf16 beside it",
        ),
        (
            {"formats": ["int4_per_token_head", "int8"]},
            "formats names int4_per_token_head, which keeps keys and values alone; move it to groups.kv_cache, and "
            "take int4 for weights",
        ),
        (
            {"formats": ["int9"]},
            r"unknown format 'int9' in [^;]*: formats; known: (?!.*int4_per_token_head).*fp32$",
        ),
        (
            {"groups": {"kv_cache": ["int4_per_token_head"]}, "quantizer": {"activations": "static"}},
            "groups.kv_cache has a scale of each token and head",
        ),
        (
            {"groups": {"kv_cache": ["fp8_e4m3"]}, "target": "vllm", "gpu": "a100", "formats": ["int4"]},
            "vLLM on gpu a100 keeps no cache in fp8_e4m3; take w8a8 in groups.kv_cache, or another gpu",
        ),
        (
            {"groups": {"kv_cache": ["w8a8"]}, "target": "mlx", "quantizer": {"group_size": 64}},
            "for target vllm",
        ),
        (
            {"groups": {"kv_cache": ["fp8_e4m3"]}, "quantizer": {"activations": "static"}},
            "groups.kv_cache has a scale of each token and head",
        ),
    ],
)
def test_what_no_server_keeps_is_refused_when_the_config_is_read(values, message):
    with pytest.raises(UserError, match=message):
        parse_config({"model": {"path": "m"}, "calibration": {"data": "t.txt"}, **values})


def test_a_gpu_that_keeps_every_format_is_told_nothing():
    for cache, gpu in (("int4_per_token_head", "a100"), ("w8a8", "a100"), ("fp8_e4m3", "l40s")):
        values = {
            "model": {"path": "m"},
            "calibration": {"data": "t.txt"},
            "formats": ["int4"],
            "target": "vllm",
        }
        config = parse_config({**values, "groups": {"kv_cache": [cache, "bf16"]}, "gpu": gpu})
        assert config.groups.kv_cache == (cache, "bf16")


def test_bytes_of_a_token_with_a_scale_behind_every_head():
    cache = Group("0", (), 0, (Product("", cached=4 * 80, vectors=4),))  # two heads of 80, keys and values
    found = {
        name: bytes_per_token(cache, name) for name in ("int4_per_token_head", "w8a8", "fp8_e4m3", "bf16")
    }
    assert found == {"int4_per_token_head": 4 * 44, "w8a8": 4 * 84, "fp8_e4m3": 4 * 84, "bf16": 4 * 160}


@pytest.mark.parametrize(
    ("size", "name", "message"),
    [
        (
            24,
            "int4_per_token_head",
            "heads of 24 numbers, and vLLM keeps int4_per_token_head of multiples of 8 from 32",
        ),
        (36, "int4_per_token_head", "leave int4_per_token_head out of groups.kv_cache"),
        (36, "w8a8", None),
        (34, "w8a8", "heads of 34 numbers, and vLLM keeps w8a8 of multiples of 4 from 32 on"),
        (34, "bf16", None),
        (40, "int4_per_token_head", None),
    ],
)
def test_heads_of_sizes_that_no_server_keeps_are_refused(size, name, message):
    caches = [Group("attn.cache", (), 0, (Product("attn.cache", cached=4 * size, vectors=4),))]
    if message is None:
        check_heads(caches, [name, "bf16"])
        return
    with pytest.raises(UserError, match=message):
        check_heads(caches, ["bf16", name])


def test_keys_and_values_of_other_widths_are_kept_in_16_bits_alone():
    key, value = torch.zeros(1, 2, 3, 192), torch.zeros(1, 2, 3, 128)
    check_widths("attn.cache", key, value, ["bf16"])
    check_widths("attn.cache", key, key, ["w8a8", "bf16"])
    message = "attn.cache has keys of 192 numbers and values of 128, .* leave int4_per_token_head out"
    with pytest.raises(UserError, match=message):
        check_widths("attn.cache", key, value, ["int4_per_token_head", "bf16"])


@pytest.mark.slow
def test_methods_that_differentiate_are_refused(tmp_path):
    with pytest.raises(UserError, match="groups.kv_cache is for secant; leave it out with fisher"):
        planned(tmp_path, sensitivity="fisher")


@pytest.mark.parametrize("kind", ["latent", "encoder", "shared"])
def test_attention_that_keeps_something_else_is_refused(kind):
    torch.manual_seed(0)
    if kind == "latent":
        size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
        made = transformers.DeepseekV3Config(
            **size, **heads, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1
        )
        model, message = transformers.DeepseekV3ForCausalLM(made), "keeps latent vectors"
    elif kind == "encoder":
        made = transformers.BertConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
        )
        model, message = transformers.BertModel(made), "no attention of this model is causal"
    else:
        model, message = llama(), "reads the keys and values of another layer"
        model.model.layers[1].self_attn.is_kv_shared_layer = True
    inputs = {"input_ids": INPUTS["input_ids"] % 64}
    with pytest.raises(UserError, match=message):
        find_groups(model.eval(), CACHED, inputs)


def test_positions_and_biases_of_another_family_are_kept():
    model = opt().eval()
    before = forward(model, INPUTS)
    groups = find_groups(model, CACHED, INPUTS)
    assert sum(group.is_cache for group in groups) == 2
    torch.testing.assert_close(forward(model, INPUTS), before, rtol=1e-4, atol=1e-5)
