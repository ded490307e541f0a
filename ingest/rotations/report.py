"""What `align` gives back: figures of each site, and the matrices as files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...catalog import store
from ...catalog.errors import InvalidInput, option
from ...catalog.files import replacing


@dataclass(frozen=True)
class SiteRotation:
    """What a run measured at one site: columns of the view `rotations`."""

    rotation_id: int
    site: str
    ev_identity: float
    ev_mean_shift: float
    ev_rotation: float
    ev_affine: float
    ev_shuffled: float
    ev_token_mean: float
    halves_agreement: float | None
    rank_warning: str | None


@dataclass
class AlignReport:
    """What `align` did. `already` says that the run was in the catalogue before."""

    run_id: str
    model_a: str
    model_b: str
    already: bool = False
    rotations: list[SiteRotation] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def read_rotations(path: Path, run_id: str) -> list[SiteRotation]:
    """The rotations of a run, in the order of the model's sites."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT r.rotation_id, r.site_b, r.ev_identity, r.ev_mean_shift, r.ev_rotation, r.ev_affine, r.ev_shuffled, "
            "r.ev_token_mean, r.halves_agreement, r.rank_warning FROM rotations r JOIN site s ON s.name = r.site_b "
            "JOIN model m ON m.model_id = s.model_id AND m.name = r.model_b WHERE r.run_id = ? "
            "ORDER BY s.point = 'final_norm', s.layer NULLS FIRST, s.point, s.name",
            [run_id],
        ).fetchall()
    return [SiteRotation(*row) for row in rows]


def writable(output: Path) -> Path:
    """`output` with the ending .npy.

    Raises:
        InvalidInput: if it cannot be written, before minutes are spent.
    """
    if not output.name:
        raise InvalidInput(f"{option('output')} names no file", "name one such as R.npy")
    file = output if output.suffix == ".npy" else output.with_name(output.name + ".npy")
    folder = file.parent
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidInput(f"{file} cannot be written", "name a file in a folder that is there")
    return file


def write_matrices(path: Path, run_id: str, output: Path) -> list[Path]:
    """The matrices of a run as `.npy` files of float32, each whole or not at all.

    Raises:
        InvalidInput: if a file cannot be written.
    """
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT site_b, width, matrix FROM rotations WHERE run_id = ? ORDER BY site_b", [run_id]
        ).fetchall()
    files = {
        site: output if len(rows) == 1 else output.with_name(f"{output.stem}.{site}.npy")
        for site, _, _ in rows
    }
    for file in files.values():
        if file.is_dir():
            raise InvalidInput(f"{file} is a folder", "name another file")
    for site, width, matrix in rows:
        file = files[site]
        try:
            with replacing(file.resolve()) as part, part.open("wb") as handle:
                np.save(handle, np.frombuffer(matrix, "<f4").reshape(width, width))
        except OSError as error:
            raise InvalidInput(
                f"{file} cannot be written ({error.strerror or error})", "name another file"
            ) from None
    return [files[site] for site, _, _ in rows]
