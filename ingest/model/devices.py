"""Where a model runs: the devices that `--device` and `--devices` name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...catalog.errors import ModelError


def find_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is the best there is.

    Raises:
        ModelError: if there is none such here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"no device {name!r}", "there is auto, cpu, cuda, cuda:1, mps") from error
    n = torch.cuda.device_count() if cuda else 0
    if device.type == "cuda" and (device.index or 0) >= n:
        what = f"no device {name!r} here (torch sees {n} CUDA devices)"
        raise ModelError(what, "pass --device auto or cpu")
    if device.type == "mps" and not mps:
        raise ModelError("no device 'mps' here", "pass --device auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ModelError(f"device {name!r} is not supported", "there is auto, cpu, cuda, mps")
    if device.type != "cuda" and device.index is not None:
        # torch takes any number, and means the same device by all of them.
        raise ModelError(f"no device {name!r}: there is one {device.type}", f"pass {device.type}")
    return device


def find_devices(names: Sequence[str]) -> list[torch.device]:
    """The devices that `--devices` names, in order. They must be of one kind, so that no code depends on which
    of them computed it; a CPU may be named several times, any other device once.

    Raises:
        ModelError: if one is not here, if they are of several kinds, or if one is named twice.
    """
    devices = [find_device(one) for one in names]
    if len(devices) == 1:
        return devices
    if not devices:
        raise ModelError("--devices names none", "pass some, such as --devices cuda:0,cuda:1")
    kinds = {
        torch.cuda.get_device_name(one) if one.type == "cuda" else one.type: name
        for one, name in zip(devices, names, strict=True)
    }
    if len(kinds) > 1:
        what = f"{' and '.join(kinds.values())} are devices of different kinds ({', '.join(kinds)})"
        raise ModelError(what, "pass those of one kind: others may round otherwise")
    if devices[0].type != "cpu":
        places = [one.index or 0 for one in devices]
        for i, name in enumerate(names):
            if places[i] in places[:i]:
                raise ModelError(f"--devices names {name} twice", "pass each device once")
    return devices
