"""Units of evidence: documents, or clusters of documents that share a passage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEAST_UNITS = 6  # a two-sided sign-flip test of five units cannot reach p < .05
FEW_UNITS = 40  # with fewer, a cluster-robust standard error is unreliable


class Clusters:
    """Documents grouped into independent units; each document has a code, 0..count-1.

    Args:
        labels: (n,) of any type; documents with equal labels form one unit.

    >>> groups = Clusters(["b", "a", "b"])
    >>> groups.codes.tolist(), groups.count, groups.sums(np.array([1.0, 2.0, 3.0])).tolist()
    ([1, 0, 1], 2, [2.0, 4.0])
    """

    def __init__(self, labels: ArrayLike) -> None:
        distinct, codes = np.unique(np.asarray(labels), return_inverse=True)
        self.codes: NDArray[np.intp] = codes.reshape(-1)
        self.count = len(distinct)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.codes)

    @property
    def sizes(self) -> Floats:
        """Number of documents in each cluster, (C,)."""
        return np.bincount(self.codes, minlength=self.count).astype(float)

    def take(self, rows: NDArray[Any]) -> Clusters:
        """The clusters of a subset of the documents (indices or a mask)."""
        return Clusters(self.codes[rows])

    def sums(self, values: Floats) -> Floats:
        """Sums within each cluster: (n,) -> (C,), or (n, K) -> (C, K)."""
        if values.ndim == 1:
            return np.bincount(self.codes, weights=values, minlength=self.count).astype(float)
        return np.stack([self.sums(column) for column in values.T], axis=1)


def effective_number(sizes: ArrayLike) -> float:
    """Number of equal-sized units that would carry the same evidence: n**2 / sum(sizes**2) (Kish).

    >>> effective_number([10, 10, 10]), round(effective_number([80, 10, 10]), 2)
    (3.0, 1.52)
    """
    values = np.asarray(sizes, dtype=float)
    return float(values.sum() ** 2 / (values**2).sum()) if len(values) else 0.0


def real_clusters(clusters: ArrayLike | Clusters | None) -> Clusters | None:
    """The clusters, or None if every document is a cluster of its own."""
    groups: Any = clusters if clusters is None or isinstance(clusters, Clusters) else Clusters(clusters)
    return groups if groups is not None and groups.count < len(groups) else None


def column(values: ArrayLike) -> Floats:
    """Any sequence of numbers as a float array (n,)."""
    return np.asarray(values, dtype=float).reshape(-1)


def is_binary(scores: ArrayLike) -> bool:
    """Whether every score is exactly 0 or 1.

    >>> is_binary([0, 1.0, True]), is_binary([0, 0.5])
    (True, False)
    """
    values = np.asarray(scores, dtype=float)
    return bool(np.all((values == 0) | (values == 1)))
