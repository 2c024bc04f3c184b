"""`Frontier`: solutions over a range of budgets, as a sequence, a table and a figure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpcmpq.api.solution import Solution, solution_of
from hpcmpq.errors import UserError

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Frontier:
    """The trade-off between one cost and the predicted loss; as a sequence, its solutions from tight to loose.

    Attributes:
        cost: Name of the cost that varies.
        unit: Of that cost.
        limits: The limit that each point was solved for, in that unit, increasing.
        points: Their solutions, each with its bound.
        uniform: {format: (cost, predicted loss)} of every group in one format.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> frontier = example_run().frontier(start=2, stop=4, step=1)
        >>> frontier.limits, [point.costs["weight_bits"] <= 4 for point in frontier]
        ((2.0, 3.0, 4.0), [True, True, True])
        >>> losses = [point.predicted_loss for point in frontier]
        >>> losses == sorted(losses, reverse=True)
        True
    """

    cost: str
    unit: str
    limits: tuple[float, ...]
    points: tuple[Solution, ...]
    uniform: Mapping[str, tuple[float, float]]

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.points)

    def __getitem__(self, place: int) -> Solution:
        return self.points[place]

    def __repr__(self) -> str:
        return f"Frontier({len(self)} points, {self.cost} from {self.limits[0]:g} to {self.limits[-1]:g})"

    def frame(self) -> "pandas.DataFrame":
        """A row for each point, indexed by its limit: cost, predicted loss, bound, gap.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> list(example_run().frontier(start=2, stop=4, step=1).frame().columns)
            ['weight_bits', 'predicted_loss', 'bound', 'gap']
        """
        import pandas

        rows = [(p.costs[self.cost], p.predicted_loss, p.bound, p.gap) for p in self.points]
        index = pandas.Index(self.limits, name=f"limit of {self.cost}")
        return pandas.DataFrame(rows, index=index, columns=[self.cost, "predicted_loss", "bound", "gap"])

    def _repr_html_(self) -> str:
        return str(self.frame().to_html())

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw predicted losses over the cost, their bounds, and the uniform formats; returns the axes.

        Args:
            axes: Where to draw; None makes a figure.

        Raises:
            UserError: If matplotlib is not installed.

        Example:
            >>> import matplotlib; matplotlib.use("Agg")
            >>> from hpcmpq.api.example import example_run
            >>> example_run().frontier(start=2, stop=4, step=1).plot().get_ylabel()
            'predicted loss'
        """
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError:
            raise UserError(
                "a figure needs matplotlib, which is not installed; run `pip install 'hpcmpq[report]'`"
            ) from None
        if axes is None:
            _, axes = pyplot.subplots(figsize=(6.0, 4.0), layout="constrained")
        costs = [point.costs[self.cost] for point in self.points]
        losses = [point.predicted_loss for point in self.points]
        (line,) = axes.plot(costs, losses, marker="o", markersize=4, label="mixed formats")
        bounds = [float("nan") if point.bound is None else point.bound for point in self.points]
        axes.fill_between(costs, bounds, losses, color=line.get_color(), alpha=0.2, label="down to the bound")
        within = {
            name: at for name, at in self.uniform.items() if costs[0] <= at[0] <= costs[-1] * (1 + 1e-9)
        }
        if within:
            axes.plot(*zip(*within.values(), strict=True), "s", color="0.35", markersize=5, label="uniform")
        for name, at in within.items():
            axes.annotate(name, at, xytext=(4, 4), textcoords="offset points", fontsize="small", color="0.35")
        if min([*losses, *(loss for _, loss in within.values())]) > 0:
            axes.set_yscale("log")
        axes.margins(x=0.08)
        axes.set(xlabel=_axis(self.cost, self.unit), ylabel="predicted loss")
        axes.legend()
        return axes


def _axis(cost: str, unit: str) -> str:
    words = cost.replace("_", " ")
    return words if unit in words else f"{words} ({unit})"


def frontier_of(values: Mapping[str, Any]) -> Frontier:
    """The frontier in the values of `frontier.json`."""
    cost, others = values["cost"], values["other_budgets"]
    points = values["points"]
    return Frontier(
        cost=cost,
        unit=values["unit"],
        limits=tuple(point["limit"] for point in points),
        points=tuple(solution_of({**point, "budgets": {**others, cost: point["limit"]}}) for point in points),
        uniform={name: (found["cost"], found["predicted_loss"]) for name, found in values["uniform"].items()},
    )
