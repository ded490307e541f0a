from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_pairs import normal, paired

from signarium.ingest.stats import paired as pairing
from signarium.ingest.stats.paired import n_rows


def test_parts_follow_each_other_and_share_no_document():
    pair = paired(normal(400, 3, 0), normal(400, 3, 1))
    parts = (*pair.halves, pair.validation, pair.test)
    assert [n_rows(part) for part in parts] == [120, 120, 80, 80]
    assert pair.fit == slice(0, 240)
    seen = [set(pair.documents[part].tolist()) for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 20


@given(start=st.integers(0, 30), length=st.integers(0, 30), rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_blocks_are_the_rows_once_and_in_order(start, length, rows, seed):
    pair = paired(normal(60, 4, seed).float(), normal(60, 4, seed + 100).float())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "BLOCK_BYTES", rows * 4 * 8)
        found = list(pair.blocks(slice(start, start + length)))
    assert all(n_rows(some) == len(a) == len(b) <= rows for some, a, b in found)
    assert all(a.dtype == b.dtype == torch.float64 for _, a, b in found)
    got = torch.cat([torch.zeros(0, 4), *(a for _, a, _ in found)])
    assert torch.equal(got, pair.a[start : start + length].double())
    got = torch.cat([torch.zeros(0, 4), *(b for _, _, b in found)])
    assert torch.equal(got, pair.b[start : start + length].double())


def test_a_row_wider_than_a_block_is_a_block(monkeypatch):
    pair = paired(normal(20, 4, 0), normal(20, 4, 1), per_document=2)
    monkeypatch.setattr(pairing, "BLOCK_BYTES", 1)
    assert len(list(pair.blocks(pair.fit))) == n_rows(pair.fit)


def test_swapped():
    pair = paired(normal(40, 4, 0), normal(40, 4, 1))
    back = pair.swapped()
    assert back.a is pair.b and back.b is pair.a
    assert back.fit == pair.fit and back.test == pair.test and back.validation == pair.validation
    assert np.array_equal(back.token_ids, pair.token_ids) and back.width == 4
