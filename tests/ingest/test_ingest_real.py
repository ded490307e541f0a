"""SmolLM2-135M: codes against an independent pass of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from digest import codes, rows, sound

import signarium
from signarium.ingest.model import load as access

pytestmark = pytest.mark.long

FILE = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = (
    "The king saw the ships. An exception is raised when the file is not there, and Monday follows Sunday.\n"
)
SITES = ("resid_post.0", "resid_post.1", "k.1")


@pytest.mark.real
def test_states_of_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny.smollm2()
    monkeypatch.setattr(access, "load_model", lambda *_, **__: loaded)
    blocks: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, i=i: blocks.append(i))
        for i, block in enumerate(loaded.module.layers)
    ]
    (tmp_path / "a.txt").write_text(TEXT * 12)
    path = tmp_path / "c.duckdb"
    options: dict[str, Any] = {"sites": "resid_post.0,1;k.1", "context": 64, "stages": ["states"]}
    report = signarium.ingest(path, str(FILE), text=[tmp_path / "a.txt"], **options)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    assert 200 < report.tokens < 600
    # 30 blocks, of which the pass needs two.
    assert loaded.n_layers == 30 and set(blocks) == {0, 1}
    sound(path)
    widths = dict(rows(path, "SELECT site, width FROM sites"))
    assert widths == {"resid_post.0": 576, "resid_post.1": 576, "k.1": 192}

    # Each document by itself through transformers alone: hidden states, and keys from its own cache.
    expected: dict[str, list[np.ndarray[Any, Any]]] = {one: [] for one in SITES}
    documents = rows(
        path,
        "SELECT list(DISTINCT [position, token_id] ORDER BY [position, token_id]) FROM states GROUP BY document_id ORDER BY document_id",
    )
    for (tokens,) in documents:
        ids = torch.tensor([[token for _, token in tokens]])
        with torch.inference_mode():
            out = loaded.module(ids, output_hidden_states=True, use_cache=True)
        keys = out.past_key_values.layers[1].keys[0].transpose(0, 1).flatten(1)
        for name, x in zip(SITES, (out.hidden_states[1][0], out.hidden_states[2][0], keys), strict=True):
            expected[name].append(x.double().numpy())
    for name in SITES:
        x = np.concatenate(expected[name])
        items, norms, found = codes(path, "states", name, "zero")
        assert len(items) == len(x) == report.tokens
        assert np.allclose(norms, np.linalg.norm(x, axis=1), rtol=1e-4)
        differ = np.unpackbits(found, axis=1, count=x.shape[1]) != (x > 0)
        # float32: only values within rounding of zero may differ, and few do.
        scale = np.sqrt((x**2).mean(1, keepdims=True))
        assert (np.abs(x / scale)[differ] < 1e-4).all()
        print(f"{name}: bit-flip rate {differ.mean():.2e}")  # noqa: T201
        assert differ.mean() < 1e-3
    text = "".join(row[0] for row in rows(path, "SELECT text FROM documents ORDER BY document_id"))
    assert text == TEXT * 12
