"""Tasks as parts of an evaluation: an item is a question, its values are whether and how well it is answered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.evaluate.parts import Part, chunk_size
from hpcmpq.evaluate.tasks.continuations import Encoder, Request, batch, make_encoder, score
from hpcmpq.evaluate.tasks.files import Question, read_questions
from hpcmpq.evaluate.tasks.harness import HarnessTask
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.data.sources import Documents
from hpcmpq.models.data.tokenization import find_tokenization
from hpcmpq.models.data.tokens import to_samples
from hpcmpq.models.description import ModelDescription, describe_model
from hpcmpq.models.outputs import Inputs
from hpcmpq.objective import ce_value
from hpcmpq.plan import content_hash
from hpcmpq.settings import Config, TaskConfig


@dataclass(frozen=True)
class ContinuationTask:
    """Questions to a causal language model: the choice that it finds most likely is its answer.

    Attributes:
        name: Of the task.
        questions: What is asked; a single choice is right if it is what the model would write.
        encoder: Texts to tokens.
        questions_per_pass: Of one forward pass, with all their choices.
    """

    name: str
    questions: tuple[Question, ...]
    encoder: Encoder
    questions_per_pass: int
    needs_original: bool = False

    @property
    def num_items(self) -> int:
        """Questions."""
        return len(self.questions)

    @property
    def items_per_chunk(self) -> int:
        """Whole passes."""
        return chunk_size(len(self.questions), self.questions_per_pass)

    @cached_property
    def _requests(self) -> tuple[tuple[Request, ...], ...]:
        return tuple(
            tuple(self.encoder.request(question.prompt, spaced(choice)) for choice in question.choices)
            for question in self.questions
        )

    def content(self) -> str:
        """See `Part.content`."""
        answers = [question.answer for question in self.questions]
        return content_hash([self.name, self._requests, answers, self.questions_per_pass])

    def inputs(self, start: int, stop: int) -> list[Inputs]:
        """See `Part.inputs`."""
        return [batch(flat(self._requests[first:last])) for first, last in self._passes(start, stop)]

    def values(
        self, start: int, stop: int, outputs: Iterator[Tensor], originals: Sequence[Tensor]
    ) -> dict[str, np.ndarray]:
        """`accuracy`, and `loss` −log p of the right answer.

        `accuracy_normalized` where there are choices: log p divided by the length of the choice's text.
        """
        rows: list[dict[str, float]] = []
        for (first, last), z_RTV in zip(self._passes(start, stop), outputs, strict=True):
            scores = iter(score(flat(self._requests[first:last]), z_RTV))
            for question in self.questions[first:last]:
                own = [next(scores) for _ in question.choices]
                row = {"loss": -own[question.answer].log_likelihood}
                if len(own) == 1:
                    rows.append({"accuracy": float(own[0].greedy), **row})
                    continue
                likely = [each.log_likelihood for each in own]
                lengths = [max(1, len(choice.encode())) for choice in question.choices]
                normalized = [value / length for value, length in zip(likely, lengths, strict=True)]
                right = float(np.argmax(likely) == question.answer)
                also = float(np.argmax(normalized) == question.answer)
                rows.append({"accuracy": right, "accuracy_normalized": also, **row})
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _passes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for first in range(start, stop, self.questions_per_pass):
            yield first, min(first + self.questions_per_pass, stop)


@dataclass(frozen=True)
class ClassifierTask:
    """Texts to a sequence classifier.

    Attributes:
        name: Of the task.
        samples: With the classes as targets.
        samples_per_pass: Of one forward pass.
    """

    name: str
    samples: Samples
    samples_per_pass: int
    needs_original: bool = False

    @property
    def num_items(self) -> int:
        """Texts."""
        return len(self.samples)

    @property
    def items_per_chunk(self) -> int:
        """Whole passes."""
        return chunk_size(len(self.samples), self.samples_per_pass)

    def content(self) -> str:
        """See `Part.content`."""
        assert self.samples.targets is not None
        return content_hash([self.name, self.samples.content_hashes(), self.samples.targets.tolist()])

    def inputs(self, start: int, stop: int) -> list[Inputs]:
        """See `Part.inputs`."""
        return [batch.inputs for batch in self.samples.passes(self.samples_per_pass, start, stop)]

    def values(
        self, start: int, stop: int, outputs: Iterator[Tensor], originals: Sequence[Tensor]
    ) -> dict[str, np.ndarray]:
        """`accuracy`, and `loss` −log p of the right class."""
        right, loss = [], []
        batches = self.samples.passes(self.samples_per_pass, start, stop)
        for part, z_N1V in zip(batches, outputs, strict=True):
            assert part.targets is not None
            target_N1 = part.targets.to(z_N1V.device).reshape(-1, 1)
            right.append((z_N1V.argmax(-1) == target_N1).double().reshape(-1))
            loss.append(ce_value(z_N1V, z_N1V, target_N1))
        return {"accuracy": torch.cat(right).cpu().numpy(), "loss": torch.cat(loss).cpu().numpy()}


def check_tasks(config: Config) -> None:
    """Refuse tasks that evaluation could not do, before anything is measured; of a GGUF file, malformed tasks alone.

    Raises:
        UserError: Naming the task and what is wrong.
    """
    # Of a GGUF file there is no config to describe the model by before `hpcmpq plan` has unpacked it.
    described = config.model.path is None or not Path(config.model.path).is_file()
    for task in config.evaluation.tasks:
        if task.type == "harness" and not Path(task.path).is_dir():
            raise UserError(f"task {task.name}: there is no directory {task.path}; correct evaluation.tasks")
        if described:
            made = make_task(task, config)
            if isinstance(made, HarnessTask):
                made.check()
        elif task.type != "harness":
            read_questions(task)


def make_task(task: TaskConfig, config: Config) -> Part | HarnessTask:
    """What measures a task.

    Raises:
        UserError: If the file is malformed or the model is of a kind that cannot do the task.
    """
    questions = () if task.type == "harness" else read_questions(task)
    description = describe_model(config.model)
    special_tokens = config.calibration.special_tokens
    if task.type == "harness" and description.kind == "causal_lm":
        encoder = make_encoder(description, f"task {task.name}", special_tokens)
        return HarnessTask(task, encoder, config.calibration.samples_per_pass)
    if description.kind == "sequence_classifier" and task.type == "classification":
        return ClassifierTask(
            task.name, _classified(task, questions, description, config), config.calibration.samples_per_pass
        )
    if description.kind != "causal_lm":
        raise UserError(
            f"task {task.name} of type {task.type} needs a causal language model"
            + (" or a sequence classifier" if task.type == "classification" else "")
            + f" in model.path; this model is a {description.kind.replace('_', ' ')}"
        )
    if task.type == "classification" and not task.labels:
        raise UserError(
            f"task {task.name}: a language model chooses among labels; name them in labels: [...]"
        )
    encoder = make_encoder(description, f"task {task.name}", special_tokens)
    return ContinuationTask(task.name, questions, encoder, config.calibration.samples_per_pass)


def _classified(
    task: TaskConfig, questions: Sequence[Question], description: ModelDescription, config: Config
) -> Samples:
    documents = Documents(
        tuple(question.prompt for question in questions), tuple(question.answer for question in questions)
    )
    length = min(config.calibration.sequence_length, description.max_positions or 2**31)
    place = f"task {task.name}"
    tokenization = find_tokenization(documents, place, description, config.calibration.special_tokens)
    return to_samples(documents, place, description, length, tokenization)


def spaced(choice: str) -> str:
    r"""A choice as it follows a prompt: after a blank, unless it begins with one.

    Example:
        >>> spaced("yes"), spaced("\nyes")
        (' yes', '\nyes')
    """
    return choice if choice[:1].isspace() else f" {choice}"


def flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """All entries of all rows."""
    return [entry for row in rows for entry in row]
