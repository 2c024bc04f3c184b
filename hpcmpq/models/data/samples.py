"""Samples of a model's inputs, and the three disjoint sets of them that a run uses."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcmpq.objective import IGNORED

__all__ = ["IGNORED", "Samples", "Splits"]


@dataclass(frozen=True)
class Samples:
    """N samples; every tensor's first axis is N.

    Attributes:
        inputs: By the name of the model's argument; ``input`` is passed as the first one. `load_splits` gives
            floating inputs the model's dtype.
        targets: int64 [N, T] or [N], `IGNORED` where a position does not count in any objective, or None
            where every position counts and there are no labels. Position t of a causal language model
            holds token t + 1. Data without labels that has padding holds 0 at the positions that count.
        labelled: Whether the targets are labels that ``ce`` may use.
    """

    inputs: dict[str, Tensor]
    targets: Tensor | None = None
    labelled: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Samples":
        """The chosen samples, one of them for an integer."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
            index = slice(index, index + 1 or None)
        chosen = {key: value[index] for key, value in self.inputs.items()}
        return Samples(chosen, None if self.targets is None else self.targets[index], self.labelled)

    def passes(self, size: int, start: int = 0, stop: int | None = None) -> Iterator["Samples"]:
        """The samples from `start` to `stop` in order, `size` at a time; the last ones may be fewer."""
        stop = len(self) if stop is None else stop
        return (self[first : min(first + size, stop)] for first in range(start, stop, size))

    def of_all_lengths(self, size: int) -> "Samples":
        """At most `size` samples from the shortest to the longest, where some are padded; else the first ones."""
        mask_NT = self.inputs.get("attention_mask")
        if mask_NT is None or mask_NT.ndim != 2 or not len(self):
            return self[:size]
        shortest_first = mask_NT.sum(1).argsort(stable=True)
        return self[shortest_first[torch.linspace(0, len(self) - 1, min(size, len(self))).round().long()]]

    def to(self, device: torch.device | str) -> "Samples":
        """The same samples on a device."""
        moved = {key: value.to(device) for key, value in self.inputs.items()}
        return Samples(moved, None if self.targets is None else self.targets.to(device), self.labelled)

    def trimmed(self) -> "Samples":
        """The same without the positions at the end that are padding in all of them, by their `attention_mask`."""
        mask_NT = self.inputs.get("attention_mask")
        if mask_NT is None or mask_NT.ndim != 2:
            return self
        real_T = torch.nonzero(mask_NT.any(0))
        length = max(1, int(real_T[-1]) + 1 if len(real_T) else 0)
        shape = mask_NT.shape

        def cut(x: Tensor) -> Tensor:
            return x[:, :length] if x.shape[:2] == shape else x

        inputs = {name: cut(x) for name, x in self.inputs.items()}
        return Samples(inputs, None if self.targets is None else cut(self.targets), self.labelled)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        tensors = (*self.inputs.values(), *(() if self.targets is None else (self.targets,)))
        return sum(tensor.nbytes for tensor in tensors)

    def counts(self, n: int) -> bool:
        """Whether sample n has a position that counts; without one it has no loss."""
        return self.targets is None or bool((self.targets[n] != IGNORED).any())

    def content_hashes(self) -> list[str]:
        """SHA-256 of every sample's inputs (names, types, shapes, bytes), targets aside."""
        return [self.content_hash(n) for n in range(len(self))]

    def content_hash(self, n: int) -> str:
        """SHA-256 of the inputs of sample n."""
        return _hash_of({name: value[n] for name, value in self.inputs.items()})

    def digest(self) -> str:
        """SHA-256 of all inputs and targets, in order: the same for the same samples alone."""
        return _sha256("\n".join([*self.content_hashes(), str(self.targets_hash())]))

    def targets_hash(self) -> str | None:
        """SHA-256 of all targets and of whether they are labels, or None without targets."""
        return None if self.targets is None else _hash_of({f"labelled {self.labelled}": self.targets})


def in_dtype(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs of which those of floating numbers have a dtype, as a model of that dtype takes them."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_of(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        tensor = value.detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


@dataclass(frozen=True)
class SamplePool:
    """Samples to choose from.

    Attributes:
        samples: All of them.
        padded: Whether they were padded here to the longest.
    """

    samples: Samples
    padded: bool = False

    def part(self, chosen: Sequence[int]) -> Samples:
        """The chosen samples, padded to the longest of them."""
        samples = self.samples[list(chosen)]
        return samples.trimmed() if self.padded else samples


@dataclass(frozen=True)
class Splits:
    """Disjoint samples of one run.

    Attributes:
        calibration: Sensitivities are measured on these.
        held_out: The same data, never seen by calibration.
        evaluation: Reported quality is measured on these.
        num_dropped: Samples dropped because their content was in an earlier set already.
        num_uncounted: Samples left out because no position of theirs counts.
        num_overlapping: Samples dropped because earlier sets hold half or more of their tokens, in long runs.
        special_tokens: What begins and ends every calibration sample, as ``<bos> ...``, or empty.
        rounding: Error-compensated rounding is fitted on these; None without it, where the data hold no more, and
            until they are chosen of `candidates`.
        candidates: With ``calibration.balance_experts`` what they are chosen of by the model's routers, in the order
            in which they would be taken without; None where the data hold no more.
        pool_bytes: Of all samples that these were chosen from.
    """

    calibration: Samples
    held_out: Samples
    evaluation: Samples
    num_dropped: int = 0
    num_uncounted: int = 0
    num_overlapping: int = 0
    special_tokens: str = ""
    rounding: Samples | None = None
    candidates: SamplePool | None = None
    pool_bytes: int = 0
