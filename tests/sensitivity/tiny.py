"""Tiny float64 models of several families as subjects, and the loss as a function of option coordinates t.

Axis letters: P options, N samples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpcmpq.formats import Quantizer
from hpcmpq.models.data.samples import IGNORED, Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.models.outputs import call_arguments, outputs_NTV
from hpcmpq.models.weights import called_with
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import SearchSpace

VOCAB = 11
FORMATS = ("int2", "int4", "int8")


class Mlp(nn.Module):
    """Three layers with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, input: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(input)) * self.gate(input))


class Cnn(nn.Module):
    """Strided, grouped and one-dimensional views of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 4, 3, groups=2)
        self.head = nn.Linear(4, 4)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.nn.functional.gelu(self.first(input)))).mean((2, 3)))


class Fused(nn.Module):
    """Uses one weight twice through its layer, which has a second name, and another past its layer.

    A second output comes of a third use, which the first knows nothing of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.past, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.same = self.twice

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.twice(torch.tanh(self.twice(input)))
        return self.head(torch.tanh(hidden @ self.past.weight.T) + self.past(hidden)), self.same(hidden)


class Past(nn.Module):
    """Uses the weight of a convolution and never calls it, as the short convolutions of linear attention are used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.short, self.head = nn.Linear(5, 6), nn.Conv1d(6, 6, 3, groups=6), nn.Linear(6, 4)

    def forward(self, input: Tensor) -> Tensor:
        steps = torch.tanh(self.first(input)).unsqueeze(2) * torch.arange(1, 6).to(input)
        mixed = nn.functional.conv1d(steps, self.short.weight, self.short.bias, groups=6)
        return self.head(torch.tanh(mixed).mean(2))


class Routed(nn.Module):
    """Gives every sample to one expert of a list, so that none runs on all samples, and the last on none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router, self.head = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, input: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(input))
        share, chosen = self.router(hidden)[:, :2].softmax(-1).topk(1)
        mixed = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            own = (chosen[:, 0] == number).nonzero()[:, 0]
            if len(own):
                mixed = mixed.index_add(0, own, share[own] * torch.tanh(expert(hidden[own])))
        return self.head(hidden + mixed)


def llama() -> nn.Module:
    """transformers' Llama computes norms and softmax in float32; here they keep the model's precision."""
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    AttentionInterface.register("plain", plain_attention)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16, attn_implementation="plain",
        )
    )  # fmt: skip
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LlamaRMSNorm):
                setattr(module, name, nn.RMSNorm(8, eps=1e-6))
    return model


def plain_attention(module, query, key, value, attention_mask, scaling, **_):  # type: ignore[no-untyped-def]
    """Causal attention by its formula, in the precision given."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = scaling * query @ key.transpose(2, 3)
    above = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(above, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=8, n_layer=2, n_head=2, n_positions=16, attn_implementation="eager",
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, attn_implementation="eager",
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp, "cnn": Cnn, "fused": Fused, "past": Past, "routed": Routed, "llama": llama, "gpt2": gpt2, "bert": bert
}  # fmt: skip


def make_subject(
    name: str, objective: str, *, dtype: torch.dtype = torch.float64, num_probes: int | None = None,
    groups: GroupsConfig | None = None, per_pass: int = 2, num_samples: int = 3, scale: float = 1.0,
    formats: tuple[str, ...] = FORMATS,
) -> tuple[Subject, Samples]:  # fmt: skip
    """A model, quantized at random range, and its samples."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    model = model.to(dtype).eval().requires_grad_(False)
    samples = make_samples(name, num_samples, dtype)
    every = (
        GroupsConfig(include=("*",)) if name in ("mlp", "cnn", "fused", "past", "routed") else GroupsConfig()
    )
    found = find_groups(model, groups or every, samples[:1].inputs)
    space = SearchSpace(found, (formats,) * len(found))
    variants = Scaled(model, space, Quantizer(group_size=4, symmetric=True, range="absmax"))
    variants.scale = scale
    return Subject(model, space, variants, OBJECTIVES[objective], num_probes, per_pass, 0), samples


class Scaled(Variants):
    """Variants whose errors are scaled, for limits of small errors."""

    scale: float = 1.0

    def quantized(self, group, format_name: str) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        whole = super().quantized(group, format_name)
        return {n: o + self.scale * (whole[n] - o) for n, o in self.originals(group).items()}


def make_samples(name: str, num_samples: int, dtype: torch.dtype) -> Samples:
    generator = torch.Generator().manual_seed(1)
    if name in ("mlp", "fused", "past", "routed"):
        inputs = {"input": torch.randn(num_samples, 5, generator=generator).to(dtype)}
        return Samples(inputs, torch.randint(4, (num_samples,), generator=generator), labelled=True)
    if name == "cnn":
        inputs = {"input": torch.randn(num_samples, 1, 8, 8, generator=generator).to(dtype)}
        return Samples(inputs, torch.randint(4, (num_samples,), generator=generator), labelled=True)
    tokens = torch.randint(VOCAB, (num_samples, 6), generator=generator)
    targets = torch.randint(VOCAB, (num_samples, 6), generator=generator)
    targets[:, -1] = IGNORED
    return Samples({"input_ids": tokens}, targets, labelled=True)


def outputs_at(subject: Subject, samples: Samples) -> Callable[[Tensor], Tensor]:
    """t [P] ↦ z(w + Σ t_p δ_p, x + Σ t_p e_p), [N, T, V], with the inputs' errors e frozen at the original's."""
    model, space = subject.model, subject.space
    errors = [subject.variants.errors(group) for group in range(len(space.groups))]
    args, kwargs = call_arguments(model, samples.inputs)
    frozen = frozen_errors(subject, lambda: model(*args, **kwargs))

    def outputs(t_P: Tensor) -> Tensor:
        weights = {}
        for group, delta in enumerate(errors):
            for name, error_Q in delta.items():
                step = torch.tensordot(t_P[space.slice_of(group)], error_Q, dims=1)
                weights[name] = model.get_parameter(name) + step
        with moved_inputs(subject, frozen, t_P):
            return outputs_NTV(called_with(model, weights, args, kwargs))

    return outputs


Frozen = dict[tuple[nn.Module, int], tuple[int, tuple[Tensor, ...]]]
"""{(module, which of its calls): (group, errors of every input [Q, ...])}."""


def frozen_errors(subject: Subject, run: Callable[[], object]) -> Frozen:
    """Errors of all inputs that some option rounds, at the original."""
    activations, turns, found = subject.variants.activations, {}, {}

    def record(module: nn.Module, args: tuple[Tensor, ...], group: int) -> None:
        turn = turns[module] = turns.get(module, -1) + 1
        errors = activations.errors(group, module, args)
        if errors is not None:
            found[module, turn] = (group, errors)

    with hooked(subject, record):
        run()
    return found


@contextmanager
def moved_inputs(subject: Subject, frozen: Frozen, t_P: Tensor) -> Iterator[None]:
    turns: dict[nn.Module, int] = {}

    def move(module: nn.Module, args: tuple[Tensor, ...], group: int) -> tuple[Tensor, ...] | None:
        turn = turns[module] = turns.get(module, -1) + 1
        if (module, turn) not in frozen:
            return None
        own = t_P[subject.space.slice_of(group)]
        errors = frozen[module, turn][1]
        return tuple(x + torch.tensordot(own, e_Q, dims=1) for x, e_Q in zip(args, errors, strict=True))

    with hooked(subject, move):
        yield


@contextmanager
def hooked(subject: Subject, hook: Callable[[nn.Module, tuple[Tensor, ...], int], object]) -> Iterator[None]:
    places = subject.variants.activations.places
    handles = [
        module.register_forward_pre_hook(lambda m, args, group=group: hook(m, args, group))
        for group, modules in enumerate(places)
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def losses_at(subject: Subject, samples: Samples) -> Callable[[Tensor], Tensor]:
    """t [P] ↦ per-sample losses [N]."""
    outputs = outputs_at(subject, samples)
    z0_NTV = outputs(torch.zeros(subject.space.num_options, dtype=torch.float64))
    return lambda t_P: subject.objective.value(outputs(t_P), z0_NTV, samples.targets)
