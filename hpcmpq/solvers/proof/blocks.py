"""A lower bound for problems whose groups interact in blocks and sparsely between them; nothing is P × P.

Every block has a doubly nonnegative relaxation of its own, without the budgets, whose price is in its objective.
A certificate of each reads f_b(x) ≥ value + Σ own[x_g] with own ≥ 0. Cross terms between blocks are split into
messages to both options and a remainder. Together, for every feasible x and all prices and messages,

    f(x) ≥ Σ_b value_b + Σ_e min remainder_e + min within the budgets of Σ_g (own + messages)[x_g],

whose last part is the multiple-choice knapsack's Lagrangian. Between rounds of steps the prices are set to its best,
and what options have above their group's best is shared among their remainders.

Axis letters: P options, G groups, E pairs of groups in different blocks, k padded options, C budgets.
"""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np

from hpcmpq.cross_terms import rows_sum
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, dual_value
from hpcmpq.solvers.proof.node import Node, advance, all_pairs, make_node, preconditioner
from hpcmpq.solvers.proof.partition import block_of_groups
from hpcmpq.solvers.proof.relaxation import separable_budgets
from hpcmpq.solvers.proof.threads import node_pool, one_blas_thread, threads_of

LARGEST_BLOCK = 64
"""Groups of a block: a step's time grows with their cube, what is cut between blocks is bounded less well."""

STEPS = 10
"""Steps of every block between two rounds of messages and prices."""

SHARINGS = 3
"""Times that excesses are shared among remainders in a round."""


@dataclass
class Cut:
    """Cross terms between blocks.

    Attributes:
        option_Esk: Options of the first and second group of every pair, −1 where padded, int64 [E, 2, k].
        rest_Ekk: What the messages leave of the cross terms, inf where padded.
        message_P: Sum of the messages to every option.
        pairs_G: Pairs that every group is in.
    """

    option_Esk: np.ndarray
    rest_Ekk: np.ndarray
    message_P: np.ndarray
    pairs_G: np.ndarray

    def send(self, message_Esk: np.ndarray) -> None:
        """Move amounts from the remainders to the options."""
        exists = self.option_Esk >= 0
        self.rest_Ekk -= message_Esk[:, 0, :, None] + message_Esk[:, 1, None, :]
        np.add.at(self.message_P, self.option_Esk[exists], message_Esk[exists])


def block_bound(
    compact: Compact, choice_G: np.ndarray, deadline: float, largest: int = LARGEST_BLOCK, rounds: int = 10**6
) -> float:
    """The bound; −inf where time runs out before every block has a certificate.

    Args:
        compact: The problem, its cross terms sparse.
        choice_G: A good choice; starts the messages and prices.
        deadline: In `time.perf_counter` seconds.
        largest: Groups of a block at most.
        rounds: At most.
    """
    cost_CP, limit_C = separable_budgets(compact)
    compact = replace(compact, cost_CP=cost_CP, limit_C=limit_C, tables=())
    block_G = block_of_groups(compact, largest)
    cut = make_cut(compact, block_G, choice_G)
    priced_P = compact.linear_P + rows_sum(compact.quad_PP, choice_G)
    price_C = best_prices(compact, priced_P)
    options, nodes = [], []
    order = np.argsort(block_G[compact.group_P], kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(block_G[compact.group_P][order])) + 1):
        options.append(part)
        nodes.append(block_node(compact, part, choice_G))
        if time.perf_counter() > deadline:
            return -np.inf
    value_B = np.full(len(nodes), -np.inf)
    own_P, used_P, best = np.zeros(compact.num_options), np.zeros(compact.num_options), -np.inf
    for _ in range(rounds):
        current_P = compact.linear_P + cut.message_P + price_C @ cost_CP
        for part, node in zip(options, nodes, strict=True):
            set_linear(node, current_P[part])
        if not all_advanced(nodes, deadline):
            return best
        for b, (part, node) in enumerate(zip(options, nodes, strict=True)):
            assert node.last is not None
            value_B[b] = node.last.value
            own_P[part] = own_terms(node)
            used_P[part] = current_P[part]
            node.last = None
        for _ in range(SHARINGS):
            value_P = own_P - used_P + compact.linear_P + cut.message_P
            price_C = best_prices(compact, value_P)
            best = max(best, float(value_B.sum()) + rest_and_knapsack(compact, cut, value_P, price_C))
            share(compact, cut, value_P + price_C @ cost_CP)
    return best


def all_advanced(nodes: list[Node], deadline: float) -> bool:
    """Whether every block made steps and has a certificate of them; blocks are bounded side by side, a thread each."""
    ended = threading.Event()
    largest = max(node.relaxation.lift.dimension for node in nodes)
    with one_blas_thread(), node_pool(threads_of(largest)) as pool:
        try:
            futures = [pool.submit(advance, node, STEPS, deadline, ended) for node in nodes]
            return all(future.result() > 0 for future in futures) and all(node.last for node in nodes)
        finally:
            ended.set()  # whatever ends it need not wait for the blocks that are left


def own_terms(node: Node) -> np.ndarray:
    """Own excesses of a node's options and half the least of their pairs' with every group, which two options share."""
    assert node.last is not None
    lift, minimum = node.relaxation.lift, node.last.minimum
    least_XG = minimum.pair_XX.reshape(lift.padded, lift.num_groups, lift.width).min(axis=2)
    own_X: np.ndarray = minimum.own_X + 0.5 * least_XG.sum(axis=1)
    return own_X[lift.column_P]


def rest_and_knapsack(compact: Compact, cut: Cut, value_P: np.ndarray, price_C: np.ndarray) -> float:
    """Σ min remainder + the knapsack's Lagrangian, less a margin for rounding."""
    rest = float(cut.rest_Ekk.min(axis=(1, 2)).sum()) if len(cut.rest_Ekk) else 0.0
    size = float(np.maximum.reduceat(np.abs(value_P), compact.offset_H[:-1]).sum())
    size += float(
        np.abs(cut.rest_Ekk, where=np.isfinite(cut.rest_Ekk), out=np.zeros_like(cut.rest_Ekk)).sum()
    )
    size += float(np.abs(price_C @ compact.limit_C)) + float(price_C @ np.abs(compact.cost_CP).sum(axis=1))
    return rest + dual_value(compact, value_P, price_C) - 64.0 * float(np.finfo(np.float64).eps) * size


def share(compact: Compact, cut: Cut, priced_P: np.ndarray) -> None:
    """Share excesses among the remainders, then give back half of what rows and columns have to spare."""
    if not len(cut.rest_Ekk):
        return
    least_G = np.minimum.reduceat(priced_P, compact.offset_H[:-1])
    part_P = (priced_P - least_G[compact.group_P]) / (cut.pairs_G[compact.group_P] + 1.0)
    exists = cut.option_Esk >= 0
    cut.send(np.where(exists, -part_P[cut.option_Esk], 0.0))
    spare = cut.rest_Ekk - cut.rest_Ekk.min(axis=(1, 2), keepdims=True)
    rows = np.stack([spare.min(axis=2), spare.min(axis=1)], axis=1)
    cut.send(np.where(exists, 0.5 * rows, 0.0))


def make_cut(compact: Compact, block_G: np.ndarray, choice_G: np.ndarray) -> Cut:
    """The pairs of groups in different blocks, their messages exact at and beside a choice."""
    entries = compact.quad_PP.tocoo()
    first, second = compact.group_P[entries.row], compact.group_P[entries.col]
    between = (block_G[first] != block_G[second]) & (first < second)
    row, column, value = entries.row[between], entries.col[between], entries.data[between]
    pair_M, edge = np.unique(first[between] * compact.num_groups + second[between], return_inverse=True)
    group_Es = np.stack(np.divmod(pair_M, compact.num_groups), axis=1)
    width = int(compact.size_G.max())
    place_k = np.arange(width)
    option_Esk = compact.offset_H[group_Es][:, :, None] + place_k
    option_Esk = np.where(place_k < compact.size_G[group_Es][:, :, None], option_Esk, -1)
    rest_Ekk = np.zeros((len(pair_M), width, width))
    position_P = np.arange(compact.num_options) - compact.offset_H[compact.group_P]
    rest_Ekk[edge, position_P[row], position_P[column]] = value
    edges, at_Es = np.arange(len(pair_M)), position_P[choice_G][group_Es]
    half_E = 0.5 * rest_Ekk[edges, at_Es[:, 0], at_Es[:, 1]]
    message_Esk = np.stack([rest_Ekk[edges, :, at_Es[:, 1]], rest_Ekk[edges, at_Es[:, 0], :]], axis=1)
    message_Esk -= half_E[:, None, None]
    rest_Ekk[(option_Esk[:, 0, :, None] < 0) | (option_Esk[:, 1, None, :] < 0)] = np.inf
    pairs_G = np.bincount(group_Es.ravel(), minlength=compact.num_groups)
    cut = Cut(option_Esk, rest_Ekk, np.zeros(compact.num_options), pairs_G)
    cut.send(np.where(option_Esk >= 0, message_Esk, 0.0))
    return cut


def block_node(compact: Compact, part_P: np.ndarray, choice_G: np.ndarray) -> Node:
    """The relaxation of a block's options, without budgets."""
    offset_H = np.append(np.flatnonzero(np.diff(compact.group_P[part_P], prepend=-1)), len(part_P))
    alone = replace(
        compact,
        linear_P=compact.linear_P[part_P],
        quad_PP=compact.quad_PP[part_P][:, part_P].toarray(),
        offset_H=offset_H,
        cost_CP=np.zeros((0, len(part_P))),
        limit_C=np.zeros(0),
    )
    chosen = np.flatnonzero(np.isin(part_P, choice_G))
    return make_node(alone, all_pairs(alone), preconditioner(alone, chosen))


def set_linear(node: Node, linear_P: np.ndarray) -> None:
    """Change a node's linear terms; its iterate goes on."""
    columns = node.relaxation.lift.column_P
    node.relaxation.objective_NN[1 + columns, 1 + columns] = linear_P
    scale_P = node.relaxation.lift.scale_X[columns]
    node.objective_NN[1 + columns, 1 + columns] = (linear_P / scale_P**2).astype(node.objective_NN.dtype)
