"""Timing, processes that measure, and what the machine is."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median as middle
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


class NotMeasured(Exception):
    """A peer, or one of our own processes, gave no figures; the message is one line."""


@dataclass(frozen=True)
class Setting:
    """What every part needs: where it may write, whether sizes are small, and the peers' environment.

    `kept` stays from run to run, `scratch` is emptied after the part.
    """

    scratch: Path
    kept: Path
    quick: bool
    peers: Path
    device: str = "cpu"

    @property
    def peer(self) -> Path:
        """The peers' interpreter.

        Raises:
            NotMeasured: if there is none.
        """
        python = self.peers / "bin" / "python"
        if not python.exists():
            raise NotMeasured("the peers are not installed, see `make bench-setup`")
        return python


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def best(work: Callable[[], object], repeat: int) -> float:
    """Seconds of the quickest of `repeat` calls."""
    return min(seconds(work) for _ in range(repeat))


def median(work: Callable[[], object], repeat: int) -> float:
    """Seconds of the middle one of `repeat` calls."""
    return middle(seconds(work) for _ in range(repeat))


def child(
    python: str | Path, script: str, task: Mapping[str, Any], limit: float = 900, cores: int | None = None
) -> dict[str, Any]:
    """Run `script` of this folder in a process of its own; the JSON object that it prints last.

    Nothing is fetched from anywhere while it runs. `cores` lets it use only so many.

    Raises:
        NotMeasured: if it fails, takes longer than `limit` seconds or prints nothing.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    quiet = {"TOKENIZERS_PARALLELISM": "true", "PYTHONWARNINGS": "ignore"}
    command = [str(python), str(HERE / script), json.dumps(task)]
    if cores is not None and not hasattr(os, "sched_setaffinity"):
        raise NotMeasured("this system does not let a process keep to some of its cores")
    mine = os.sched_getaffinity(0) if cores is not None else set()
    try:
        if cores is not None:
            # Inherited by the process that is started here.
            os.sched_setaffinity(0, set(sorted(mine)[:cores]))
        return run_json(command, limit, {**os.environ, **offline, **quiet})
    finally:
        if cores is not None:
            os.sched_setaffinity(0, mine)


def run_json(
    command: Sequence[str], limit: float = 1800, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON object that a command prints last.

    Raises:
        NotMeasured: as `child`.
    """
    name = Path(command[1]).stem
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"{name} took longer than {limit:.0f} s") from None
    if done.returncode:
        last = [one for one in done.stderr.strip().splitlines() if one.strip()][-1:] or ["no message"]
        how = f"signal {-done.returncode}" if done.returncode < 0 else last[0]
        # Where this checkout lies is no part of a result.
        raise NotMeasured(f"{name} failed: {how.strip()}".replace(f"{ROOT}/", ""))
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise NotMeasured(f"{name} printed no figures") from None
    return found


def ours(
    script: str, task: Mapping[str, Any], limit: float = 900, cores: int | None = None
) -> dict[str, Any]:
    """`child` under the package's own interpreter."""
    return child(sys.executable, script, task, limit, cores)


def threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def machine() -> str:
    """Processor and cores, as a row of `measured.json` names them."""
    return f"{processor()}, {threads()} cores"


def memory_free() -> int:
    """Bytes that could be used without swapping (Linux); elsewhere as if there were plenty."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 40
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def versions(*names: str) -> str:
    """Versions of those that are installed, as "numpy 2.4.6, torch 2.13.0"."""
    found = []
    for name in names:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def python() -> str:
    """The interpreter's version."""
    return f"Python {platform.python_version()}"
