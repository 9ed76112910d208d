"""What the tests of the page need beside Python: Chromium, playwright-core, and the newest front end from PyPI.

`run.py browser` installs it. Without it those tests are skipped, unless the variable WANTUNE_BROWSER is "required".
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = ".browser"
PLAYWRIGHT = "1.65.1"
"""The version of playwright-core, which brings no browser of its own but drives an installed one."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DEBIAN = ("chromium", "fonts-wqy-microhei")
"""Packages to install: the browser, and a small font that has the Chinese characters of our page."""

FRONT_END = "comfyui-frontend-package"


class Missing(Exception):
    """The tests of the page cannot run here; the message says why, and what to do."""


@dataclass(frozen=True)
class Browser:
    """Everything a browser test is started with."""

    node: str
    chromium: str
    playwright: Path
    """The folder of the module playwright-core."""

    def run(self, script: Path, seconds: float, **given) -> subprocess.CompletedProcess:
        """Run a script of tests/web/browser, which gets `given` as JSON in its one argument.

        Returns:
            The ended process, with all that it printed in `stdout`.

        Raises:
            subprocess.TimeoutExpired: it ran longer than so many seconds.
        """
        found = {"WANTUNE_CHROMIUM": self.chromium, "WANTUNE_PLAYWRIGHT": str(self.playwright)}
        command = [self.node, str(script), json.dumps(given)]
        return subprocess.run(command, env={**os.environ, **found}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, encoding="utf-8", errors="replace", timeout=seconds)


@dataclass(frozen=True)
class FrontEnd:
    """A comfyui-frontend-package that is not the one ComfyUI came with."""

    version: str
    static: Path


def find(root: Path, environ) -> Browser:
    """The browser and what drives it. Raises Missing."""
    node = shutil.which("node", path=environ.get("PATH"))
    if node is None:
        raise Missing("There is no node in PATH; install Node 20 or newer.")
    playwright = root / FOLDER / "node_modules" / "playwright-core"
    if not (playwright / "package.json").is_file():
        raise Missing("playwright-core is not installed; run: python3 run.py browser")
    return Browser(node, find_chromium(environ), playwright)


def find_chromium(environ) -> str:
    """The browser that WANTUNE_CHROMIUM names, or one of the usual names in PATH. Raises Missing."""
    given = environ.get("WANTUNE_CHROMIUM")
    if given:
        if not Path(given).is_file():
            raise Missing(f"WANTUNE_CHROMIUM names {given}, which is no file; name a Chromium or Chrome.")
        return given
    found = next(filter(None, (shutil.which(name, path=environ.get("PATH")) for name in NAMES)), None)
    if found is None:
        raise Missing("There is no Chromium or Chrome in PATH; install one, or name it by WANTUNE_CHROMIUM.")
    return found


def newest_front_end(root: Path) -> FrontEnd:
    """The front end that `install` has fetched. Raises Missing."""
    for metadata in (root / FOLDER / "front_end").glob("comfyui_frontend_package-*.dist-info"):
        version = metadata.name.removesuffix(".dist-info").rpartition("-")[2]
        return FrontEnd(version, metadata.parent / "comfyui_frontend_package" / "static")
    raise Missing("The newest front end is not there; run: python3 run.py browser")


def install(root: Path, python: Path) -> None:
    """Install what is missing; Chromium only on Debian and as root.

    Args:
        python: one that has pip.

    Raises:
        RuntimeError: something is missing that must be installed by hand; says what.
    """
    (root / FOLDER).mkdir(exist_ok=True)
    try:
        find_chromium(os.environ)
    except Missing as missing:
        if not _is_debian_root():
            raise RuntimeError(str(missing)) from None
        _install_chromium()
    _install_playwright(root / FOLDER)
    _fetch_front_end(root / FOLDER, python)
    print(f"Chromium {_version_of(find_chromium(os.environ))}, playwright-core {PLAYWRIGHT}, "
          f"newest front end {newest_front_end(root).version}", flush=True)


def _is_debian_root() -> bool:
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def _install_chromium() -> None:
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *DEBIAN]):
        subprocess.run(["apt-get", "-o", "Acquire::Retries=3", *arguments], check=True, env=settings)


def _install_playwright(folder: Path) -> None:
    package = folder / "node_modules" / "playwright-core" / "package.json"
    if package.is_file() and json.loads(package.read_text(encoding="utf-8"))["version"] == PLAYWRIGHT:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("There is no npm in PATH; install Node 20 or newer with its npm.")
    # A package.json of its own: npm would otherwise look for one in the folders above, even outside this repository.
    (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    subprocess.run([npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund",
                    f"playwright-core@{PLAYWRIGHT}"], check=True)


def _fetch_front_end(folder: Path, python: Path) -> None:
    """Fetch the newest front end; where PyPI does not answer, keep the one that was fetched before."""
    fresh, kept = folder / "front_end.new", folder / "front_end"
    shutil.rmtree(fresh, ignore_errors=True)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps",
               "--target", str(fresh), FRONT_END]
    if subprocess.run(command).returncode:
        if not kept.is_dir():
            raise RuntimeError(f"{FRONT_END} cannot be fetched; try again when PyPI answers.")
        print(f"{FRONT_END} cannot be fetched now; the one of the last time is tested.", flush=True)
        return
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)


def _version_of(chromium: str) -> str:
    shown = subprocess.run([chromium, "--version"], capture_output=True, text=True).stdout.split()
    return next((word for word in shown if word[:1].isdigit()), "of unknown version")
