"""Requirement files: what we install into our own environment, and what the user's environment lacks."""

import json
import re
import subprocess
from pathlib import Path

TORCH = "2.13.0"
FAMILY = ("torch", "torchvision", "torchaudio")
"""These three must match each other, so they are never left to a requirement file."""

# Runs inside the user's environment, which may have the package `packaging` itself, or only pip's copy of it.
_LACKING = """
import importlib.metadata, json, re, sys
try:
    from packaging.requirements import Requirement
except ImportError:
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        Requirement = None
lacking = []
for line, install in json.loads(sys.argv[1]):
    parsed = Requirement(line) if Requirement else None
    if parsed and parsed.marker and not parsed.marker.evaluate():
        continue
    try:
        version = importlib.metadata.version(re.match(r"[A-Za-z0-9_.-]+", line).group())
    except importlib.metadata.PackageNotFoundError:
        lacking.append(install)
        continue
    if parsed and not parsed.specifier.contains(version, prereleases=True):
        lacking.append(install)
print(json.dumps(lacking))
"""


def read(path: Path) -> list[str]:
    """The requirement lines of a file, without comments and options."""
    lines = [line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def essential(path: Path) -> list[str]:
    """The lines of ComfyUI's file above its own heading "non essential dependencies"."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((index for index, line in enumerate(lines) if "non essential" in line.lower()), len(lines))
    return [line.strip() for line in lines[:end] if line.strip() and not line.strip().startswith(("#", "-"))]


def name(requirement: str) -> str:
    """The normalised package name of a requirement line."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9_.-]+", requirement).group()).lower()


def without_torch(requirements: list[str]) -> list[str]:
    """The lines that do not name torch, torchvision or torchaudio."""
    return [line for line in requirements if name(line) not in FAMILY]


def to_install(root: Path, comfyui: Path, purpose: str) -> list[str]:
    """Everything but the torch family that an environment of ours needs for "demo" or "test"."""
    lines = read(comfyui / "requirements.txt") + read(root / "requirements.txt")
    if purpose == "test":
        lines += read(root / "tests" / "requirements.txt")
    return without_torch(lines)


def torchvision_for(torch: str) -> str:
    """The torchvision made for a torch version: 2.13.0 -> 0.28.0.

    Raises:
        ValueError: no version of torch 2.
    """
    major, minor, patch = _numbers(torch)
    if major != 2:
        raise ValueError(f"No torchvision is known for torch {torch}; install torch {TORCH}.")
    return f"0.{minor + 15}.{patch}"


def torchaudio_for(torch: str) -> str:
    """The torchaudio made for a torch version; 2.11.0 is the last and serves every later torch."""
    numbers = min(_numbers(torch), (2, 11, 0))
    return ".".join(str(number) for number in numbers)


def lacking(python: Path, root: Path, comfyui, purpose: str) -> list[str]:
    """What the user's own environment lacks, as requirement lines; nothing is installed.

    Raises:
        ValueError: that Python does not run.
    """
    # ComfyUI runs with other versions than its file pins, so for its packages the name is enough.
    wanted = {name(line): (name(line), line) for line in essential(comfyui.path / "requirements.txt")}
    if not comfyui.needs_torchaudio:
        wanted.pop("torchaudio", None)
    ours = read(root / "requirements.txt")
    if purpose == "test":
        ours += read(root / "tests" / "requirements.txt")
    wanted |= {name(line): (line, line) for line in ours}
    command = [str(python), "-c", _LACKING, json.dumps(list(wanted.values()))]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"{python} does not run ({reason}); name a working one with --python.")
    return json.loads(result.stdout)


def _numbers(version: str) -> tuple[int, int, int]:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if not found:
        raise ValueError(f"{version} is no torch version; install torch {TORCH}.")
    return int(found[1]), int(found[2]), int(found[3] or 0)
