"""Integrity: a sound catalogue passes, and each thing broken shows under its own name and no other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
import small

from signarium.catalog import approximate, index, parts, store
from signarium.catalog.errors import NotACatalogue
from signarium.catalog.verify import Finding, verify


@pytest.fixture
def catalogue(tmp_path: Path) -> small.Small:
    one = small.filled(tmp_path / "c.duckdb")
    assert index.build_all(one.path) == []
    return one


def wrong(findings: Sequence[Finding]) -> dict[str, int]:
    return {one.check: one.wrong for one in findings if not one.ok}


def run_sql(one: small.Small, statement: str) -> None:
    connection = duckdb.connect(str(one.path))
    connection.execute(statement.format(**{f"{s}_{c}": i for (s, c), i in one.sets.items()}))
    connection.close()


def test_sound(catalogue: small.Small) -> None:
    findings = verify(catalogue.path)
    assert wrong(findings) == {}
    assert len({one.check for one in findings}) == len(findings)
    looked = {one.check: one.looked_at for one in findings}
    assert looked["codes without their code set"] == 2 * (small.N_TYPES + sum(small.WINDOWS))
    assert looked["codes of the wrong length"] == 2 * (small.N_TYPES + sum(small.WINDOWS))
    assert looked["index files that differ from the catalogue"] == 4
    assert all(one.looked_at > 0 for one in findings)


def test_empty(tmp_path: Path) -> None:
    findings = verify(small.empty(tmp_path / "c.duckdb"))
    assert wrong(findings) == {}
    assert {one.looked_at for one in findings} == {0}


COUNT = "code sets with missing, doubled or extra codes"
TEXT = "documents whose text or tokens changed"
INDEX = "index files that differ from the catalogue"
MASK = "features with a damaged mask"
WRITTEN = " that are not as they were written"


def _blob(first: int, last: int = 0) -> str:
    """Ten bytes, as SQL."""
    return "'" + "".join(f"\\x{one:02x}" for one in (first, *[0] * 8, last)) + "'::BLOB"


BROKEN = {
    "model": ("DELETE FROM model", {"runs without their model": 3, "sites without their model": 1}),
    "document": (
        f"DELETE FROM document_row WHERE document_id = {small.BASE}",
        {"states without their document": 5},
    ),
    "token of a text": (f"DELETE FROM state_row WHERE state_id = {small.BASE + 1}", {TEXT: 1}),
    "doubled token of a text": (
        f"INSERT INTO state_row SELECT * FROM state_row WHERE state_id = {small.BASE + 1}",
        {TEXT: 1},
    ),
    "text": (f"UPDATE document_row SET text = 'x' WHERE document_id = {small.BASE}", {TEXT: 1}),
    "hash": (f"UPDATE document_row SET sha256 = 'x' WHERE document_id = {small.BASE}", {TEXT: 1}),
    "doubled document": (
        f"INSERT INTO document_row SELECT * FROM document_row WHERE document_id = {small.BASE}",
        {"documents stored twice": 1},
    ),
    "doubled vocabulary": (
        "INSERT INTO token_row SELECT * FROM token_row WHERE token_id < 3",
        {"tokens stored twice": 3},
    ),
    "doubled statistics": (
        "INSERT INTO dimension_row SELECT * FROM dimension_row WHERE dim = 1",
        {"statistics stored twice": 1},
    ),
    "text of a run": ("DELETE FROM text_file", {"texts of runs that are not there": 1}),
    "short code": (
        "UPDATE code_row SET code = '\\x00'::BLOB WHERE code_set_id = {type_mean} AND item = 7",
        {"codes of the wrong length": 1, INDEX: 1},
    ),
    "padding": (
        # Width 76: the last four bits of ten bytes.
        "UPDATE code_row SET code = '\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01'::BLOB "
        "WHERE code_set_id = {type_mean} AND item IN (7, 8)",
        {"codes with bits past their width": 2, INDEX: 1},
    ),
    "mask of another width": ("UPDATE feature_row SET mask = mask || '\\x00'::BLOB", {MASK: 1}),
    "polarity of another width": ("UPDATE feature_row SET polarity = ''::BLOB", {MASK: 1}),
    "dimensions that are not counted": ("UPDATE feature_row SET n_dims = 4", {MASK: 1}),
    "no dimensions": (
        f"UPDATE feature_row SET n_dims = 0, mask = {_blob(0)}, polarity = {_blob(0)}",
        {MASK: 1},
    ),
    # The mask is the first three of 76 dimensions.
    "a sign outside the mask": (f"UPDATE feature_row SET polarity = {_blob(0x90)}", {MASK: 1}),
    "a mask past the width": (f"UPDATE feature_row SET mask = {_blob(0xC0, 0x08)}", {MASK: 1}),
    "a mask to the width": (f"UPDATE feature_row SET mask = {_blob(0xC0, 0x10)}", {}),
    "norm": ("UPDATE code_row SET norm = 'nan' WHERE item = 7", {"norms that are no lengths": 2}),
    "negative norm": ("UPDATE code_row SET norm = -1 WHERE item = 7", {"norms that are no lengths": 2}),
    "code": (
        "UPDATE code_row SET code = (SELECT code FROM code_row WHERE code_set_id = {type_zero} AND item = 8) "
        "WHERE code_set_id = {type_zero} AND item = 7",
        {INDEX: 1},
    ),
    "missing row": (
        "DELETE FROM code_row WHERE code_set_id = {state_zero} AND item % 16 = 1",
        {COUNT: 1, INDEX: 1},
    ),
    "doubled row": (
        "INSERT INTO code_row SELECT * FROM code_row WHERE code_set_id = {type_zero} AND item = 1",
        {COUNT: 1, INDEX: 1},
    ),
    "code set": (
        "DELETE FROM code_set WHERE code_set_id = {type_zero}",
        {"codes without their code set": small.N_TYPES, "index records without their code set": 1},
    ),
    "all codes": ("DELETE FROM code_row WHERE code_set_id = {type_zero}", {COUNT: 1, INDEX: 1}),
    "site": (
        "DELETE FROM site",
        {
            "code sets without their site": 4,
            "statistics without their site": small.WIDTH,
            "measurements without their site": 1,
            "features without their site": 1,
            "projections without their site": 4,
            "flips without their site": 2,
            "rotations without their site in A": 1,
            "rotations without their site in B": 1,
            "dictionaries without their site": 1,
        },
    ),
    "feature": (
        "DELETE FROM feature_row",
        {
            "members without their feature": 3,
            "types without their feature": 1,
            "states without their feature": 1,
            "writers without their feature": 2,
            "coalitions without their feature": 2,
            "flips without their feature": 2,
            "carried features that are not there": 1,
        },
    ),
    "rotation": (
        "DELETE FROM rotation_row",
        {
            "components without their rotation": 1,
            "carried features without their rotation": 1,
            "steering directions without their rotation": 1,
        },
    ),
    "doubled rotations": (
        "INSERT INTO rotation_row SELECT * FROM rotation_row; "
        "INSERT INTO rotation_component_row SELECT * FROM rotation_component_row; "
        "INSERT INTO carried_row SELECT * FROM carried_row; INSERT INTO steering_row SELECT * FROM steering_row",
        {
            "rotations stored twice": 1,
            "components stored twice": 1,
            "carried features stored twice": 1,
            "steering stored twice": 1,
        },
    ),
    "doubled causes": (
        "INSERT INTO writer_row SELECT * FROM writer_row WHERE rank = 1; "
        "INSERT INTO coalition_row SELECT * FROM coalition_row; "
        "INSERT INTO projection_row SELECT * FROM projection_row WHERE subject = 'neuron'; "
        "INSERT INTO flip_row SELECT * FROM flip_row WHERE arm = 'away'",
        {
            "writers stored twice": 1,
            "coalitions stored twice": 2,
            "projections stored twice": 2,
            "flips stored twice": 1,
        },
    ),
    "run of causes": (
        "DELETE FROM run WHERE run_id = 'features'",
        {
            "features without their run": 1,
            "projections without their run": 4,
            "flips without their run": 2,
            "rotations without their run": 1,
            "dictionaries without their run": 1,
        },
    ),
    "shard": ("DELETE FROM shard WHERE run_id = 'types'", {COUNT: 2}),
    "run": (
        "DELETE FROM run WHERE run_id = 'states'",
        {
            "shards without their run": 1,
            "code sets without their run": 2,
            "measurements without their run": 1,
            "texts without their run": 1,
            "states of features without their run": 1,
        },
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(catalogue: small.Small, name: str) -> None:
    """By a check of its kind, if there is one, and in any case by the digests of the tables that were changed."""
    statement, expected = BROKEN[name]
    run_sql(catalogue, statement)
    touched = re.findall(r"(?:DELETE FROM|UPDATE|INSERT INTO) (\w+)", statement)
    found = wrong(verify(catalogue.path))
    assert {one.removesuffix(WRITTEN) for one in found if one.endswith(WRITTEN)} == {
        parts.tables()[table].rows for table in touched
    }
    assert {check: n for check, n in found.items() if not check.endswith(WRITTEN)} == expected


CHANGED = {
    "one bit of a code": (
        "UPDATE code_row SET code = (set_bit(code::BIT, 9, 1 - get_bit(code::BIT, 9)))::BLOB "
        "WHERE code_set_id = {type_mean} AND item = 7",
        {"codes": "run types of tiny: type at resid_post.1, centre mean, item 0 to 1023"},
    ),
    "norms": (
        "UPDATE code_row SET norm = norm * 1.0001 WHERE code_set_id = {state_zero}",
        {"codes": f"run states of tiny: state at resid_post.1, centre zero, item {small.BASE} to {small.BASE + 1023}"},
    ),
    "exchanged codes": (
        "UPDATE code_row SET item = 15 - item WHERE code_set_id = {type_zero} AND item IN (7, 8)",
        {"codes": "run types of tiny: type at resid_post.1, centre zero, item 0 to 1023"},
    ),
    "an AUC": (
        "UPDATE feature_row SET auc_held_out = auc_held_out + 1e-9",
        {"features": "run features (categories) of tiny"},
    ),
    "an AUC that is gone": (
        "UPDATE feature_row SET auc_rotated = NULL",
        {"features": "run features (categories) of tiny"},
    ),
    "a member and a top": (
        "UPDATE feature_member SET token_id = 6 WHERE token_id = 5; UPDATE feature_type_row SET token_id = 5",
        {
            "members of features": "run features (categories) of tiny",
            "types of features": "run features (categories) of tiny",
        },
    ),
    "the token of a state": (
        f"UPDATE state_row SET token_id = token_id + 1 WHERE state_id = {small.BASE + 3}",
        {"states": f"a.txt, state_id {small.BASE} to {small.BASE + 1023}"},
    ),
    "a token": (
        "UPDATE token_row SET token = upper(token) WHERE token_id = 9",
        {"tokens": "tiny, token_id 0 to 1023"},
    ),
    "what is of a model": (
        "UPDATE model SET name = 'other'; UPDATE code_set SET centre = 'text' WHERE centre = 'mean'",
        {
            "models": "m0",
            "code sets": "run states (states) of other; run types (types) of other",
        },
    ),
    "what a run says of its progress": ("UPDATE run SET finished_at = now(), complete = false, device = 'x'", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_changed_is_named_with_its_run(catalogue: small.Small, name: str) -> None:
    statement, expected = CHANGED[name]
    for one in index.folder(catalogue.path).iterdir():
        one.unlink()
    run_sql(catalogue, statement)
    found = [one for one in verify(catalogue.path) if not one.ok]
    assert {one.check.removesuffix(WRITTEN): one.where for one in found} == expected


def test_rows_from_before_digests(catalogue: small.Small) -> None:
    run_sql(
        catalogue,
        "DELETE FROM digest_row WHERE table_name IN ('code_row', 'model'); UPDATE code_row SET norm = 2",
    )
    before = next(one for one in verify(catalogue.path) if one.check.endswith("not covered"))
    assert (before.looked_at, before.ok) == (2 * (small.N_TYPES + sum(small.WINDOWS)) + 1, True)


def test_an_approximate_index(catalogue: small.Small) -> None:
    """A file of another kind; one that is not there is no damage."""
    with store.reading(catalogue.path) as connection:
        info = index.describe(connection, "v.code_set_id = ?", [catalogue.sets["type", "mean"]])[0]
        approximate.approximate_index(catalogue.path, info, index.get(catalogue.path, info, connection))
    assert wrong(verify(catalogue.path)) == {}
    file = index.folder(catalogue.path) / f"{info.code_set_id}.ivf"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    assert wrong(verify(catalogue.path)) == {INDEX: 1}


@pytest.mark.parametrize("place", [0, 40, 41, 333, -1])
def test_one_flipped_bit_in_an_index(catalogue: small.Small, place: int) -> None:
    file = index.folder(catalogue.path) / f"{catalogue.sets['type', 'mean']}.faiss"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert wrong(verify(catalogue.path)) == {INDEX: 1}


def test_a_stale_index_is_no_damage(catalogue: small.Small) -> None:
    (index.folder(catalogue.path) / f"{catalogue.sets['type', 'mean']}.json").unlink()
    findings = verify(catalogue.path)
    assert wrong(findings) == {}
    assert {one.check: one.looked_at for one in findings}[INDEX] == 3


def test_a_damaged_block(catalogue: small.Small) -> None:
    """DuckDB's checksum of a block that only a full read reaches; the message is one line."""
    with duckdb.connect(str(catalogue.path), read_only=True) as connection:
        size, block = connection.execute(
            "SELECT (SELECT block_size FROM pragma_database_size()), block_id FROM pragma_storage_info('code_row') "
            "WHERE column_name = 'code' AND segment_type = 'BLOB' AND persistent"
        ).fetchall()[0]
    data = bytearray(catalogue.path.read_bytes())
    data[3 * 4096 + block * size + size // 2] ^= 0x10
    catalogue.path.write_bytes(data)
    with pytest.raises(Exception, match=r"cannot be read to its end|damaged") as caught:
        verify(catalogue.path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, NotACatalogue) or "restore it from a copy" in str(caught.value)


CHECKS = {
    "shards": "run",
    "runs": "model",
    "sites": "model",
    "code sets": "run, site",
    "codes": "code set",
    "index records": "code set",
    "states": "document, feature",
    "texts": "run",
    "statistics": "run, site",
    "measurements": "run, site",
    "features": "run, site",
    "members": "feature",
    "types": "feature",
    "states of features": "run",
    "writers": "feature",
    "coalitions": "feature",
    "projections": "run, site",
    "flips": "run, feature, site",
    "rotations": "run, site in A, site in B",
    "components": "rotation",
    "carried features": "rotation",
    "steering directions": "rotation",
    "dictionaries": "run, site",
}
NOT_THERE = ("texts of runs", "states of features", "carried features")
TWICE = (
    "documents, tokens, statistics, texts of runs, measurements, features, members of features, types of features, states of "
    "features, writers, coalitions, projections, flips, rotations, components, carried features, steering"
)


def test_the_references_and_keys_that_are_checked(tmp_path: Path) -> None:
    """They follow from the tables; here as a list, so that none is lost."""
    checks = [one.check for one in verify(small.empty(tmp_path / "c.duckdb"))]
    expected = {f"{rows} without their {row}" for rows, many in CHECKS.items() for row in many.split(", ")}
    expected |= {f"{rows} that are not there" for rows in NOT_THERE}
    expected |= {f"{rows} stored twice" for rows in TWICE.split(", ")}
    kept = [table for table in parts.tables().values() if table.name not in ("surface", "digest_row")]
    expected |= {f"{table.rows}{WRITTEN}" for table in kept}
    assert {
        one for one in checks if "without their" in one or "that are not" in one or "twice" in one
    } == expected
    assert len(checks) == len(set(checks))
