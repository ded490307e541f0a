from __future__ import annotations

import numpy as np
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from signarium.catalog.engines import plain, shards


@settings(max_examples=examples(150))
@given(
    st.integers(1, 40),
    st.integers(0, 150),
    st.integers(0, 150),
    st.sampled_from([1, 200, 1 << 20]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_every_way_of_counting_is_the_definition(monkeypatch, size, n, q, block, masked, seed):
    """Along the codes or along the patterns, in blocks and side by side."""
    monkeypatch.setattr(plain, "_BLOCK_BYTES", block)
    monkeypatch.setattr(plain, "_FEWER", 1)
    monkeypatch.setattr(shards, "_LEAST_ROWS", 40)
    monkeypatch.setattr(shards, "_SHARD_ROWS", 40)
    monkeypatch.setattr(shards, "n_threads", lambda: 3)
    rng = np.random.default_rng(seed)
    codes, polarity, mask = (rng.integers(0, 256, (m, size), dtype=np.uint8) for m in (n, q, q))
    # Some patterns have no dimension.
    mask[rng.random(q) < 0.2] = 0
    found = plain.differing(codes, polarity, mask if masked else None)
    apart = codes[None] ^ polarity[:, None]
    wanted = np.bitwise_count(apart & mask[:, None] if masked else apart).sum(-1, dtype=np.int64)
    assert found.dtype == np.int32 and found.shape == (q, n)
    np.testing.assert_array_equal(found, wanted)
