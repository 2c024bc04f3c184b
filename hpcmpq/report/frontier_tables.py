"""The frontier as tables: its points, and the format of every group at each."""

from hpcmpq.report.curves import below_uniform
from hpcmpq.report.display import STYLE_OF_COST, cost_title
from hpcmpq.report.findings import Z95, Findings
from hpcmpq.report.tables import Column, Table
from hpcmpq.report.what_if import alternatives, num_changed
from hpcmpq.solve.formulate import cost_values


def frontier_table(findings: Findings) -> Table:
    """Predicted loss and proven bound over a range of budgets."""
    cost, loss0 = findings.size_cost, findings.quadratic.loss0
    sizes = [name for name in ("size_bytes", "weight_bits") if name != cost][:1]
    rows = []
    for each in alternatives(findings):
        costs, reach = cost_values(findings.plan, each.choice_G), each.stderr
        rows.append(
            (
                each.cost,
                *(costs[name] for name in sizes),
                each.predicted,
                *((None, None) if reach is None else (each.predicted + k * Z95 * reach for k in (-1, 1))),
                each.bound,
                each.gap,
                below_uniform(findings, each.cost, each.predicted - loss0),
                num_changed(findings, each.choice_G),
                each.termination,
            )
        )
    columns = (
        Column(cost, cost_title(cost).capitalize(), STYLE_OF_COST.get(cost, "number")),
        *(Column(name, cost_title(name).capitalize(), STYLE_OF_COST[name]) for name in sizes),
        Column("predicted_loss", f"Predicted {findings.objective_short}", "loss"),
        Column("predicted_low", "from", "loss", end=True),
        Column("predicted_high", "to", "loss", end=True),
        Column("bound", "Proven bound", "loss"),
        Column("gap", "Gap", "share"),
        Column("below_uniform", "Below the uniform curve", "share"),
        Column("changed", "Groups unlike here", "count"),
        Column("termination", "Ended"),
    )
    caption = "The best assignment found at each budget, smallest first"
    between = any(row[len(sizes) + 2] is not None for row in rows)
    caption += ", with 95 % intervals over calibration batches." if between else "."
    return Table("frontier", caption, columns, tuple(rows))


def assignments_table(findings: Findings) -> Table:
    """The format of every group at every budget of the frontier."""
    space, found = findings.plan.space, alternatives(findings)
    columns = (
        Column("group", "Group"),
        Column("limit", "Budget", "number"),
        Column("reached", "Reached", "number"),
        Column("format", "Format"),
    )
    rows = tuple(
        (group.name, each.limit, each.cost, space.options[each.choice_G[g]].format)
        for g, group in enumerate(space.groups)
        for each in found
    )
    return Table("assignments", "The format of every group at every budget.", columns, rows)
