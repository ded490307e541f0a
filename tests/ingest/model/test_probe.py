from __future__ import annotations

import torch

from signarium.ingest.model.probe import RecordingCache


def test_recording_cache_gives_back_what_it_is_given() -> None:
    seen = []
    cache = RecordingCache(lambda layer, k, v: seen.append((layer, k, v)))
    k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    assert cache.update(k, v, 5) == (k, v)
    assert seen == [(5, k, v)]
    assert cache.get_seq_length() == 0
