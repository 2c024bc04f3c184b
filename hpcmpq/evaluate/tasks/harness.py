"""EleutherAI's lm-evaluation-harness with the models of a run: its tasks and metrics, our engines.

A task of type ``harness`` names a directory with the harness's own YAML file for it; data are read from disk. The
harness runs alike on all ranks and believes to be alone; its requests are shared out underneath. The only user of
lm_eval.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.evaluate.engines import EvaluationEngine
from hpcmpq.evaluate.results import Values
from hpcmpq.evaluate.tasks.continuations import Encoder, LogLikelihood, Request, batch, score
from hpcmpq.plan import content_hash
from hpcmpq.settings import TaskConfig
from hpcmpq.store.metric_names import saying

NAMES = {"acc": "accuracy", "acc_norm": "accuracy_normalized"}
"""Our names of the harness's metrics."""

ROLLING_LENGTH = 2048
"""Tokens of a window where the model has no limit."""


@dataclass(frozen=True)
class HarnessTask:
    """One task of the harness.

    Attributes:
        task: Its `name` is the harness's.
        encoder: Texts to tokens.
        requests_per_pass: Texts of one forward pass.
    """

    task: TaskConfig
    encoder: Encoder
    requests_per_pass: int

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def content(self) -> str:
        """A hash of the files in the task's directory."""
        files = sorted(path for path in Path(self.task.path).rglob("*") if path.is_file())
        return content_hash([self.task.name, [[str(path), path.read_bytes().hex()] for path in files]])

    def check(self) -> None:
        """Refuse a task that cannot be measured here; reads no data.

        Raises:
            UserError: If the library is missing, or knows no such task.
        """
        _ = self._harness

    def measure(self, engine: EvaluationEngine) -> Values:
        """Each metric of each document, with the weights that the engine has; all ranks call this together.

        Raises:
            UserError: If there is no such task, or the harness cannot run it here.
        """
        lm_eval, tasks = self._harness
        try:
            task = lm_eval.tasks.get_task_dict([self.name], tasks)[self.name]
            found = lm_eval.simple_evaluate(
                model=_model(engine, self.encoder, self.requests_per_pass),
                tasks=[self.name], task_manager=tasks, log_samples=True, bootstrap_iters=0,
            )  # fmt: skip
        except (ConnectionError, ImportError) as error:
            raise UserError(
                f"lm-evaluation-harness cannot run task {self.name} here: {error}; what it reads must be on disk: "
                "fetch it where there is network first, or install what is missing"
            ) from error
        except (FileNotFoundError, ValueError, KeyError, NotImplementedError) as error:
            raise UserError(f"lm-evaluation-harness cannot run task {self.name}: {error}") from error
        samples = found["samples"][self.name]
        rows = [{name: sample[name] for name in sample["metrics"]} for sample in samples]
        values = values_of(rows, task.aggregation(), task.higher_is_better())
        if not values:
            raise UserError(
                f"no metric of harness task {self.name} is a mean of one value per document (it has "
                f"{', '.join(rows[0])})"
            )
        return values

    @cached_property
    def _harness(self) -> tuple[Any, Any]:
        """The library, and the tasks that it knows: those of the directory, else its own."""
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import lm_eval
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                f"task {self.name} needs lm-evaluation-harness ({error}); `pip install 'hpcmpq[lm-eval]'`"
            ) from error
        if not Path(self.task.path).is_dir():
            raise UserError(f"task {self.name}: there is no directory {self.task.path} with its YAML file")
        for include_defaults in (False, True):
            tasks = TaskManager(include_path=self.task.path, include_defaults=include_defaults)
            if self.name in tasks.all_tasks:
                return lm_eval, tasks
        raise UserError(
            f"lm-evaluation-harness knows no task {self.name!r}, neither of its own nor in {self.task.path}; "
            "the name must be that in the YAML file's `task:`"
        )


def values_of(
    rows: Sequence[Mapping[str, Any]],
    aggregation: Mapping[str, Callable[..., Any]],
    higher_is_better: Mapping[str, bool],
) -> Values:
    """{metric: value of each document} of those that are means over documents.

    A perplexity of log-likelihoods is exp of minus their mean: given is `loss`, the −log-likelihood of each.

    Args:
        rows: {metric: value} of each document, by the harness's names.
        aggregation: How the harness makes one value of them; a mean where it does not say.
        higher_is_better: Of each metric.
    """
    from lm_eval.api.metrics import mean, perplexity

    found = {}
    for name, value in rows[0].items():
        if not isinstance(value, int | float | np.number):
            continue
        value_N = np.array([float(row[name]) for row in rows])
        combine = aggregation.get(name, mean)
        if combine is perplexity:
            found["loss"] = -value_N
        elif combine is mean:
            higher = higher_is_better.get(name)
            said = name if higher is None else saying(name, bool(higher))
            found[NAMES.get(said, said)] = value_N
    return found


def score_all(
    engine: EvaluationEngine, requests: Sequence[Request], requests_per_pass: int
) -> list[LogLikelihood]:
    """The score of every request, on all ranks; batches of like lengths are shared out."""
    order = sorted(range(len(requests)), key=lambda place: -sum(map(len, requests[place])))
    passes = [order[first : first + requests_per_pass] for first in range(0, len(order), requests_per_pass)]
    own: dict[int, LogLikelihood] = {}
    for first in range(0, len(passes), engine.size):
        turn = passes[first : first + engine.size]
        places = turn[min(engine.rank, len(turn) - 1)]  # a rank without one runs along
        chosen = [requests[place] for place in places]
        own.update(zip(places, score(chosen, engine.forward(batch(chosen))), strict=True))
    scores: dict[int, LogLikelihood] = {}
    for each in engine.gather(own):
        scores.update(each)
    return [scores[place] for place in range(len(requests))]


def _model(engine: EvaluationEngine, encoder: Encoder, requests_per_pass: int) -> Any:
    """The engine as a language model of the harness."""
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class EngineModel(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            encoded = [encoder.request(*request.args) for request in requests]
            return [tuple(each) for each in score_all(engine, encoded, requests_per_pass)]  # type: ignore[misc]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            length = encoder.max_length or ROLLING_LENGTH
            owners, windows = [], []
            for number, request in enumerate(requests):
                tokens = encoder.encode(request.args[0])
                for window in get_rolling_token_windows(tokens, encoder.start, length, 1):
                    owners.append(number)
                    windows.append(encoder.tokens(*make_disjoint_window(window)))
            totals = [0.0] * len(requests)
            for number, each in zip(owners, score_all(engine, windows, requests_per_pass), strict=True):
                totals[number] += each.log_likelihood
            return totals

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError("it generates text; choose tasks of log-likelihoods")

    return EngineModel()
