"""A wheel is built from a checkout, holds just the trainer and the command line, and runs in an empty environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from wantune.demo import environment
from wantune.tests.command.conftest import place_for_runs

ROOT = Path(__file__).resolve().parents[2]

try:
    import tomllib
except ImportError:
    import tomli as tomllib

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout under a name of its own, since building leaves files behind."""
    folder = tmp_path_factory.mktemp("source") / "WanTune"
    folder.mkdir()
    for name in ("__init__.py", "__main__.py", "run.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("command", "trainer"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # --no-build-isolation: what builds is here, and nothing is downloaded
    subprocess.run([*PIP, "wheel", "--no-build-isolation", "--no-deps", source, "-w", folder], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """That of an environment with nothing in it but the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    found = environment.python_in(folder)
    site = subprocess.run([found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                          capture_output=True, text=True).stdout.strip()
    # packages of this environment stand in for those that pip would fetch
    Path(site, "present.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    subprocess.run([*PIP, "--python", found, "install", "--no-deps", "--no-index", wheel], check=True)
    return found


def run(*command, folder: Path) -> str:
    """Standard output of a command that must succeed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def script_of(python: Path) -> Path:
    return python.with_name("wantune.exe" if os.name == "nt" else "wantune")


def test_the_packages_are_all_folders_of_the_trainer():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "trainer").rglob("__init__.py")}
    assert told == sorted(told) and set(told) == {f"wantune.{each.replace('/', '.')}" for each in {"command", *folders}}


def test_the_wheel_holds_the_trainer_and_the_command_line_alone(source, wheel):
    with zipfile.ZipFile(wheel) as content:
        files = {name for name in content.namelist() if ".dist-info/" not in name}
    assert files == {f"wantune/{path.relative_to(source).as_posix()}" for path in (
        source / "__init__.py", source / "__main__.py", *(source / "command").rglob("*.py"),
        *(source / "trainer").rglob("*.py"))}


def test_an_installed_wheel_answers_and_scans(python, tmp_path):
    for command in ([script_of(python)], [python, "-m", "wantune"]):
        assert "usage: wantune" in run(*command, "--help", folder=tmp_path)
    nines = ROOT / "tests" / "world" / "nines"
    report = run(script_of(python), "scan", "--folder", nines, "--resolution", "64", folder=tmp_path)
    assert "12 of 12 files are used" in report


@pytest.mark.long
def test_an_installed_wheel_trains_in_two_commands(python, tmp_path):
    place_for_runs(tmp_path)
    run(script_of(python), "cache", "settings.toml", folder=tmp_path)
    folder = Path(run(script_of(python), "train", "settings.toml", folder=tmp_path).strip())
    assert (folder / "step_000004" / "adapter.safetensors").is_file()
