"""What commands that only read do not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import twins
from made import DECODER, Made
from terminal import LISTING

_LOADED = """
import sys
sys.argv = ["signarium", *sys.argv[1:]]
from signarium.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
bad = {"torch", "transformers", "sqlalchemy", "alembic"}
print("LOADED", sorted(bad & set(sys.modules)), "pyarrow" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "name",
    ["sql", "models", "info", "nearest", "state", "show", "find", "neurons", "neuron", "rotations", "saes"],
)
def test_reading_starts_without_the_heavy_libraries(catalogue: Made, with_features: Path, name: str) -> None:
    arguments = LISTING.get(name)
    if name in ("show", "find", "neurons", "neuron", "rotations", "saes"):
        arguments = {
            "rotations": ["rotations", "list"],
            "saes": ["sae", "list"],
            "neurons": ["neurons", "list", "--model", DECODER],
            "neuron": ["neurons", "show", "0/4", "--model", DECODER],
            "show": ["features", "show", "1000"],
            "find": ["features", "find", " king", "--model", DECODER],
        }[name]
    if arguments is None:
        with duckdb.connect(str(catalogue.path), read_only=True) as connection:
            row = connection.execute("SELECT min(state_id) FROM states WHERE model = ?", [DECODER]).fetchone()
        arguments = ["nearest", f"state:{row[0]}", "--model", DECODER, "--where", "position > 2"]
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, "--db", str(with_features), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "LOADED [] True"


@pytest.mark.parametrize("name", ["across", "page", "directions"])
def test_rotations_start_without_the_heavy_libraries(rotated: Path, name: str) -> None:
    arguments = {
        "across": ["nearest", f"state:{twins.BASE}", "--model", "alpha", "--across", "beta"],
        "page": ["rotations", "show", "alpha", "beta"],
        "directions": ["nearest", "direction:alpha sae 0/1", "--across", "beta", "--in", "directions"],
    }[name]
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, "--db", str(rotated), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "LOADED [] True"
