"""Formats that round activations: the rounding itself, where it happens, and the same outputs from every engine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmpq.errors import UserError
from hpcmpq.export.fake_quantized import rounded_inputs
from hpcmpq.formats import FORMATS, WEIGHT_FORMATS, Quantizer
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model
from hpcmpq.models.outputs import forward
from hpcmpq.models.streaming import load_streamed, shapes_only
from hpcmpq.quantized.activations import measure_maxima
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers.activations import round_activations
from hpcmpq.response.engine import make_engine
from hpcmpq.response.wavefront import Wavefront
from hpcmpq.response.whole_model import WholeModel
from hpcmpq.settings import GroupsConfig, ModelConfig
from hpcmpq.space import SearchSpace
from tests.models_of_many_kinds import make

pytestmark = pytest.mark.slow

MIXED = ("int4", "w4a8", "w8a8", "fp8_e4m3", "bf16", "fp32")
ROUNDING = sorted({FORMATS[name].activation for name in WEIGHT_FORMATS} - {None, "nvfp4"})
QUANTIZER = Quantizer(group_size=8, range="absmax")


def variants_of(
    model, inputs, products=False, formats=MIXED, quantizer=QUANTIZER, include=("*",)
) -> Variants:
    groups = find_groups(model, GroupsConfig(include=include, attention_products=products), inputs)
    return Variants(model, SearchSpace(groups, (formats,) * len(groups)), quantizer)


@torch.no_grad()
def outputs(engine, inputs, options) -> tuple[torch.Tensor, torch.Tensor]:
    z0_NTV, parts = engine.respond(inputs, options)
    found = {p: z_NTV for members, z_QNTV in parts for p, z_NTV in zip(members, z_QNTV, strict=True)}
    return z0_NTV, torch.stack([found[p] for p in options])


@pytest.mark.parametrize("name", ROUNDING)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    power=st.integers(-20, 20),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    maximum=st.sampled_from([None, 0.5, 3.0]),
)
def test_rounding_is_a_fixed_point_of_tokens_apart(name, seed, power, dtype, maximum):
    x = (torch.randn(4, 9, generator=torch.Generator().manual_seed(seed)) * 2.0**power).to(dtype)
    x[1] = 0.0
    rounded = round_activations(x, FORMATS[name], (-1,), maximum)
    assert rounded.dtype == dtype
    assert torch.equal(rounded[1], x[1])
    each = torch.cat([round_activations(row[None], FORMATS[name], (-1,), maximum) for row in x])
    assert torch.equal(each, rounded)
    again = round_activations(rounded, FORMATS[name], (-1,), maximum)
    torch.testing.assert_close(again, rounded, rtol=4 * torch.finfo(dtype).eps, atol=0)
    if maximum is not None and FORMATS[name].scaled and FORMATS[name].block is None:
        assert rounded.abs().max() <= maximum * (1 + torch.finfo(dtype).eps)


def test_blocks_of_inputs_have_scales_of_their_own():
    x = torch.tensor([[6.0, 5.1, *[0.0] * 30, 0.7, -0.2, 0.1]])
    # The second block ends at 0.7: scale 2^-3 (the next power of two above 0.7 / 6), codes 5.6, -1.6 and 0.8.
    expected = torch.tensor([[6.0, 6.0, *[0.0] * 30, 0.75, -0.1875, 0.125]])
    assert torch.equal(round_activations(x, FORMATS["mxfp4"], (-1,)), expected)
    assert torch.equal(round_activations(x.T, FORMATS["mxfp4"], (-2,)), expected.T)
    with pytest.raises(UserError, match="mxfp4 rounds blocks of the inputs of linear layers"):
        round_activations(x[None, None], FORMATS["mxfp4"], (-3, -2, -1))


@pytest.mark.parametrize("maximum", [3.0, 30.0, None])
def test_blocks_of_nvfp4_have_fp8_scales_under_one_of_the_layer(maximum):
    """By definition, a number at a time; beyond the measured maximum inputs are cut off."""
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1, 16:32] *= 1e-3
    x[2, :16] = 0.0
    rounded = round_activations(x, FORMATS["nvfp4"], (-1,), maximum)
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    numbers = torch.cat([-numbers, numbers])
    for row, own in zip(x, rounded, strict=True):
        common = (float(row.abs().max()) if maximum is None else maximum) / 2688
        for start in range(0, 40, 16):
            block = row[start : start + 16]
            scale = (block.abs().max() / 6 / common).clamp(2**-9, 448).to(
                torch.float8_e4m3fn
            ).double() * common
            want = numbers[(block[:, None] / scale - numbers).abs().argmin(1)] * scale
            torch.testing.assert_close(own[start : start + 16], want, rtol=1e-12, atol=0)
    far = round_activations(100 * x, FORMATS["nvfp4"], (-1,), 3.0)
    assert 2.9 < far.abs().max() <= 3.0 * (1 + 1e-12)


@torch.no_grad()
def test_nvfp4_alone_takes_the_measured_range_where_others_are_dynamic():
    model = torch.nn.Sequential(torch.nn.Linear(32, 8)).double().eval().requires_grad_(False)
    inputs = {"input": torch.randn(5, 32, dtype=torch.float64)}
    formats = ("w8a8", "nvfp4")
    made = variants_of(model, inputs, formats=formats)
    with pytest.raises(UserError, match="no static range .* leave out nvfp4"), made.assigned({"0": "nvfp4"}):
        pass
    maxima = measure_maxima(made.activations, [inputs])
    assert maxima == {"0": (float(inputs["input"].abs().max()),)}
    z = {}
    for name, ranges in (("measured", maxima), ("wide", {"0": (5e3,)})):
        variants = Variants(model, made.space, QUANTIZER, ranges)
        for assigned in formats:
            with variants.assigned({"0": assigned}):
                z[name, assigned] = forward(model, inputs)
        engine = make_engine("whole", variants, inputs, options_per_pass=2, options_per_wave=2)
        _, again_PNV = outputs(engine, inputs, [0, 1])
        for place, assigned in enumerate(formats):
            torch.testing.assert_close(again_PNV[place], z[name, assigned], rtol=1e-12, atol=1e-14)
        x = round_activations(inputs["input"], FORMATS["nvfp4"], (-1,), ranges["0"][0])
        [weight] = variants.quantized(made.space.groups[0], "nvfp4").values()
        want = torch.nn.functional.linear(x, weight, model[0].bias)
        torch.testing.assert_close(z[name, "nvfp4"], want[:, None], rtol=1e-12, atol=1e-14)
    assert torch.equal(z["measured", "w8a8"], z["wide", "w8a8"])
    assert not torch.equal(z["measured", "nvfp4"], z["wide", "nvfp4"])


def test_a_checkpoint_says_how_inputs_are_really_scaled():
    model = torch.nn.Sequential(torch.nn.Linear(32, 8)).eval().requires_grad_(False)
    inputs = {"input": torch.randn(5, 32)}
    formats = ("w8a8", "nvfp4", "mxfp8", "mxfp4", "int8")
    for ranges in ("dynamic", "static"):
        quantizer = Quantizer(group_size=8, activations=ranges)
        made = variants_of(model, inputs, formats=formats)
        maxima = measure_maxima(made.activations, [inputs])
        variants = Variants(model, made.space, quantizer, maxima)
        said = {name: rounded_inputs(variants, {"0": name}).get("0") for name in formats}
        assert said == {
            "w8a8": {"format": "int8", "range": ranges}
            | ({"maxima": [maxima["0"][0]]} if ranges == "static" else {}),
            "nvfp4": {"format": "nvfp4", "range": "dynamic", "maxima": [maxima["0"][0]]},
            "mxfp8": {"format": "mxfp8", "range": "dynamic"},
            "mxfp4": {"format": "mxfp4", "range": "dynamic"},
            "int8": None,
        }


@pytest.mark.parametrize("name, step", [("int8", 1 / 254), ("fp8_e4m3", 2**-4), ("fp8_e5m2", 2**-3)])
def test_the_error_is_at_most_half_a_step(name, step):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = (round_activations(x, FORMATS[name], (-1,)) - x).abs()
    # int8 steps are a share of the largest, float steps of the value itself.
    size = x.abs().amax(-1, keepdim=True) if name == "int8" else x.abs().clamp(min=1e-3)
    assert (error / size).max() <= step * (1 + 1e-12)
    assert (error / size).max() > 0.8 * step


def test_images_share_a_scale_over_what_a_convolution_adds_up():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] *= 1000
    rounded = round_activations(x, FORMATS["int8"], (-3, -2, -1))
    for image, own in zip(rounded, x, strict=True):
        codes = image / (own.abs().max() / 127)
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)


@torch.no_grad()
def test_an_assignment_rounds_weights_and_inputs_as_written_down():
    layers = [torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)]
    model = torch.nn.Sequential(*layers).double().eval().requires_grad_(False)
    inputs = {"input": torch.randn(5, 8, dtype=torch.float64)}
    variants = variants_of(model, inputs)

    def layer(place, x, name):
        if FORMATS[name].activation:
            x = round_activations(x, FORMATS[FORMATS[name].activation], (-1,))
        weight = variants.quantized(variants.space.groups[place // 2], name)[f"{place}.weight"]
        return torch.nn.functional.linear(x, weight, layers[place].bias)

    for first, last in [("w8a8", "int4"), ("int4", "fp8_e4m3"), ("bf16", "w4a8")]:
        with variants.assigned({"0": first, "2": last}):
            z = model(inputs["input"])
        expected = layer(2, torch.tanh(layer(0, inputs["input"], first)), last)
        torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-14)
    assert not any(module._forward_pre_hooks for module in model.modules())


ENGINES = [
    ("llama", True),
    ("gpt2", True),
    ("bert_mlm", True),
    ("vit", True),
    ("gemma2", True),
    ("residual", False),
    ("own_forward", False),
]


@pytest.mark.parametrize("name, products", ENGINES)
def test_the_wavefront_equals_whole_passes(name, products):
    model, inputs = make(name)
    variants = variants_of(model, inputs, products)
    assert any(group.products for group in variants.space.groups) == products
    options = list(range(variants.space.num_options))
    z0_NTV, z_PNTV = outputs(WholeModel(model, variants), inputs, options)
    engine = make_engine("auto", variants, inputs, options_per_pass=6, options_per_wave=20)
    assert isinstance(engine, Wavefront)
    again0_NTV, again_PNTV = outputs(engine, inputs, options)
    assert engine.vectorised
    u_PD = (z_PNTV - z0_NTV).flatten(1)
    error_P = ((again_PNTV - again0_NTV).flatten(1) - u_PD).norm(dim=1)
    # Masks and softmax in float32 leave 1e-7 of the outputs; a code that flips would be a thousandth of them.
    assert (error_P <= 1e-6 * u_PD.norm(dim=1) + 1e-12 * z0_NTV.norm()).all()
    for p, option in enumerate(variants.space.options):
        if option.format != "fp32":  # the weights are float32 numbers
            rounds = FORMATS[option.format].activation is not None
            assert (u_PD[p].norm() > 0) == (rounds or bool(variants.space.groups[option.group].members)), (
                option
            )


def test_products_are_groups_between_what_makes_and_what_uses_them():
    model, inputs = make("llama")
    before = forward(model, inputs)
    groups = find_groups(model, GroupsConfig(attention_products=True), inputs)
    names = [group.name.removeprefix("model.layers.0.") for group in groups[:9]]
    attention = ["q_proj", "k_proj", "v_proj", "query_key", "attention_value", "o_proj"]
    assert names == [f"self_attn.{n}" for n in attention] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert [group.block for group in groups] == [k for k in range(3) for _ in range(9)]
    # 2 heads × 7 queries × 7 keys × 8 features, and the same for the values.
    assert [group.macs for group in groups[3:5]] == [2 * 7 * 7 * 8] * 2
    torch.testing.assert_close(forward(model, inputs), before, rtol=1e-5, atol=1e-6)


def test_models_whose_attention_cannot_be_taken_apart_are_refused():
    model, inputs = make("sequential")
    with pytest.raises(UserError, match="need a transformers model"):
        find_groups(model, GroupsConfig(attention_products=True), inputs)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_static_ranges_leave_padding_out(name: str, tiny_model):
    """Against the samples one by one, without any padding, which here is the model's most extreme token."""
    model = tiny_model(name)
    ids_NT = torch.randint(250, (4, 12), generator=torch.Generator().manual_seed(0))
    lengths = (12, 3, 7, 5)
    mask_NT = torch.arange(12).expand(4, 12) < torch.tensor(lengths)[:, None]
    ids_NT = torch.where(mask_NT, ids_NT, 255)
    model.get_input_embeddings().weight[255] *= 1000.0
    inputs = {"input_ids": ids_NT, "attention_mask": mask_NT.long()}
    quantizer = Quantizer(group_size=8, activations="static")
    variants = variants_of(model, inputs, True, quantizer=quantizer, include=())
    alone = [{"input_ids": ids_NT[n : n + 1, :length]} for n, length in enumerate(lengths)]
    expected = measure_maxima(variants.activations, alone)
    found = measure_maxima(variants.activations, [inputs])
    assert any("attention_value" in place for place in expected)
    for place, ends in expected.items():
        assert found[place] == pytest.approx(ends, rel=1e-4), place


@torch.no_grad()
def test_static_ranges_are_the_largest_inputs_and_do_not_depend_on_batches():
    model, inputs = make("llama")
    quantizer = Quantizer(group_size=8, activations="static")
    variants = variants_of(model, inputs, True, quantizer=quantizer, include=())
    halves = [{n: x[part] for n, x in inputs.items()} for part in (slice(0, 1), slice(1, 3))]
    maxima = measure_maxima(variants.activations, [inputs])
    split = measure_maxima(variants.activations, halves)
    assert {name: len(ends) for name, ends in maxima.items() if "query_key" in name or "q_proj" in name} == {
        f"model.layers.{k}.self_attn.{n}": c for k in range(3) for n, c in (("query_key", 2), ("q_proj", 1))
    }
    for name, ends in maxima.items():
        assert ends == pytest.approx(split[name], rel=1e-12), name
    group = variants.space.groups[0]
    with pytest.raises(UserError, match="no static range"), variants.assigned({group.name: "w8a8"}):
        pass
    known = Variants(model, variants.space, quantizer, maxima)
    dynamic = Variants(model, variants.space, Quantizer(group_size=8))
    z = []
    for made in (known, dynamic):
        with made.assigned({g.name: "w8a8" for g in made.space.groups}):
            z.append(forward(model, inputs))
    z0 = forward(model, inputs)
    assert 0.5 < (z[0] - z0).norm() / (z[1] - z0).norm() < 4
    assert not torch.equal(z[0], z[1])


@pytest.mark.parametrize("engine", ["auto", "whole"])
def test_compensated_products_take_rounded_inputs(engine):
    model, inputs = make("llama", torch.float32)
    formats = ("w8a8", "fp8_e4m3", "bf16")
    exact = variants_of(model, inputs, True, formats, include=("*.1.*",))
    options = list(range(exact.space.num_options))
    z0_NTV, z_PNTV = outputs(WholeModel(model, exact), inputs, options)
    again, _ = make("llama", torch.float32)
    variants = variants_of(again, inputs, True, formats, include=("*.1.*",))
    low = make_engine(engine, variants, inputs, low_precision=torch.bfloat16)
    low0_NTV, low_PNTV = outputs(low, inputs, options)
    u_PD, low_PD = (z_PNTV - z0_NTV).flatten(1), (low_PNTV - low0_NTV).flatten(1)
    # Inputs differ by 2⁻⁹ in bf16, so codes flip: a format's errors are other draws of the same size.
    for place in range(len(formats)):
        sizes = [x_PD[place :: len(formats)].norm(dim=1).log() for x_PD in (low_PD, u_PD)]
        assert (sizes[0] - sizes[1]).mean().abs() < 0.15, formats[place]
        assert (sizes[0] - sizes[1]).abs().max() < 0.8, formats[place]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm"])
def test_a_streamed_model_rounds_with_the_same_bits(name, tmp_path):
    model, inputs = make(name, torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    config, patterns = (
        ModelConfig(path=str(tmp_path)),
        GroupsConfig(attention_products=True, kv_cache=() if name == "bert_mlm" else ("w8a8",)),
    )
    with shapes_only(config, inputs) as (shapes, shape_inputs):
        groups = find_groups(shapes, patterns, shape_inputs)
    in_memory = load_model(config)
    assert groups == find_groups(in_memory, patterns, inputs)
    space = SearchSpace(groups, (("int4", "w8a8", "fp8_e4m3"),) * len(groups))
    options = list(range(space.num_options))
    expected = outputs(make_engine("auto", Variants(in_memory, space, QUANTIZER), inputs), inputs, options)
    streamed = load_streamed(config)
    engine = make_engine("auto", Variants(streamed.model, space, QUANTIZER, streamed=streamed), inputs)
    found = outputs(engine, inputs, options)
    assert isinstance(engine, Wavefront)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_bit_operations_count_the_bits_of_both_factors():
    from hpcmpq.solve.costs import bops_cost, macs_cost, size_bytes_cost, weight_bits_cost
    from hpcmpq.space import Group, Member, Product

    layer = Group("layer", (Member("layer.weight", 2, 4, macs=8),))
    product = Group("product", (), None, (Product("product", 10),))
    space = SearchSpace((layer, product), (MIXED, MIXED))
    # int4 × 16, 4 × 8, 8 × 8, 8 × 8, 16 × 16 and 32 × 32 bits; a product's factors have equal width, 16 in int4.
    widths = [(4, 16), (4, 8), (8, 8), (8, 8), (16, 16), (32, 32)]
    expected = [8 * w * a for w, a in widths] + [10 * a * a for _, a in widths]
    assert bops_cost(space).linear_P.tolist() == expected
    assert macs_cost(space).linear_P.tolist() == [8 * w / 16 for w, _ in widths] + [
        10 * a / 16 for _, a in widths
    ]
    assert weight_bits_cost(space).linear_P.tolist() == [w for w, _ in widths] + [0] * 6
    assert size_bytes_cost(space, QUANTIZER, 7).linear_P[6:].tolist() == [0] * 6
