from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from digest import rows
from effort import in_full

import signarium
from signarium.catalog.errors import DiskFull, RunConflict, SignariumError
from signarium.ingest import size
from signarium.ingest.states import texts


def on_disk(path: Path) -> int:
    """Bytes of the catalogue and its indexes."""
    return path.stat().st_size + sum(one.stat().st_size for one in Path(f"{path}.indexes").iterdir())


@pytest.mark.parametrize(
    ("changes", "sites", "words"),
    [
        # 72-byte codes of a vocabulary; states in text; few and long codes; narrow codes beside wide ones.
        in_full({"hidden_size": 576, "vocab_size": 20_000}, "embed;attn_out.0;resid_mid.0", 0),
        in_full({"hidden_size": 576}, "embed;resid_mid.0;resid_post.0", 5_000),
        in_full({"hidden_size": 2048, "vocab_size": 11_000}, "embed;k.0", 0),
        ({"hidden_size": 576, "vocab_size": 9_000}, "embed;ffn.0;k.0;mlp_out.0", 3_000),
    ],
)
def test_the_estimate_is_within_five_percent(
    changes: dict[str, int], sites: str, words: int, tmp_path: Path
) -> None:
    changes = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8} | changes
    folder = tiny.folder(tmp_path, "llama", **changes)
    options: dict[str, Any] = {"sites": sites, "device": "cpu", "context": 128}
    if words:
        (tmp_path / "a.txt").write_text("".join(f"the king and {i} ships.\n" for i in range(words)))
        options["text"] = [tmp_path / "a.txt"]
    path = tmp_path / "c.duckdb"
    report = signarium.ingest(path, folder, **options)  # type: ignore[operator]
    landed = on_disk(path)
    assert landed > 15e6
    print(f"{sites} {changes}: {report.estimate.stored_bytes / landed - 1:+.3%} of {landed / 1e6:.1f} MB")  # noqa: T201
    assert abs(report.estimate.stored_bytes / landed - 1) < 0.05
    assert report.estimate.rows == rows(path, "SELECT count(*) FROM codes")[0][0]
    assert report.estimate.tokens == report.tokens == rows(path, "SELECT sum(tokens) FROM runs")[0][0]
    again = signarium.ingest(path, folder, dry_run=True, **options).estimate  # type: ignore[operator]
    assert (again.stored_bytes, again.rows, again.tokens, again.scratch_bytes) == (0, 0, 0, 0)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "llama")
    (tmp_path / "a.txt").write_text(tiny.TEXT * 30)
    home = tmp_path / "home"
    home.mkdir()
    before = home.stat().st_mtime_ns
    options: dict[str, Any] = {"text": [tmp_path / "a.txt"], "context": 64, "bos": True, "device": "cpu"}
    report = signarium.ingest(home / "c.duckdb", folder, dry_run=True, **options)  # type: ignore[operator]
    assert list(home.iterdir()) == [] and home.stat().st_mtime_ns == before
    assert report.dry_run and report.runs == [] and report.tokens == 0
    done = signarium.ingest(home / "c.duckdb", folder, **options)  # type: ignore[operator]
    assert done.estimate.tokens == report.estimate.tokens == done.tokens
    assert done.estimate.stored_bytes == report.estimate.stored_bytes
    # Nor beside a catalogue that is there.
    kept = {one: one.stat().st_mtime_ns for one in home.rglob("*")}
    content = (home / "c.duckdb").read_bytes()
    signarium.ingest(  # type: ignore[operator]
        home / "c.duckdb", folder, sites="k.*", dry_run=True, **options
    )
    assert {one: one.stat().st_mtime_ns for one in home.rglob("*")} == kept
    assert (home / "c.duckdb").read_bytes() == content


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.folder(tmp_path, "llama")
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    asked = []

    def usage(where: Path) -> Any:
        asked.append(Path(where))
        return type("Usage", (), {"free": 1_000_000})

    monkeypatch.setattr(size.shutil, "disk_usage", usage)
    with pytest.raises(DiskFull, match=r"1\.0 MB free and .* are needed"):
        signarium.ingest(tmp_path / "link" / "c.duckdb", folder, device="cpu")  # type: ignore[operator]
    assert list(home.iterdir()) == []
    # The disk asked is that of the file, not of the link to it.
    assert asked == [home]


def test_names_and_weights(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    options: dict[str, Any] = {"sites": "embed", "device": "cpu"}
    first, other = tiny.folder(tmp_path, "llama", 0), tiny.folder(tmp_path, "llama", 1)
    moved = tiny.folder(tmp_path / "moved", "llama", 0, name="elsewhere", max_shard_size="40KB")
    signarium.ingest(path, first, name="mine", **options)  # type: ignore[operator]
    content = path.read_bytes()
    for source, more, match in (
        (other, {"name": "mine"}, "'mine' belongs to another model: pass another --name"),
        (first, {"name": "yours"}, "in the catalogue as 'mine': leave --name out"),
        (first, {"name": "mine", "dtype": "bfloat16"}, "'mine' belongs to the same weights in float32"),
    ):
        with pytest.raises(RunConflict, match=match) as caught:
            signarium.ingest(path, source, **options, **more)  # type: ignore[operator]
        assert "\n" not in str(caught.value)
    # The same weights in other files, from another folder, are the same model.
    assert signarium.ingest(path, moved, **options).already  # type: ignore[operator]
    assert signarium.ingest(path, first, **options).already  # type: ignore[operator]
    assert signarium.ingest(path, first, name="mine", **options).already  # type: ignore[operator]
    assert path.read_bytes() == content
    report = signarium.ingest(path, other, name="other", **options)  # type: ignore[operator]
    assert report.model == "other" and not report.already
    signarium.ingest(path, first, random_init=3, name="random", **options)  # type: ignore[operator]
    found = rows(path, "SELECT name, random_init_seed, source FROM models ORDER BY name")
    assert found == [("mine", None, str(first)), ("other", None, str(other)), ("random", 3, str(first))]


def test_a_model_that_moved_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    options: dict[str, Any] = {"sites": "embed", "device": "cpu"}
    first = tiny.folder(tmp_path, "llama", 0, name="first")
    signarium.ingest(path, first, **options)  # type: ignore[operator]
    second = first.rename(tmp_path / "second")
    assert signarium.ingest(path, second, **options).already  # type: ignore[operator]
    assert rows(path, "SELECT name, source FROM models") == [("first", str(second))]


def test_a_control_stands_beside_what_it_controls(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    folder = tiny.folder(tmp_path, "llama", 0, name="mine")
    options: dict[str, Any] = {"sites": ["embed"], "stages": "types", "device": "cpu"}
    for more in ({}, {"random_init": 3}):
        signarium.ingest(path, folder, **options, **more)  # type: ignore[operator]
    assert rows(path, "SELECT name FROM models ORDER BY name") == [("mine",), ("mine-random-3",)]


def test_a_relative_path_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(tmp_path, "llama")
    monkeypatch.chdir(tmp_path)
    signarium.ingest("c.duckdb", "llama-0", sites="embed", device="cpu")  # type: ignore[operator]
    assert rows(tmp_path / "c.duckdb", "SELECT source FROM models") == [(os.path.abspath("llama-0"),)]


def test_an_unfinished_run_over_more_texts_is_not_torn_apart(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "llama")
    a, b, c = (tmp_path / f"{name}.txt" for name in "abc")
    for i, one in enumerate((a, b, c)):
        one.write_text(tiny.TEXT * (3 + i))
    path = tmp_path / "c.duckdb"
    options: dict[str, Any] = {"sites": "embed", "context": 32, "device": "cpu", "stages": ["states"]}
    signarium.ingest(path, folder, text=[a, b], max_tokens=40, **options)  # type: ignore[operator]
    with pytest.raises(
        RunConflict, match=r"b\.txt is part of an unfinished run .* give the same `text`"
    ) as caught:
        signarium.ingest(path, folder, text=[b], **options)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert "signarium runs remove" in str(caught.value)
    # What comes before the text that is missing is finished, and the rest may follow.
    signarium.ingest(path, folder, text=[a], **options)  # type: ignore[operator]
    assert signarium.ingest(path, folder, text=[a], **options).already  # type: ignore[operator]
    assert rows(path, "SELECT DISTINCT source FROM documents") == [(str(a),)]
    # Another site, another context, another text: all free.
    for more in ({"sites": "k.1", "text": [b]}, {"context": 31, "text": [b]}, {"text": [c]}):
        signarium.ingest(path, folder, **(options | more))  # type: ignore[operator]
    # In any order, and with more beside them.
    signarium.ingest(path, folder, text=[c, b, a], **options)  # type: ignore[operator]
    assert rows(path, "SELECT DISTINCT status FROM runs") == [("done",)]
    assert signarium.ingest(path, folder, text=[b], **options).already  # type: ignore[operator]


def test_a_run_that_stored_nothing_binds_nobody(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "llama")
    more = tiny.tokenizer()
    more.add_tokens([f"<beyond{i}>" for i in range(600)])
    more.save_pretrained(folder)
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    bad.write_text("see <beyond599> here " * 3)
    good.write_text(tiny.TEXT)
    path = tmp_path / "c.duckdb"
    options: dict[str, Any] = {"sites": "embed", "context": 32, "device": "cpu", "stages": ["states"]}
    with pytest.raises(SignariumError, match="is none of the"):
        signarium.ingest(path, folder, text=[bad, good], **options)  # type: ignore[operator]
    signarium.ingest(path, folder, text=[good], **options)  # type: ignore[operator]
    assert rows(path, "SELECT status, tokens > 0 FROM runs ORDER BY ALL") == [
        ("done", True),
        ("failed", False),
    ]


def test_colliding_texts_get_ranges_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All texts fall onto the same range unless salted.
    monkeypatch.setattr(texts, "text_base", lambda salt, *_: (7 + salt) << 32)
    folder = tiny.folder(tmp_path, "llama")
    path = tmp_path / "c.duckdb"
    options: dict[str, Any] = {"sites": "embed", "context": 32, "device": "cpu", "stages": ["states"]}
    for i, number in enumerate((2, 1, 3)):
        text = tmp_path / f"{number}.txt"
        text.write_text(tiny.TEXT * number)
        signarium.ingest(path, folder, text=[text], **options)  # type: ignore[operator]
        assert signarium.ingest(path, folder, text=[text], **options).already  # type: ignore[operator]
        assert rows(path, "SELECT count(DISTINCT document_id >> 32) FROM documents") == [(i + 1,)]
