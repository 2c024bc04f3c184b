"""`Quadratic`: what calibration measured, as arrays whose axes have names."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.space import SearchSpace

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Quadratic:
    """loss(x) = loss0 + Σ_p linear_p x_p + ½ Σ_pq quad_pq x_p x_q, as measured: solvers shrink the cross terms.

    Axis letters: P options, G groups.

    Attributes:
        linear_P: Loss increase of every option alone, float64 [P], in the objective's unit.
        quad_PP: Interactions of options of different groups, symmetric float64 [P, P], zero inside groups.
        stderr_linear_P: Standard errors over samples, float64 [P]; zeros where there was one sample.
        stderr_quad_PP: The same of interactions, float64 [P, P].
        loss0: Loss of the original.
        objective: ``kl``, ``ce`` or ``mse``.
        method: How it was measured.
        num_samples: On so many samples.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> quadratic = example_run().quadratic
        >>> quadratic.linear_P.shape, quadratic.quad_PP.shape, quadratic.options[0]
        ((9,), (9, 9), ('first', 'int2'))
    """

    linear_P: np.ndarray
    quad_PP: np.ndarray
    stderr_linear_P: np.ndarray
    stderr_quad_PP: np.ndarray
    loss0: float
    objective: str
    method: str
    num_samples: int
    _model: QuadraticModel
    _space: SearchSpace

    def __repr__(self) -> str:
        return (
            f"Quadratic({len(self._space.groups)} groups, {len(self.options)} options, {self.method} of "
            f"{self.objective} on {self.num_samples} samples)"
        )

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """(group, format) of every option: the names on axis P."""
        return tuple(zip(self._model.option_group, self._model.option_format, strict=True))

    @cached_property
    def index(self) -> "pandas.MultiIndex":
        """The same as an index with the levels `group` and `format`.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> list(example_run().quadratic.index.names)
            ['group', 'format']
        """
        import pandas

        return pandas.MultiIndex.from_tuples(self.options, names=["group", "format"])

    def frame(self) -> "pandas.DataFrame":
        """A row for each option: `linear` and its `stderr`, in the objective's unit.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> frame = example_run().quadratic.frame()
            >>> bool(frame.loc[("first", "int2"), "linear"] > frame.loc[("first", "int8"), "linear"])
            True
        """
        import pandas

        columns = {"linear": self.linear_P, "stderr": self.stderr_linear_P}
        return pandas.DataFrame(columns, index=self.index)

    def cross_terms(self) -> "pandas.DataFrame":
        """`quad_PP` with options on both axes, in the objective's unit.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> example_run().quadratic.cross_terms().loc["first", "second"].shape
            (3, 3)
        """
        import pandas

        return pandas.DataFrame(self.quad_PP, index=self.index, columns=self.index)

    def predicted_loss(self, assignment: Mapping[str, str]) -> float:
        """What the measured quadratic predicts, in the objective's unit.

        Args:
            assignment: {group: format} of every group.

        Raises:
            UserError: If a group is missing, or a format is none of its options.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> quadratic = example_run().quadratic
            >>> all_at = lambda name: dict.fromkeys(["first", "second", "third"], name)
            >>> quadratic.predicted_loss(all_at("int8")) < quadratic.predicted_loss(all_at("int2"))
            True
        """
        try:
            return self._model.predicted_loss(self._space.choice(assignment))
        except ValueError as error:
            raise UserError(f"{error}; give every group one of its formats") from None


def quadratic_of(model: QuadraticModel, space: SearchSpace) -> Quadratic:
    """A quadratic model and the space that it is of."""
    return Quadratic(
        linear_P=model.linear_P,
        quad_PP=model.quad_PP,
        stderr_linear_P=model.stderr_linear_P,
        stderr_quad_PP=model.stderr_quad_PP,
        loss0=model.loss0,
        objective=model.objective,
        method=model.method,
        num_samples=model.num_samples,
        _model=model,
        _space=space,
    )


def group_frame(space: SearchSpace) -> "pandas.DataFrame":
    """A row for each group: weights, multiply-accumulates of a sample, block, parameters, formats."""
    import pandas

    rows = [
        (
            group.numel,
            group.macs,
            group.block,
            tuple(member.parameter for member in group.members),
            formats,
        )
        for group, formats in zip(space.groups, space.formats, strict=True)
    ]
    index = pandas.Index([group.name for group in space.groups], name="group")
    return pandas.DataFrame(rows, index=index, columns=["numel", "macs", "block", "parameters", "formats"])
