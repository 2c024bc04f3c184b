"""Models whose code fails in a wavefront run by whole passes, with a notice and the same outputs."""

import logging
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.outputs import Inputs
from hpcmpq.response.engine import make_engine
from hpcmpq.response.fallback import Fallback, Responses
from hpcmpq.response.wavefront import Wavefront
from hpcmpq.response.whole_model import WholeModel
from tests.response.test_wavefront import outputs, variants_of

NUM_POSITIONS, WIDTH = 6, 4


class PositionFirst(nn.Module):
    """A block on states [T, N, H] that looks up one row per position: of a batch of options it sees too many."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(WIDTH, WIDTH)
        self.positions = nn.Parameter(torch.randn(NUM_POSITIONS, 1, WIDTH))

    def forward(self, x_TNH: Tensor) -> Tensor:
        return x_TNH + self.product(x_TNH + self.positions[torch.arange(len(x_TNH))]).tanh()


class Counting(nn.Module):
    """A block that the model counts: it runs once per forward pass and not again."""

    def __init__(self, number: int, runs: dict[str, list[int]]) -> None:
        super().__init__()
        self.product = nn.Linear(WIDTH, WIDTH)
        self.number, self.runs = number, runs

    def forward(self, x: Tensor) -> Tensor:
        if self.number in self.runs["done"]:
            raise KeyError(f"block {self.number} has run already")
        self.runs["done"].append(self.number)
        return x + self.product(x).tanh()


class Model(nn.Module):
    """Blocks between a transposition and its inverse, or as they are; taken for a transformer, it is not traced."""

    config, base_model_prefix = None, ""

    def __init__(self, blocks: list[nn.Module], transposed: bool = False, runs: dict | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 3)
        self.transposed, self.runs = transposed, runs

    def forward(self, input: Tensor) -> Tensor:
        if self.runs is not None:
            self.runs["done"] = []
        x = input.transpose(0, 1) if self.transposed else input
        for block in self.blocks:
            x = block(x)
        return self.head(x.transpose(0, 1) if self.transposed else x)


def counting() -> Model:
    runs: dict[str, list[int]] = {"done": []}
    return Model([Counting(k, runs) for k in range(3)], runs=runs)


MODELS = {
    "positions first": lambda: Model([PositionFirst() for _ in range(3)], transposed=True),
    "runs once": counting,
}
"""The first runs as a wavefront, option by option; the second cannot."""


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_whole_passes(name: str, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval().requires_grad_(False)
    inputs = {"input": torch.randn(3, NUM_POSITIONS, WIDTH, dtype=torch.float64)}
    assert find_chain(model, inputs) is not None
    variants = variants_of(model, inputs)
    options = list(range(variants.space.num_options))
    with caplog.at_level(logging.INFO):
        engine = make_engine("auto", variants, inputs, options_per_pass=2, options_per_wave=4)
        assert isinstance(engine, Wavefront)
        z0_NTV, z_PNTV = outputs(engine, inputs, options)
        outputs(engine, inputs, options)
    expected0_NTV, expected_PNTV = outputs(WholeModel(model, variants), inputs, options)
    torch.testing.assert_close(z0_NTV, expected0_NTV, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(z_PNTV, expected_PNTV, rtol=1e-10, atol=1e-12)
    told = [text for text in caplog.messages if "one whole forward pass per option" in text]
    assert len(told) == (name != "positions first")
    assert all("KeyError" in text for text in told)


def test_what_was_run_before_a_failure_is_kept(caplog: pytest.LogCaptureFixture):
    model = Model([nn.Linear(WIDTH, WIDTH) for _ in range(2)]).double().eval().requires_grad_(False)
    inputs = {"input": torch.randn(3, NUM_POSITIONS, WIDTH, dtype=torch.float64)}
    whole = WholeModel(model, variants_of(model, inputs))

    def breaking(inputs: Inputs, options: Sequence[int]) -> Responses:
        z0_NTV, responses = whole.respond(inputs, options)

        def some() -> Iterator[tuple[list[int], Tensor]]:
            yield next(responses)
            yield next(responses)
            raise LookupError("no third one")

        return z0_NTV, some()

    fallback = Fallback(whole)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            _, responses = fallback.respond(breaking, inputs, [4, 2, 0, 3])
            assert [members for members, _ in responses] == [[4], [2], [0], [3]]
    [told] = caplog.messages
    assert "(LookupError: no third one); running one whole forward pass per option" in told


def test_what_no_memory_is_left_for_is_not_tried_again():
    class Hungry(Counting):
        def forward(self, x: Tensor) -> Tensor:
            if self.runs.get("full"):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return x + self.product(x)

    runs: dict = {"done": []}
    model = Model([Hungry(k, runs) for k in range(2)]).double().eval().requires_grad_(False)
    inputs = {"input": torch.randn(3, NUM_POSITIONS, WIDTH, dtype=torch.float64)}
    variants = variants_of(model, inputs)
    engine = make_engine("auto", variants, inputs)
    runs["full"] = True
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        outputs(engine, inputs, [0, 1])


def test_a_model_that_fails_while_it_is_looked_at_is_no_chain(caplog: pytest.LogCaptureFixture):
    """Whether weights before the blocks reach all of them is tried by halving them, which this model notices."""

    class Guarded(Model):
        def __init__(self) -> None:
            super().__init__([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
            self.stem = nn.Linear(WIDTH, WIDTH)
            self.least = 0.6 * float(self.stem.weight.detach().abs().max())

        def forward(self, input: Tensor) -> Tensor:
            if float(self.stem.weight.abs().max()) < self.least:
                raise IndexError("weights out of range")
            return super().forward(self.stem(input) * input.shape[1])

    model = Guarded().double().eval().requires_grad_(False)
    inputs = {"input": torch.randn(3, NUM_POSITIONS, WIDTH, dtype=torch.float64)}
    variants = variants_of(model, inputs)
    [block, *_] = [g for g, group in enumerate(variants.space.groups) if "blocks" in group.name]
    options = [option.index for option in variants.space.options if option.group == block]
    with caplog.at_level(logging.INFO):
        engine = make_engine("auto", variants, inputs)
    assert "its code fails when it is taken apart (IndexError)" in caplog.text
    _, found = outputs(engine, inputs, options)
    _, expected = outputs(WholeModel(model, variants), inputs, options)
    torch.testing.assert_close(found, expected)
