"""What a device computes is what the CPU computes, but for bits that the float type decides.

`make test-gpu` runs these on CUDA. The same checks run with the CPU in both places, so that they are known to work.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from effort import in_full

import signarium
from signarium.catalog import store
from signarium.catalog.codes import hamming
from signarium.ingest import size
from signarium.ingest.encode import encode_text
from signarium.ingest.recheck import recheck
from signarium.ingest.rotations.carry import code_figures
from signarium.ingest.rotations.chance import chance
from signarium.ingest.rotations.explained import explained
from signarium.ingest.rotations.fit import fit
from signarium.ingest.stats.bases import haar
from signarium.ingest.stats.figures import Scope
from signarium.ingest.stats.paired import Paired

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MOST_FLIPPED = 1e-3
"""In float32, of random models: kernels differ in the order of their sums alone."""


def codes(path: Path) -> dict[tuple[str, str, str], tuple[list[int], np.ndarray]]:
    with store.reading(path) as connection:
        sets = connection.execute("SELECT code_set_id, site, subject, centre FROM code_sets").fetchall()
        found = {}
        for ident, *key in sets:
            rows = connection.execute(
                "SELECT item, code FROM code_row WHERE code_set_id = ? ORDER BY item", [ident]
            ).fetchall()
            found[tuple(key)] = [row[0] for row in rows], np.array([list(row[1]) for row in rows], np.uint8)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("architecture", "device"),
    [
        ("llama", "cpu"),
        in_full("gpt2", "cpu"),
        in_full("bert", "cpu"),
        *(pytest.param(one, "cuda", marks=pytest.mark.gpu) for one in ("llama", "gpt2", "bert")),
    ],
)
def test_an_ingest_is_that_of_the_cpu(architecture: str, device: str, tmp_path: Path) -> None:
    model = tiny.folder(tmp_path, architecture)
    # Windows of many lengths, so that batches are padded.
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "{"The king saw 12 ships. " * n}"}}\n' for n in range(1, 9)))
    paths = []
    for where in ("cpu", device):
        paths.append(tmp_path / f"{len(paths)}.duckdb")
        signarium.ingest(
            paths[-1],
            str(model),
            text=[text],
            context=48,
            sites="resid_post.*",
            device=where,
            dtype="float32",
        )
    expected, found = codes(paths[0]), codes(paths[1])
    assert found.keys() == expected.keys() and len(found) > 4
    for key, (items, rows) in expected.items():
        assert found[key][0] == items
        assert hamming(found[key][1], rows).sum() <= MOST_FLIPPED * rows.size * 8, key
    name = model.name
    for one in recheck(paths[1], name):
        assert one.flipped <= MOST_FLIPPED * one.bits
    shown = encode_text(paths[1], name, "resid_post.1", "zero", "The king saw 12", device=device)
    plain = encode_text(paths[0], name, "resid_post.1", "zero", "The king saw 12", device="cpu")
    assert (shown.token, shown.position, shown.n_tokens) == (plain.token, plain.position, plain.n_tokens)
    assert int(hamming(shown.code, plain.code)) <= 1


@pytest.mark.parametrize(
    "devices",
    [
        in_full("cpu"),
        "cpu,cpu",
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("all", marks=pytest.mark.gpu),
    ],
)
def test_many_small_batches_are_those_of_the_cpu(
    devices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Buffers are filled again many times over, shards are begun before those before them are whole.
    if devices == "all":
        if torch.cuda.device_count() < 2:
            pytest.skip("there is one GPU")
        devices = ",".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    monkeypatch.setattr(size, "shard_tokens", lambda _: 400)
    model, text = tiny.folder(tmp_path, "llama"), tmp_path / "text.jsonl"
    text.write_text(
        "".join(f'{{"text": "{"The king saw 12 ships. " * (1 + 5 * n % 7)}"}}\n' for n in range(60))
    )
    paths = []
    for where in ("cpu", devices):
        paths.append(tmp_path / f"{len(paths)}.duckdb")
        options = {"context": 32, "sites": "embed;resid_post.*;k.1", "dtype": "float32", "batch_tokens": 90}
        signarium.ingest(paths[-1], str(model), text=[text], devices=where, **options)
    expected, found = codes(paths[0]), codes(paths[1])
    for key, (items, rows) in expected.items():
        assert found[key][0] == items
        assert hamming(found[key][1], rows).sum() <= MOST_FLIPPED * rows.size * 8, key
    with store.reading(paths[1]) as connection:
        times = connection.execute("SELECT device, forward_s, pack_s, write_s FROM runs").fetchall()
    for device, *spent in times:
        assert device == ("cuda:0" if devices == "cuda" else devices) and min(spent) > 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_rotation_is_that_of_the_cpu(device: str) -> None:
    """Fit, explained variance, nulls and carried codes: float64 on both, so nearly the same numbers."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3000, 48, generator=generator)
    b = a @ haar(48, 11) + 0.3 * torch.randn(3000, 48, generator=generator)
    tokens = torch.randint(40, (3000,), generator=generator).numpy()
    documents = np.repeat(np.arange(60), 50)

    def figures(where: str) -> tuple[torch.Tensor, list[float]]:
        paired = Paired(
            a, b, (slice(0, 900), slice(900, 1800)), slice(1800, 2100), slice(2100, 3000), tokens, documents,
            np.tile(np.arange(50), 60), torch.device(where),
        )  # fmt: skip
        fitted = fit(paired, 0)
        found = list(explained(paired, fitted).value.values()) + list(chance(paired, 0) or ())
        found += [
            one.value
            for one in code_figures(paired, fitted, Scope("s", "rotation", "A", 0))
            if "code" in one.metric
        ]
        return fitted.rotation.matrix.cpu(), found

    matrix, values = figures("cpu")
    other, others = figures(device)
    torch.testing.assert_close(other, matrix, rtol=0, atol=1e-9)
    assert others == pytest.approx(values, abs=1e-4)
