"""`Solution`: an assignment of formats with its costs, its predicted loss and its bound."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

_LATE = ("expected_loss", "expected_interval", "measured_loss", "measured_loss_stderr")
"""Known after refinement or evaluation."""


@dataclass(frozen=True, repr=False)
class Solution:
    """A format for every group, what that costs, and how good it is.

    Attributes:
        assignment: {group: format}.
        predicted_loss: Of the quadratic model, in the unit of the run's objective (nats for `kl` and `ce`).
        objective: What the solver minimised, at this assignment: `predicted_loss` unless the solver is robust.
        bound: Proven lower bound of the objective of every assignment within the budgets, or None.
        gap: (objective - bound) / objective, or None without a bound.
        termination: ``optimal``, ``feasible`` or ``time_limit``.
        budgets: {cost: upper limit}, in the cost's unit.
        costs: {cost: value}: `size_bytes` in bytes, `weight_bits` and `average_bits` in bits per searched weight,
            `macs` and `bops` per sample, latencies in seconds.
        uniform: {format: its `predicted_loss`, `costs`, and whether it is `feasible`} of every group in one format.
        seconds: Wall time of the solver.
        expected_loss: What refinement expects on held-out samples, or None before it and of weights rounded again.
        expected_interval: (low, high) of that, at 90 %, or None.
        measured_loss: On held-out samples if it was refined or rounded again, else on evaluation samples, or None
            before these.
        measured_loss_stderr: Its standard error, or None.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> solution = example_run().solve(weight_bits=4)
        >>> solution.costs["weight_bits"] <= 4 and solution.bound <= solution.objective
        True
        >>> sorted(solution.assignment)
        ['first', 'second', 'third']
    """

    assignment: Mapping[str, str]
    predicted_loss: float
    objective: float
    bound: float | None
    gap: float | None
    termination: str
    budgets: Mapping[str, float]
    costs: Mapping[str, float]
    uniform: Mapping[str, Mapping[str, Any]]
    seconds: float
    expected_loss: float | None = None
    expected_interval: tuple[float, float] | None = None
    measured_loss: float | None = None
    measured_loss_stderr: float | None = None

    def formats(self) -> dict[str, int]:
        """{format: number of groups that have it}, most groups first.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> example_run().solve(weight_bits=2).formats()
            {'int2': 3}
        """
        return dict(Counter(self.assignment.values()).most_common())

    def changes(self, other: "Solution") -> dict[str, tuple[str, str]]:
        """{group: (format here, format there)} of the groups whose formats differ.

        Args:
            other: A solution of the same run; of another, groups that both have are compared.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> run = example_run()
            >>> small, large = run.solve(weight_bits=2), run.solve(weight_bits=8)
            >>> small.changes(large)["first"]
            ('int2', 'int8')
        """
        both = self.assignment.keys() & other.assignment.keys()
        pairs = {
            name: (self.assignment[name], other.assignment[name]) for name in self.assignment if name in both
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def frame(self) -> "pandas.DataFrame":
        """A row for each group: index `group`, column `format`.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> example_run().solve(weight_bits=2).frame().loc["first", "format"]
            'int2'
        """
        import pandas

        index = pandas.Index(list(self.assignment), name="group")
        return pandas.DataFrame({"format": list(self.assignment.values())}, index=index)

    def __repr__(self) -> str:
        return f"Solution({', '.join(f'{name}: {text}' for name, text in self._told())})"

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield from self._told()

    def _repr_html_(self) -> str:
        """For notebooks: the facts, then the groups, folded."""
        facts = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._told()
        )
        groups = "".join(
            f"<tr><td>{escape(group)}</td><td>{escape(name)}</td></tr>"
            for group, name in self.assignment.items()
        )
        return (
            f"<table>{facts}</table><details><summary>{len(self.assignment)} groups</summary>"
            f"<table><tr><th>group</th><th>format</th></tr>{groups}</table></details>"
        )

    def _told(self) -> Iterator[tuple[str, str]]:
        """(fact, value) in words, most important first."""
        yield "predicted loss", f"{self.predicted_loss:.4g}"
        for name in _LATE[:1] + _LATE[2:3]:
            if (value := getattr(self, name)) is not None:
                yield name.replace("_", " "), f"{value:.4g}"
        proof = "none" if self.gap is None else f"{self.bound:.4g}, gap {100 * self.gap:.3g} %"
        yield "bound", f"{proof} ({self.termination.replace('_', ' ')})"
        for name, limit in self.budgets.items():
            yield name, f"{self.costs[name]:.6g} of {limit:.6g}"
        if "size_bytes" in self.costs and "size_bytes" not in self.budgets:
            yield "size_bytes", f"{self.costs['size_bytes']:,.0f}"
        yield "formats", ", ".join(f"{count} {name}" for name, count in self.formats().items())


def solution_of(values: Mapping[str, Any]) -> Solution:
    """The solution in the values of `solution.json`, or of a point of `frontier.json` with its budgets."""
    late = {name: values.get(name) for name in _LATE}
    if late["expected_interval"] is not None:
        late["expected_interval"] = tuple(late["expected_interval"])
    return Solution(
        assignment=values["assignment"],
        predicted_loss=values["predicted_loss"],
        objective=values["objective"],
        bound=values["bound"],
        gap=values["gap"],
        termination=values["termination"],
        budgets=values["budgets"],
        costs=values["costs"],
        uniform=values.get("uniform", {}),
        seconds=values["seconds"],
        **late,
    )
