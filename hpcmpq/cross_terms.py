"""Cross terms of options, dense or sparse: the few operations on them that every solver needs.

Where groups interact in blocks (the experts of a layer) and hardly beyond, most entries are zero: at 15,000 groups of
four options the whole matrix would take 29 GB. A `scipy.sparse` matrix or array then stands in for the dense one.
`blocked` makes one from dense blocks and single entries.

Axis letters: P options, R rows, G groups, E entries, b options of a block.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy  # reads scipy.sparse where it is used: most runs have no sparse terms, and commands start without it

CrossTerms = Any
"""float64 [P, P], a numpy array or a `scipy.sparse` matrix or array; symmetric, zero inside groups."""


def is_sparse(quad_PP: CrossTerms) -> bool:
    """Whether only some entries are stored."""
    return not isinstance(quad_PP, np.ndarray) and bool(scipy.sparse.issparse(quad_PP))


def blocked(
    num_options: int,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    row_E: np.ndarray,
    column_E: np.ndarray,
    value_E: np.ndarray,
) -> "scipy.sparse.csr_array":
    """Sparse cross terms from symmetric dense blocks and entries between them, mirrored; what coincides adds up.

    Args:
        num_options: P.
        blocks: (options, int [b]; their cross terms, symmetric float64 [b, b]) of every block.
        row_E: First option of each single entry, int [E]; each pair is named once.
        column_E: Second option.
        value_E: Its cross term, float64 [E].

    Example:
        >>> pair = np.array([[0.0, 2.0], [2.0, 0.0]])
        >>> blocked(3, [(np.array([0, 1]), pair)], np.array([1]), np.array([2]), np.array([5.0])).toarray().tolist()
        [[0.0, 2.0, 0.0], [2.0, 0.0, 5.0], [0.0, 5.0, 0.0]]
    """
    rows, columns, values = [row_E, column_E], [column_E, row_E], [value_E, value_E]
    for option_b, block_bb in blocks:
        first, second = np.nonzero(block_bb)
        rows.append(option_b[first])
        columns.append(option_b[second])
        values.append(block_bb[first, second])
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.csr_array(entries, shape=(num_options, num_options), dtype=np.float64)


def tidy(quad_PP: CrossTerms, group_P: np.ndarray) -> CrossTerms:
    """Sparse cross terms as rows, exactly symmetric, without entries inside groups."""
    entries = scipy.sparse.coo_array(quad_PP)
    across = (group_P[entries.row] != group_P[entries.col]) & (entries.data != 0.0)
    kept = entries.data[across].astype(np.float64), (entries.row[across], entries.col[across])
    half = scipy.sparse.csr_array(kept, shape=quad_PP.shape)
    half.data *= 0.5
    return (half + half.T).tocsr()


def any_entry(quad_PP: CrossTerms) -> bool:
    """Whether an entry is not zero."""
    return bool(quad_PP.data.any() if is_sparse(quad_PP) else quad_PP.any())


def submatrix(quad_PP: CrossTerms, row_R: np.ndarray, column_R: np.ndarray) -> CrossTerms:
    """The part of these rows and columns, dense or sparse as the whole."""
    return quad_PP[row_R][:, column_R] if is_sparse(quad_PP) else quad_PP[np.ix_(row_R, column_R)]


def dense_rows(quad_PP: CrossTerms, row_R: np.ndarray) -> np.ndarray:
    """A copy of some rows, [R, P]."""
    rows: np.ndarray = quad_PP[row_R].toarray() if is_sparse(quad_PP) else quad_PP[row_R]
    return rows


def rows_sum(quad_PP: CrossTerms, row_R: np.ndarray) -> np.ndarray:
    """The sum of some rows, [P]."""
    total_P: np.ndarray = np.asarray(quad_PP[row_R].sum(axis=0)).ravel()
    return total_P


def add_row(quad_PP: CrossTerms, row: int, total_P: np.ndarray, sign: float) -> None:
    """Add a row times 1 or −1 to `total_P`, in place."""
    if is_sparse(quad_PP):
        stored = slice(quad_PP.indptr[row], quad_PP.indptr[row + 1])
        total_P[quad_PP.indices[stored]] += sign * quad_PP.data[stored]
    elif sign > 0:
        total_P += quad_PP[row]
    else:
        total_P -= quad_PP[row]


def sum_among(quad_PP: CrossTerms, choice_G: np.ndarray) -> float:
    """Σ_pq H_pq over p and q of a choice."""
    return float(submatrix(quad_PP, choice_G, choice_G).sum())


def size_among(quad_PP: CrossTerms, choice_G: np.ndarray) -> float:
    """Σ_pq |H_pq| over p and q of a choice."""
    return float(abs(submatrix(quad_PP, choice_G, choice_G)).sum())
