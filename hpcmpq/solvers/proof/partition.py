"""Blocks of groups that interact with the same others, none too large, by merging the most alike first.

Two groups of one dense block share nearly all groups that they interact with; two that a single strong interaction
connects share hardly any.

Axis letters: P options, G groups, E pairs of groups.
"""

import numpy as np
import scipy

from hpcmpq.solvers.compact.compact import Compact


def block_of_groups(compact: Compact, largest: int) -> np.ndarray:
    """A number of every group's block, int64 [G]; blocks have at most `largest` groups."""
    entries = compact.quad_PP.tocoo()
    first, second = compact.group_P[entries.row], compact.group_P[entries.col]
    upper = first < second
    pair_E, place = np.unique(first[upper] * compact.num_groups + second[upper], return_inverse=True)
    strength_E = np.bincount(place, weights=entries.data[upper] ** 2, minlength=len(pair_E))
    g_E, h_E = np.divmod(pair_E, compact.num_groups)
    shape = (compact.num_groups, compact.num_groups)
    beside_GG = scipy.sparse.csr_array((np.ones(len(pair_E)), (g_E, h_E)), shape=shape)
    beside_GG = (beside_GG + beside_GG.T + scipy.sparse.eye_array(compact.num_groups)).tocsr()
    shared_E = np.asarray((beside_GG @ beside_GG)[g_E, h_E]).ravel()
    degree_G = np.diff(beside_GG.indptr)
    alike_E = shared_E / np.maximum(degree_G[g_E] + degree_G[h_E] - shared_E, 1.0)
    strongest = np.lexsort((-strength_E, -np.round(alike_E, 1)))
    root, size = list(range(compact.num_groups)), [1] * compact.num_groups

    def find(group: int) -> int:
        while root[group] != group:
            root[group] = root[root[group]]
            group = root[group]
        return group

    for g, h in zip(g_E[strongest].tolist(), h_E[strongest].tolist(), strict=True):
        a, b = find(g), find(h)
        if a != b and size[a] + size[b] <= largest:
            root[b], size[a] = a, size[a] + size[b]
    return np.array([find(group) for group in range(compact.num_groups)], dtype=np.int64)
