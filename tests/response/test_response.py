"""Engines in low precision, secant's definition, and shards of columns that multiply to the unsplit sums."""

import numpy as np
import pytest
import torch

from hpcmpq.calibrate.sums import contents
from hpcmpq.formats import Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.response.low_precision import LowPrecisionLayers
from hpcmpq.response.whole_model import WholeModel
from hpcmpq.sensitivity.features import gram, multiply
from hpcmpq.sensitivity.scores import make_score
from hpcmpq.sensitivity.secant import measure
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import GroupsConfig, ModelConfig
from hpcmpq.space import SearchSpace
from tests.models_of_many_kinds import make

pytestmark = pytest.mark.slow

ALL_BITS = tuple(f"int{bits}" for bits in range(2, 9))


def subject_of(
    model,
    inputs,
    formats,
    objective="kl",
    low_precision=None,
    engine="auto",
    include=(),
    exact_original=False,
) -> Subject:
    groups = find_groups(model, GroupsConfig(include=include), inputs)
    variants = Variants(model, SearchSpace(groups, (formats,) * len(groups)), Quantizer(group_size=64))
    made = make_engine(engine, variants, inputs, low_precision=low_precision, exact_original=exact_original)
    return Subject(model, variants.space, variants, OBJECTIVES[objective], None, 2, 0, made)


def sums_of(subject, samples, groups=None) -> dict[str, np.ndarray]:
    groups = groups or range(len(subject.space.groups))
    return contents(measure(subject, samples, groups, 0), True)[1]


def low_sums_and_dtypes(subject, samples, monkeypatch) -> tuple[dict[str, np.ndarray], set[torch.dtype]]:
    """Sums with low-precision products, and the dtypes in which options multiplied."""
    dtypes = set()
    run = LowPrecisionLayers.run

    def spied(self, name, x, weight, bias, product):
        def seen(x, weight):
            if self._replaying is not None or not self.exact_original:
                dtypes.update((x.dtype, weight.dtype))
            return product(x, weight)

        return run(self, name, x, weight, bias, seen)

    with monkeypatch.context() as patched:
        patched.setattr(LowPrecisionLayers, "run", spied)
        patched.setattr(torch.nn.functional, "linear", lambda x, *rest: pytest.fail("another product"))
        return sums_of(subject, samples), dtypes


BF16_CASES = [
    ("auto", ("*.0.*", "*.3.mlp.*"), False, 0.05),
    ("auto", ("*.0.*", "*.3.mlp.*"), True, 0.015),
    ("whole", ("*.1.self_attn.v_proj",), True, 0.015),
]


@pytest.mark.parametrize("engine, include, exact_original, rtol", BF16_CASES)
def test_bfloat16_products_agree_with_float32_at_every_bit_width(
    engine, include, exact_original, rtol, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    samples = Samples({"input_ids": torch.randint(32, 122, (2, 12), generator=generator)})
    quickstart = ModelConfig(path="configs/quickstart_model")
    exact = sums_of(subject_of(load_model(quickstart), samples.inputs, ALL_BITS, include=include), samples)
    subject = subject_of(
        load_model(quickstart),
        samples.inputs,
        ALL_BITS,
        "kl",
        torch.bfloat16,
        engine,
        include,
        exact_original,
    )
    low, dtypes = low_sums_and_dtypes(subject, samples, monkeypatch)
    assert dtypes == {torch.bfloat16}
    np.testing.assert_allclose(low["linear"], exact["linear"], rtol=rtol)
    np.testing.assert_allclose(np.diagonal(low["quad"]), np.diagonal(exact["quad"]), rtol=rtol)


@pytest.mark.parametrize("name", ["gpt2", "residual", "own_forward"])
def test_compensated_products_of_transposed_layers_and_convolutions(name):
    model, inputs = make(name, torch.float32)
    exact = subject_of(model, inputs, ("int3", "int8"))
    expected = sums_of(exact, Samples(inputs))
    low = sums_of(
        subject_of(make(name, torch.float32)[0], inputs, ("int3", "int8"), "kl", torch.bfloat16),
        Samples(inputs),
    )
    np.testing.assert_allclose(low["linear"], expected["linear"], rtol=0.05)


@pytest.mark.parametrize("engine", ["auto", "whole"])
@pytest.mark.parametrize("name", ["attending", "qwen3", "bert_mlm"])
def test_compensated_products_of_weights_that_are_used_past_their_layers_or_held_by_two(name, engine):
    """torch's attention reads weights of layers that it does not call; a head may be tied to an embedding."""
    assert_low_is_exact(lambda: make(name, torch.float32), engine)


class ListedExperts(torch.nn.Module):
    """Experts as layers in a list, each for the tokens that a router sends it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.mixing = torch.nn.Linear(16, 16)
        self.router = torch.nn.Linear(16, 4, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(4))
        self.output = torch.nn.Linear(16, 50)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        flat = (x + self.mixing(x).tanh()).flatten(0, 1)
        chosen = self.router(flat).softmax(-1).topk(2).indices
        y = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            (rows,) = (chosen == number).any(1).nonzero(as_tuple=True)
            y = y.index_add(0, rows, expert(flat[rows]))
        return self.output(y.unflatten(0, input_ids.shape))


@pytest.mark.parametrize("exact_original", [True, False])
def test_compensated_products_where_options_send_tokens_to_other_experts(exact_original):
    def listed():
        torch.manual_seed(0)
        return ListedExperts(), {"input_ids": torch.randint(50, (3, 5))}

    assert_low_is_exact(listed, "whole", exact_original)


def assert_low_is_exact(make_model, engine, exact_original=True) -> None:
    formats, include = ("int3", "int8"), ("*",)
    model, inputs = make_model()
    expected = sums_of(subject_of(model, inputs, formats, engine=engine, include=include), Samples(inputs))
    model, _ = make_model()
    low = subject_of(
        model,
        inputs,
        formats,
        low_precision=torch.bfloat16,
        engine=engine,
        include=include,
        exact_original=exact_original,
    )
    found = sums_of(low, Samples(inputs))
    for key, values in {k: (found[k], expected[k]) for k in ("linear", "quad")}.items():
        low_P, exact_P = (v if key == "linear" else np.diagonal(v) for v in values)
        np.testing.assert_allclose(low_P, exact_P, rtol=0.05, atol=1e-6 * exact_P.max())


@pytest.mark.parametrize("objective", ["kl", "ce", "mse"])
def test_secant_is_its_definition(objective):
    model, inputs = make("llama")
    targets = torch.randint(0, 50, (3, 7))
    targets[0, 3:] = -100
    subject = subject_of(model, inputs, ("int2", "int4"), objective)
    found = sums_of(subject, Samples(inputs, targets, True))
    loss = subject.objective
    z0_NTV, outputs = WholeModel(model, subject.variants).respond(inputs, range(subject.space.num_options))
    z_PNTV = torch.cat([z_QNTV for _, z_QNTV in outputs])
    increase_PN = torch.stack(
        [loss.value(z, z0_NTV, targets) - loss.value(z0_NTV, z0_NTV, targets) for z in z_PNTV]
    )

    def total(z):
        return loss.value(z, z0_NTV, targets).sum()

    hess = torch.func.hessian(total)(z0_NTV).reshape(z0_NTV.numel(), -1)
    u_PF = (z_PNTV - z0_NTV).flatten(1)
    np.testing.assert_allclose(found["linear"], increase_PN.sum(1).numpy(), rtol=1e-9, atol=1e-14)
    dense = (u_PF @ hess @ u_PF.T).numpy()
    np.testing.assert_allclose(found["quad"], dense, rtol=1e-9, atol=1e-9 * np.abs(dense).max())


@pytest.mark.parametrize("objective", ["kl", "ce", "mse"])
@pytest.mark.parametrize("size", [1e-4, 0.1, 3.0])
def test_scores_equal_the_objective(objective, size):
    torch.manual_seed(1)
    z0_NTV, targets = 3 * torch.randn(2, 5, 30), torch.randint(0, 30, (2, 5))
    targets[0, :2] = -100
    u_QNTV = size * torch.randn(3, 2, 5, 30)
    loss = OBJECTIVES[objective]
    score = make_score(loss, z0_NTV, targets)
    z0 = z0_NTV.double()
    phi_NQTV = torch.empty(2, 3, 5, 30)
    for k, u_NTV in enumerate(u_QNTV.double()):
        increase_N, _ = score(u_QNTV[k].clone(), out=phi_NQTV[:, k])
        exact_N = loss.value(z0 + u_NTV, z0, targets) - loss.value(z0, z0, targets)
        torch.testing.assert_close(increase_N, exact_N, rtol=2e-5, atol=1e-9 * size)
        torch.testing.assert_close(
            phi_NQTV[:, k].double(), loss.scaled_displacement(u_NTV, z0, targets), rtol=1e-4, atol=1e-6 * size
        )
        again = score(u_QNTV[k].clone())
        assert torch.equal(again[0], increase_N) and torch.equal(again[1], phi_NQTV[:, k])


def test_columns_of_two_units_multiply_to_the_sums_of_one():
    model, inputs = make("llama")
    samples = Samples(inputs)
    subject = subject_of(model, inputs, ("int2", "int4"))
    whole = sums_of(subject, samples)
    cut, options = 9, subject.space.slice_of(9).start
    first, second = (
        contents(measure(subject, samples, groups, 0), False)
        for groups in (range(cut), range(cut, len(subject.space.groups)))
    )
    assert first[0] == second[0] == "features"
    own, own_square = multiply(first[1], None)
    cross, cross_square = multiply(first[1], second[1]["phi"])
    scale = np.abs(whole["quad"]).max()
    np.testing.assert_allclose(np.hstack([own, cross]), whole["quad"][:options], atol=1e-12 * scale)
    np.testing.assert_allclose(
        np.hstack([own_square, cross_square]), whole["quad_square"][:options], atol=1e-12 * scale**2
    )
    np.testing.assert_allclose(first[1]["increase"].sum(1), whole["linear"][:options], rtol=1e-12)


def test_gram_adds_float32_products_up_in_float64():
    phi_RF = torch.randn(130, 40_000)
    exact = (phi_RF.double() @ phi_RF.double().T).numpy()
    assert np.abs(gram(phi_RF) - exact).max() < 2e-6 * exact.max()
    assert np.array_equal(gram(phi_RF), gram(phi_RF).T)
    assert np.abs(gram(phi_RF, phi_RF[:7]) - exact[:, :7]).max() < 2e-6 * exact.max()


def test_infinite_outputs_are_refused():
    model, inputs = make("sequential", torch.float32)
    subject = subject_of(model, inputs, ("int2",))
    parts = list(measure(subject, Samples(inputs), range(2), 0))
    parts[0].phi_NRF[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        contents(iter(parts), False)
