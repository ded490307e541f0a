"""What every measured process does alike: read its task, hold still until it is ready, measure, print one line of JSON.

Standard library only: it runs under the package's interpreter and under the peers'.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_PAUSE = 0.03


def task() -> dict[str, Any]:
    """What this process is to do: the JSON object in its first argument."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def answer(**found: object) -> None:
    """The last line that this process prints."""
    print(json.dumps(found), flush=True)


def status(name: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS, VmHWM, RssAnon (Linux).

    Raises:
        OSError: on another system.
    """
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in {_STATUS}")


class Watch:
    """Seconds and the most resident memory of what happens inside, and how much that is beyond the start.

    The kernel's own high-water mark is set back at the start, so that loading a model does not count. Where that
    cannot be, the mark of the whole process stands.
    """

    def __enter__(self) -> Watch:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._begun = status("VmRSS")
        except OSError:
            self._begun = 0
        self._clock = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._clock
        try:
            self.peak = status("VmHWM")
        except OSError:
            self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.extra = self.peak - self._begun


def size_of(path: str | Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def in_turn(
    works: dict[str, Callable[[int], object]], queries: int, seconds: float, repeat: int
) -> dict[str, tuple[float, int]]:
    """For each work: seconds with `queries` queries (the median of `repeat`), and how many queries were measured.

    `work(m)` searches with the first m queries. The works take turns, so that a machine whose speed wanders slows all
    of them alike. One that would take longer than `seconds` in all is measured with fewer queries or less often, and
    scaled: a scan's time grows with the number of queries.
    """
    share, turns = dict[str, int](), dict[str, int]()
    times: dict[str, list[float]] = {name: [] for name in works}
    for name, work in works.items():
        work(1)
        m, took = 1, _clock(work, 1)
        # Batches may be far quicker than queries one by one: feel the way there. Fewer than four queries would leave
        # threads idle that share queries out among them.
        while m < queries and (took * 4 <= seconds / 2 or m < min(4, seconds / took)):
            m = min(queries, 4 * m)
            took = _clock(work, m)
        if m < queries and took / m * queries <= seconds:
            m, took = queries, took / m * queries
        share[name], turns[name] = m, min(repeat, max(1, int(seconds / max(took, 1e-9))))
    for turn in range(repeat):
        for name, work in works.items():
            # Those that are measured less often are so from the first round to the last.
            if (turn + 1) * turns[name] // repeat > turn * turns[name] // repeat:
                # OpenMP's threads go on waiting, busily, for some milliseconds after a search.
                time.sleep(_PAUSE)
                times[name].append(_clock(work, share[name]))
    middle = {name: statistics.median(found) for name, found in times.items()}
    return {name: (took * queries / share[name], share[name]) for name, took in middle.items()}


def _clock(work: Callable[[int], object], m: int) -> float:
    begun = time.perf_counter()
    work(m)
    return time.perf_counter() - begun


def threads(n: int) -> None:
    """Let libraries that are imported later use `n` threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(n)
