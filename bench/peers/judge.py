"""The one judge: outputs of whole assignments against the original's, on text that nobody calibrated on.

Its formulas are its own and share no code with what it judges. Axis letters: N samples, T positions, V outputs.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.models.data.samples import IGNORED, Samples
from hpcmpq.models.outputs import forward
from hpcmpq.store.whole_files import replacing


class Assignable(Protocol):
    """A model that takes formats: `Weights` where these round weights alone, `Variants` where they round inputs too."""

    @property
    def model(self) -> nn.Module:
        """The original."""

    def assigned(self, assignment: Mapping[str, str]) -> AbstractContextManager[None]:
        """The model with {group name: format name} applied; the original returns after."""


@dataclass(frozen=True)
class Verdict:
    """What one assignment does to the outputs on one text; positions that do not count are NaN.

    Attributes:
        kl_NT: KL(original ‖ quantized) of every position, nats.
        ce_NT: −log probability of the next token.
        same_NT: 1 where the likeliest token is the original's, else 0.
    """

    kl_NT: np.ndarray
    ce_NT: np.ndarray
    same_NT: np.ndarray

    @property
    def kl_N(self) -> np.ndarray:
        """Mean over each sample's positions."""
        return np.nanmean(self.kl_NT, 1)


@dataclass
class Judge:
    """Measures assignments, each once: verdicts are kept in a directory.

    Attributes:
        weights: The model and its options.
        samples: Of one text.
        directory: Of the verdicts of this text.
        per_pass: Samples of one forward pass.
    """

    weights: Assignable
    samples: Samples
    directory: Path
    per_pass: int = 4
    _original: list[Tensor] = field(default_factory=list)

    def verdict(self, assignment: Mapping[str, str]) -> Verdict:
        """The verdict on {group name: format name}; an empty assignment is the original."""
        text = json.dumps(sorted(assignment.items()))
        path = self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            found = self._measure(assignment)
            with replacing(path) as attempt, attempt.open("wb") as file:
                np.savez(file, kl=found.kl_NT, ce=found.ce_NT, same=found.same_NT)
        with np.load(path) as arrays:
            return Verdict(arrays["kl"], arrays["ce"], arrays["same"])

    @torch.no_grad()
    def _measure(self, assignment: Mapping[str, str]) -> Verdict:
        batches = list(self.samples.passes(self.per_pass))
        if not self._original:
            self._original = [self._log_probabilities(batch) for batch in batches]
        with self.weights.assigned(assignment):
            parts = [self._compare(b, log0) for b, log0 in zip(batches, self._original, strict=True)]
        return Verdict(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _log_probabilities(self, batch: Samples) -> Tensor:
        return torch.log_softmax(forward(self.weights.model, batch.inputs).float(), -1)

    def _compare(self, batch: Samples, log0_NTV: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert batch.targets is not None
        log_NTV = self._log_probabilities(batch)
        ce_NT = -log_NTV.gather(-1, batch.targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        same_NT = (log_NTV.argmax(-1) == log0_NTV.argmax(-1)).float()
        kl_NT = (log0_NTV.exp() * log_NTV.neg_().add_(log0_NTV)).sum(-1)
        left_out_NT = batch.targets == IGNORED
        kl, ce, same = (
            value.masked_fill(left_out_NT, torch.nan).numpy() for value in (kl_NT, ce_NT, same_NT)
        )
        return kl, ce, same
