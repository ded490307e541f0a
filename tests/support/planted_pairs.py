"""Pairs of states with a known map between them."""

from __future__ import annotations

import numpy as np
import torch

from signarium.ingest.stats.paired import Paired


def parts(n: int, per_document: int) -> tuple[tuple[slice, slice], slice, slice]:
    """Halves of 30% of the documents each, then 20% for validation and 20% for the test."""
    n_documents = n // per_document
    cuts = [round(share * n_documents) * per_document for share in (0, 0.3, 0.6, 0.8, 1)]
    first, second, validation, test = (slice(cuts[i], cuts[i + 1]) for i in range(4))
    return (first, second), validation, test


def paired(a: torch.Tensor, b: torch.Tensor, per_document: int = 20, ids: np.ndarray | None = None) -> Paired:
    """Rows of documents of equal length; token ids from a vocabulary of 50 where none are given."""
    rows = np.arange(len(a))
    if ids is None:
        ids = np.random.default_rng(5).integers(0, 50, len(a))
    halves, validation, test = parts(len(a), per_document)
    return Paired(a, b, halves, validation, test, ids, rows // per_document, rows % per_document)


def orthogonal(width: int, seed: int) -> torch.Tensor:
    """Some orthogonal matrix, float64."""
    return torch.linalg.qr(normal(width, width, seed))[0]


def normal(n: int, width: int, seed: int) -> torch.Tensor:
    """Float64 [n, width]."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, width)))
