"""Hugging Face models whose blocks are read from safetensors when they run, one at a time.

The model is built without its weights; what lies outside its largest list of blocks is read at once. A block's
forward reads the block, runs and forgets it; `Streamed.resident(k)` keeps it for several runs, and meanwhile the next
one may be read ahead. Within `Streamed.changed` blocks have other weights, made from their own when they are read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpcmpq.errors import UserError
from hpcmpq.models.blocks import largest_list
from hpcmpq.models.chain.chain import Chain
from hpcmpq.models.description import describe_model
from hpcmpq.models.factories import describe
from hpcmpq.models.load import model_class, own_code, pick_device, quiet_transformers
from hpcmpq.models.memory import return_what_is_free
from hpcmpq.models.read_ahead import ReadAhead
from hpcmpq.models.searchable_layers import plain_experts
from hpcmpq.models.stored_weights import Weights, find_weights
from hpcmpq.settings import ModelConfig

LARGE = 2**24
"""Numbers from which on a tensor without values is not made in memory while a model of shapes is built."""

Change = Callable[[str, Tensor], Tensor]
"""(parameter, its weight as it is stored) → the weight that its block runs with; the same tensor if it is unchanged."""


def unchanged(parameter: str, weight: Tensor) -> Tensor:
    """The original's weight."""
    return weight


@dataclass
class Streamed:
    """A model without its blocks' weights.

    Attributes:
        model: Runs like any other; its blocks read themselves.
        weights: Where from.
        blocks: The modules that are streamed.
        originals: {parameter: its own weight} of those in memory that were changed when they were read.
        ahead: What reads the next block while one is in memory, or None.
    """

    model: nn.Module
    weights: Weights
    blocks: tuple[nn.Module, ...]
    _owners: list[list[tuple[nn.Module, str, str]]] = field(default_factory=list)
    _loaded: list[int] = field(default_factory=list)
    originals: dict[str, Tensor] = field(default_factory=dict)
    ahead: ReadAhead | None = None
    _change: Change = unchanged

    @contextmanager
    def resident(self, k: int) -> Iterator[None]:
        """The weights of block k are in memory."""
        self._loaded[k] += 1
        absent = []
        try:
            if self._loaded[k] == 1:
                read = {} if self.ahead is None else self.ahead.take(k)
                for module, own_name, name in self._owners[k]:
                    absent.append((module, own_name, name, module._parameters[own_name]))
                    there = read.pop(name, None)
                    original = self.weights.read(name) if there is None else there.to(self.weights.device)
                    weight = self._change(name, original)
                    if weight is not original:
                        self.originals[name] = original
                    module._parameters[own_name] = nn.Parameter(weight, requires_grad=False)
                if self.ahead is not None:
                    self.ahead.start(k + 1)
            yield
        except BaseException:  # nobody asks for the next block, and Python would wait for its thread
            if self.ahead is not None:
                self.ahead.forget()
            raise
        finally:
            self._loaded[k] -= 1
            for module, own_name, name, parameter in absent:
                module._parameters[own_name] = parameter
                self.originals.pop(name, None)
            if absent:
                return_what_is_free()

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """Inside, blocks that are read have the weights that `change` makes of their own."""
        before, self._change = self._change, change
        try:
            yield
        finally:
            self._change = before

    def names_by_block(self) -> list[list[str]]:
        """The parameters that are read with each block."""
        return [[name for _, _, name in owners] for owners in self._owners]

    def is_streamed(self, parameter: str) -> bool:
        """Whether a parameter is read with its block."""
        return any(name == parameter for owners in self._owners for _, _, name in owners)


def streamed_chain(chain: Chain | None, streamed: Streamed | None) -> Chain | None:
    """The chain that a model is, whose blocks are read when they run if the model is streamed.

    Raises:
        UserError: If a streamed model is not a chain, or one of other blocks than those of its largest list.
    """
    if streamed is None:
        return chain
    if chain is None:
        raise UserError("only a chain of blocks can be streamed, run by engine auto; set model.stream: false")
    if tuple(chain.blocks) != streamed.blocks:
        raise UserError("the largest list of blocks is not the one that runs; set model.stream: false")
    return replace(chain, resident=streamed.resident)


def load_streamed(config: ModelConfig, *, read_ahead: bool = False) -> Streamed:
    """The model of a directory, to be streamed.

    Args:
        config: Where it is.
        read_ahead: Whether a thread reads the next block into host memory while one runs.

    Raises:
        UserError: If the model comes from a factory, has no list of blocks, or its safetensors do not hold every
            parameter under the name that the model gives it.
    """
    dtype, device = getattr(torch, config.dtype), pick_device(config.device)
    model = skeleton(config)
    blocks = largest_list(model)
    weights = find_weights(model, Path(str(config.path)), dtype, device)
    inside = {id(p) for block in blocks for p in block.parameters()}
    outside = {id(p) for p in _outside(model, blocks)}
    owners: list[list[tuple[nn.Module, str, str]]] = [[] for _ in blocks]
    of_block = {id(module): k for k, block in enumerate(blocks) for module in block.modules()}
    fresh: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for own_name, parameter in module._parameters.items():
            name = f"{path}.{own_name}" if path else own_name
            if parameter is None:
                continue
            if id(parameter) in inside and id(parameter) not in outside:
                owners[of_block[id(module)]].append((module, own_name, name))
            else:
                if id(parameter) not in fresh:
                    fresh[id(parameter)] = nn.Parameter(weights.read(name), requires_grad=False)
                module._parameters[own_name] = fresh[id(parameter)]
        for own_name, buffer in module._buffers.items():
            if buffer is not None:
                name = f"{path}.{own_name}" if path else own_name
                stored = weights.read(name) if name in weights.aliases else buffer
                module._buffers[own_name] = stored.to(device)
    streamed = Streamed(model.eval(), weights, blocks, owners, [0] * len(blocks))
    if read_ahead:
        shapes = [
            {name: p.shape for name in names if (p := model.get_parameter(name)).is_floating_point()}
            for names in streamed.names_by_block()
        ]
        streamed.ahead = ReadAhead(weights, shapes)
    for k, block in enumerate(blocks):
        block.forward = _reading(streamed, k, block.forward)  # type: ignore[method-assign]
    return streamed


def skeleton(config: ModelConfig) -> nn.Module:
    """The model of a directory with parameters on the meta device and real buffers."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), _LargeOnMeta():
        model = _build(config)
    model.tie_weights()  # type: ignore[operator]
    return model


class _LargeOnMeta(TorchFunctionMode):
    """While active, large tensors that are made without values are made without memory too.

    Experts are such tensors of many gigabytes, which accelerate throws away only after they were made.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and "device" not in kwargs:
            made = func(*args, **kwargs, device="meta")
            if made.numel() >= LARGE:
                return made
        return func(*args, **kwargs)


def _build(config: ModelConfig) -> nn.Module:
    description = describe_model(config)
    if description.path is None:
        raise UserError(
            "model.stream needs a Hugging Face directory in model.path; leave it out for a factory"
        )
    with quiet_transformers():
        import transformers

        try:
            values = transformers.AutoConfig.from_pretrained(
                description.path, local_files_only=True, trust_remote_code=False
            )
            make = model_class(description)
            make = getattr(make, "from_config", None) or make._from_config
            model = make(values, dtype=getattr(torch, config.dtype))
        except Exception as error:
            raise UserError(
                own_code(description.path, error)
                or f"cannot build the model in {description.path}: {describe(error)}; set model.stream: false"
            ) from error
    return model.eval().requires_grad_(False)


@contextmanager
def shapes_only(
    config: ModelConfig, inputs: dict[str, Tensor]
) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """Model and inputs whose tensors have shapes and no values: to trace a model that does not fit."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Built before: some models compute plain numbers while they are built, from tensors that must have values.
    model = skeleton(config)
    plain_experts(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shaped: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in shaped:
                        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                        shaped[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                    module._parameters[name] = shaped[id(parameter)]
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else mode.from_tensor(buffer)
        yield model, {name: mode.from_tensor(value.cpu()) for name, value in inputs.items()}


def _reading(streamed: Streamed, k: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with streamed.resident(k):
            return forward(*args, **kwargs)

    return run


def _outside(model: nn.Module, blocks: tuple[nn.Module, ...]) -> Iterator[nn.Parameter]:
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            yield from (p for p in module._parameters.values() if p is not None)
