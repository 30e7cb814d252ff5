"""Which machine and which versions a timing is true of."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def fingerprint(place: torch.device | None = None) -> dict[str, str]:
    """Name -> text of everything here that a latency depends on: processor, accelerator, threads, versions.

    ``place``: where it was timed; on the CPU the GPU beside it has no part in it.
    """
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available() and (place is None or place.type == "cuda"):
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts | versions("torch", "timm", "onnxruntime", "openvino", "nas_prune")


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {package: _version(package) for package in packages}
    return {package: known for package, known in found.items() if known is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Model name of the CPU, where the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
