"""Blocks that are read ahead: the same bits from the same reads, one block more in memory, and while others compute."""

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import forward
from hpcmpq.models.read_ahead import ReadAhead
from hpcmpq.models.stored_weights import Weights
from hpcmpq.models.streaming import load_streamed, shapes_only
from hpcmpq.settings import GroupsConfig, ModelConfig
from hpcmpq.space import SearchSpace
from tests.models.streamed_secant import secant
from tests.models_of_many_kinds import make

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
"""How long one thread waits for another in a test that then fails."""


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def saved(request, tmp_path_factory) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Directory and inputs of a small model; the other kinds are in `test_streaming.py`."""
    model, inputs = make(request.param, torch.float32)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory, max_shard_size="8KB")
    return ModelConfig(path=str(directory)), inputs


class Watched:
    """What is read, by which thread, and how much of it is in memory."""

    def __init__(self) -> None:
        self.main = threading.current_thread()
        self.read: list[tuple[str, bool]] = []
        self.live = self.most = 0

    def see(self, name: str, tensor: Tensor) -> Tensor:
        self.read.append((name, threading.current_thread() is self.main))
        size = tensor.untyped_storage().nbytes()
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(tensor.untyped_storage(), self.forget, size)
        return tensor

    def forget(self, size: int) -> None:
        self.live -= size


@pytest.fixture
def watched(monkeypatch) -> Iterator[Watched]:
    seen, read = Watched(), Weights.read
    monkeypatch.setattr(Weights, "read", lambda self, *given: seen.see(given[0], read(self, *given)))
    yield seen


def test_the_same_tensors_are_read_as_often_and_all_but_the_first_block_by_a_thread(saved, watched):
    config, inputs = saved
    plain, ahead = load_streamed(config), load_streamed(config, read_ahead=True)
    names = plain.names_by_block()
    watched.read.clear()
    expected = forward(plain.model, inputs)
    alone = watched.read.copy()
    watched.read.clear()
    assert torch.equal(forward(ahead.model, inputs), expected)
    assert sorted(name for name, _ in watched.read) == sorted(name for name, _ in alone)
    assert all(by_main for _, by_main in alone)
    assert {name for name, by_main in watched.read if by_main} == set(names[0])


def test_no_more_than_one_block_waits_beside_the_one_that_runs(saved, watched):
    config, inputs = saved
    streamed = load_streamed(config, read_ahead=True)
    with shapes_only(config, inputs) as (shapes, shape_inputs):
        groups = find_groups(shapes, GroupsConfig(), shape_inputs)
    outside = watched.live
    watched.most = 0
    space = SearchSpace(groups, (("int4", "int8"),) * len(groups))
    secant(streamed.model, space, Samples(inputs)[:2], streamed, options_per_wave=1000)
    block = max(
        sum(streamed.model.get_parameter(name).nbytes for name in own) for own in streamed.names_by_block()
    )
    assert outside + block < watched.most <= outside + 2 * block
    assert watched.live == outside


def test_the_next_block_is_read_while_one_computes(saved, watched):
    config, inputs = saved
    streamed = load_streamed(config, read_ahead=True)
    names = streamed.names_by_block()
    there = threading.Event()
    see = watched.see

    def seen(name: str, tensor: Tensor) -> Tensor:
        if name == names[1][-1]:
            there.set()
        return see(name, tensor)

    watched.see = seen
    waited = []
    first = next(module for module in streamed.blocks[0].modules() if isinstance(module, torch.nn.Linear))
    first.register_forward_pre_hook(lambda *_: waited.append(there.wait(PATIENCE_S)))
    forward(streamed.model, inputs)
    assert waited[0], "block 0 is computing, and block 1 is not read"


def test_what_a_thread_cannot_read_is_read_by_whoever_needs_it(saved, monkeypatch):
    config, inputs = saved
    streamed = load_streamed(config, read_ahead=True)
    expected = forward(streamed.model, inputs)
    main, read = threading.current_thread(), Weights.read
    broken = streamed.names_by_block()[1][0]
    failing = [True]

    def breaks(self: Weights, name: str, into: Tensor | None = None) -> Tensor:
        if name == broken and (failing[0] or threading.current_thread() is not main):
            raise OSError("the file system is away")
        return read(self, name, into)

    monkeypatch.setattr(Weights, "read", breaks)
    with pytest.raises(OSError, match="away"):
        forward(streamed.model, inputs)
    failing[0] = False
    assert torch.equal(forward(streamed.model, inputs), expected)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_pass_that_ends_early_reads_no_further_and_lets_go(saved, watched, error):
    config, inputs = saved
    streamed = load_streamed(config, read_ahead=True)
    names, before = streamed.names_by_block(), watched.live
    begun, see = threading.Event(), watched.see

    def seen(name: str, tensor: Tensor) -> Tensor:
        see(name, tensor)
        if name == names[1][0]:
            begun.set()
        return tensor

    def ends(*_: object) -> None:
        assert begun.wait(PATIENCE_S)
        raise error

    watched.see = seen
    first = next(module for module in streamed.blocks[0].modules() if isinstance(module, torch.nn.Linear))
    handle = first.register_forward_pre_hook(ends)
    with pytest.raises(error):
        forward(streamed.model, inputs)
    gc.collect()
    assert watched.live == before
    assert not any(thread.name == "read ahead" for thread in threading.enumerate())
    handle.remove()
    assert torch.equal(forward(streamed.model, inputs), forward(load_streamed(config).model, inputs))


def test_a_tensor_fills_no_place_of_another_shape(saved):
    config, _ = saved
    weights = load_streamed(config).weights
    for name in next(iter(load_streamed(config).names_by_block())):
        tensor = weights.read(name)
        assert torch.equal(weights.read(name, torch.full_like(tensor, torch.nan)), tensor)
        with pytest.raises(ValueError, match="not|fill"):
            weights.read(name, torch.empty((2, *tensor.shape)))


def test_a_block_that_is_not_asked_for_is_let_go(saved, watched):
    config, _ = saved
    streamed = load_streamed(config)
    names = streamed.names_by_block()
    shapes = [{name: streamed.model.get_parameter(name).shape for name in own} for own in names]
    ahead = ReadAhead(streamed.weights, shapes)
    before = watched.live
    ahead.start(1)
    assert ahead.take(0) == {} and watched.live == before
    ahead.start(len(names))
    assert ahead.take(len(names)) == {}
    ahead.start(1)
    ahead.start(0)
    read = ahead.take(0)
    assert list(read) == names[0] and ahead.take(0) == {}
    del read
    assert watched.live == before
