"""In what two configs differ. Imports no model library, so that what a catalogue holds is looked up without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def differences(a: str, b: str) -> list[str]:
    """Names of the values in which two configs, as `model.config.acting` gives them, differ; `x.y` for a value y inside x."""

    def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for key, value in values.items():
            rows |= (
                flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
            )
        return rows

    one, other = flat(json.loads(a)), flat(json.loads(b))
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
