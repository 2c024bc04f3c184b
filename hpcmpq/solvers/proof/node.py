"""One node of the branch and bound: a restricted problem, its relaxation's iterate and what it proved.

Axis letters: P options, X padded options, G groups.
"""

import threading
import time
from dataclasses import dataclass

import numpy as np

from hpcmpq.solvers.compact.compact import Compact, restrict
from hpcmpq.solvers.compact.presolve import cheapest_completion
from hpcmpq.solvers.proof.admm import Bound, Iterate, certified, iterate, start
from hpcmpq.solvers.proof.positive_part import PositivePart, positive_part
from hpcmpq.solvers.proof.projection import Projector
from hpcmpq.solvers.proof.relaxation import Relaxation, make_relaxation

SINGLE_PRECISION_FROM = 200
"""Dimension from which the iteration runs in float32; bounds are always certified in float64."""


CERTIFYING = threading.Lock()
"""Held by the one certificate that is computed at a time: it takes most of a node's memory."""

STEP_COST_S = 1.5e-10
"""First guess of a step's seconds per cubed dimension; measured from then on."""


@dataclass
class Node:
    """A restricted problem.

    Attributes:
        compact: The problem on the options left.
        allowed_PP: Pairs that may still be chosen together (the diagonal: options).
        scale_P: Preconditioner of its options.
        relaxation: Its relaxation.
        projector: For the current exclusions.
        state: The iterate.
        objective_NN: Scaled objective in the iteration's precision.
        bound: Best proven bound in the compact objective of `compact`.
        step_s: Seconds of a step, smoothed.
        certificate_s: Seconds of the latest certificate.
        last: The latest certificate.
    """

    compact: Compact
    allowed_PP: np.ndarray
    scale_P: np.ndarray
    relaxation: Relaxation
    projector: Projector
    state: Iterate
    objective_NN: np.ndarray
    bound: float = -np.inf
    step_s: float = 0.0
    certificate_s: float = 0.0
    last: Bound | None = None

    def likely_P(self) -> np.ndarray:
        """How likely each option is in the iterate, float64 [P]; about a distribution in every group."""
        lift = self.relaxation.lift
        likely_X = np.diagonal(self.state.y_NN)[1 : 1 + lift.padded] / lift.scale_X**2
        return likely_X[lift.column_P].astype(np.float64)


def make_node(
    compact: Compact,
    allowed_PP: np.ndarray,
    scale_P: np.ndarray,
    positive_part: PositivePart = positive_part,
) -> Node:
    """A node with a cold start."""
    relaxation = make_relaxation(compact, scale_P)
    dtype = np.float32 if relaxation.lift.dimension >= SINGLE_PRECISION_FROM else np.float64
    projector = Projector(relaxation, dtype, positive_part)
    state, objective_NN = start(relaxation, projector)
    node = Node(compact, allowed_PP, scale_P, relaxation, projector, state, objective_NN)
    projector.set_allowed(padded_pairs(node))
    node.step_s = STEP_COST_S * relaxation.lift.dimension**3
    return node


def padded_pairs(node: Node) -> np.ndarray:
    """`allowed_PP` in the padded layout, and with the relaxation's own exclusions."""
    lift = node.relaxation.lift
    allowed_XX = np.zeros((lift.padded, lift.padded), bool)
    allowed_XX[np.ix_(lift.column_P, lift.column_P)] = node.allowed_PP
    return allowed_XX & node.relaxation.allowed_XX


def all_pairs(compact: Compact) -> np.ndarray:
    """Every pair of options of different groups, and every option, bool [P, P]."""
    allowed_PP = compact.group_P[:, None] != compact.group_P[None, :]
    np.fill_diagonal(allowed_PP, True)
    return allowed_PP


def preconditioner(compact: Compact, choice_G: np.ndarray) -> np.ndarray:
    """d: the square root of every option's interaction strength with a good choice, over the choice's median.

    Cross terms of an option scale with its error energy, which varies a thousandfold between bit widths; with
    d ~ √strength multipliers and variables of the iteration are of similar size.
    """
    strength_P = np.sqrt((compact.quad_PP[:, choice_G] ** 2).mean(axis=1))
    middle = float(np.median(strength_P[choice_G]))
    if middle <= 0.0:
        return np.ones(compact.num_options)
    return np.sqrt(np.clip(strength_P / middle, 0.4, 100.0))


def out_of_time(node: Node, deadline: float) -> bool:
    """Whether a step and its certificate would end after the deadline, in `time.perf_counter` seconds."""
    certificate_s = max(3.0 * node.step_s, 1.5 * node.certificate_s)
    return time.perf_counter() + node.step_s + certificate_s > deadline


def advance(node: Node, steps: int, deadline: float, ended: threading.Event | None = None) -> int:
    """Up to `steps` steps and a certificate; the steps done (0: no time left for one).

    The multiplier swings from step to step about the one that it tends to, so the mean of two in succession is taken:
    any symmetric matrix gives a valid bound, and LᵀZL ⪯ 0 holds for the mean of two where it holds for each.

    Args:
        node: Goes on from where it stands.
        steps: At most.
        deadline: In `time.perf_counter` seconds.
        ended: Ends the steps, without a certificate, once it is set.
    """
    done = 0
    half_NN = earlier_NN = None
    while done < steps:
        if out_of_time(node, deadline):
            break
        begun = time.perf_counter()
        if ended is not None and ended.is_set():
            return 0
        earlier_NN = half_NN
        half_NN = iterate(node.relaxation, node.projector, node.state, node.objective_NN)
        spent = time.perf_counter() - begun
        node.step_s = 0.7 * node.step_s + 0.3 * spent
        done += 1
    if half_NN is not None:
        if earlier_NN is not None:
            half_NN = 0.5 * (half_NN + earlier_NN)
        if not CERTIFYING.acquire(
            timeout=min(max(0.0, deadline - time.perf_counter()), threading.TIMEOUT_MAX)
        ):
            return done
        try:
            begun = time.perf_counter()
            bound = certified(node.relaxation, half_NN, padded_pairs(node), node.state.largest)
        finally:
            CERTIFYING.release()
        node.state.largest = bound.largest
        node.certificate_s = time.perf_counter() - begun
        node.state.part_s["certificates"] += node.certificate_s
        node.bound = max(node.bound, bound.value)
        node.last = bound
    return done


def shrink(node: Node, keep_P: np.ndarray) -> Node | Compact | None:
    """The node on the options `keep_P` with a mapped iterate.

    Returns:
        None when a group has no option left, the bare compact problem when no group has a choice left.
    """
    compact = restrict(node.compact, keep_P)
    if compact is None or compact.num_groups == 0:
        return compact
    free_G = np.add.reduceat(keep_P.astype(int), node.compact.offset_H[:-1]) > 1
    free_P = keep_P & free_G[node.compact.group_P]
    least_CP, least_C = cheapest_completion(compact)
    if (least_C > compact.limit_C).any():
        return None
    costly_P = (least_CP > compact.limit_C[:, None]).any(axis=0)
    if costly_P.any():
        keep_P = keep_P.copy()
        keep_P[np.flatnonzero(free_P)[costly_P]] = False
        return shrink(node, keep_P)
    old = node.relaxation.lift
    fixed = 1 + old.column_P[keep_P & ~free_G[node.compact.group_P]]
    allowed_PP = node.allowed_PP[np.ix_(free_P, free_P)]
    child = make_node(compact, allowed_PP, node.scale_P[free_P], node.projector.positive_part)
    child.state.part_s = node.state.part_s
    new = child.relaxation.lift
    if new.num_budgets != old.num_budgets:
        return child
    # v_old = B v_new: fixed options are d times the constant, slacks change their unit, the others are themselves.
    slack_n: np.ndarray = np.ones(new.size, dtype=child.projector.dtype)
    slack_n[1 + new.padded :] = child.relaxation.unit_C / node.relaxation.unit_C
    from_old = np.concatenate([[0], 1 + old.column_P[free_P], np.arange(1 + old.padded, old.size)])
    to_new = np.concatenate([[0], 1 + new.column_P, np.arange(1 + new.padded, new.size)])
    z_NN: np.ndarray = np.zeros((new.size, new.size), dtype=child.projector.dtype)
    moved = node.state.z_NN[np.ix_(from_old, from_old)]
    if len(fixed):
        weight = old.scale_X[fixed - 1].astype(node.state.z_NN.dtype)
        column = node.state.z_NN[np.ix_(from_old, fixed)] @ weight
        moved[0, :] += column
        moved[:, 0] += column
        moved[0, 0] += weight @ node.state.z_NN[np.ix_(fixed, fixed)] @ weight
    z_NN[np.ix_(to_new, to_new)] = moved
    z_NN *= slack_n[:, None] * slack_n
    y_NN = np.zeros_like(z_NN)
    y_NN[np.ix_(to_new, to_new)] = node.state.y_NN[np.ix_(from_old, from_old)]
    y_NN /= slack_n[:, None] * slack_n
    child.state = Iterate(
        child.projector.project(y_NN),
        z_NN,
        node.state.penalty,
        from_convex=node.state.from_convex,
        falling=node.state.falling,
        steps=max(node.state.steps, 60),
        part_s=node.state.part_s,
    )
    child.step_s = node.step_s
    child.certificate_s = node.certificate_s * (new.dimension / old.dimension) ** 3
    return child
