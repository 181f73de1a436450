"""`task env`: what a bug report needs. Works with any package missing, torch included."""

from __future__ import annotations

import os
import platform
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from importlib import metadata

from taskloom import __version__

_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
# Torch's own way to choose and order devices; `devices=` counts what they leave.
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "PYTORCH_ENABLE_MPS_FALLBACK")
_NAME = re.compile(r"^[A-Za-z0-9._-]+")


def run(args: Sequence[str]) -> None:
    """Print the report."""
    ArgumentParser(prog="task env", description="Report versions, devices and optional packages.").parse_args(
        list(args)
    )
    sections = (
        ("versions", list(_versions())),
        ("devices", list(_devices())),
        ("packages", list(_packages(optional=False))),
        ("optional packages", list(_packages(optional=True))),
    )
    for title, rows in sections:
        print(f"{title}:")
        width = max((len(name) for name, _ in rows), default=0)
        for name, text in rows:
            print(f"  {name:<{width}}  {text}")


def _versions() -> Iterator[tuple[str, str]]:
    yield "taskloom", __version__
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    yield "platform", platform.platform()
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported: {error}. Install: pip install torch"
        return
    yield "torch", torch.__version__
    yield "CUDA of torch", torch.version.cuda or "built without"
    if torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        yield "cuDNN", str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]


def _devices() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except ImportError:
        yield "unknown", "torch is not installed"
        return
    yield "cpu", f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield (
                f"cuda:{number}",
                (
                    f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
                    f"compute capability {properties.major}.{properties.minor}"
                ),
            )
    else:
        yield "cuda", "not available"
    yield "mps", "available" if torch.backends.mps.is_available() else "not available"
    for name in _DEVICE_VARIABLES:
        yield name, os.environ.get(name, "not set")


def _packages(*, optional: bool) -> Iterator[tuple[str, str]]:
    """Yield what taskloom's own metadata requires, so that this list never differs from what an installation needs."""
    try:
        required = metadata.requires("taskloom") or []
    except metadata.PackageNotFoundError:
        yield "unknown", "taskloom runs from its source, without an installation. Install: pip install -e ."
        return
    extras: dict[str, list[str]] = {}
    for requirement in required:
        package, extra = _NAME.match(requirement), _EXTRA.search(requirement)
        if package is not None and (extra is not None) == optional:
            extras.setdefault(package[0], []).append(extra[1] if extra else "")
    for name, wanted_by in extras.items():
        install = f"pip install 'taskloom[{wanted_by[0]}]'" if optional else f"pip install {name}"
        yield name, _installed(name) or f"not installed. Install: {install}"


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
