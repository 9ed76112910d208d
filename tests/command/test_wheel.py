"""A wheel is built from a checkout, holds just the trainer and the command line, and runs in an empty environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from wantune.demo import environment

ROOT = Path(__file__).resolve().parents[2]

try:
    import tomllib
except ImportError:
    import tomli as tomllib


def test_the_packages_are_all_folders_of_the_trainer():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "trainer").rglob("__init__.py")}
    assert told == sorted(told) and set(told) == {f"wantune.{each.replace('/', '.')}" for each in {"command", *folders}}


def test_an_installed_wheel_answers_and_scans(tmp_path):
    source = tmp_path / "WanTune"  # a copy, since building leaves files behind
    source.mkdir()
    for name in ("__init__.py", "__main__.py", "run.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("command", "trainer"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    # --no-build-isolation: what builds is here, and nothing is downloaded
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", source, "-w", tmp_path], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        files = {name for name in content.namelist() if ".dist-info/" not in name}
    assert files == {f"wantune/{path.relative_to(source).as_posix()}" for path in (
        source / "__init__.py", source / "__main__.py", *(source / "command").rglob("*.py"),
        *(source / "trainer").rglob("*.py"))}

    venv.create(tmp_path / "environment")
    python = environment.python_in(tmp_path / "environment")
    found = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                           capture_output=True, text=True).stdout.strip()
    # packages of this environment stand in for those that pip would fetch
    Path(found, "present.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)

    pictures = tmp_path / "pictures"
    shutil.copytree(ROOT / "tests" / "world" / "nines", pictures)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    script = python.with_name("wantune.exe" if os.name == "nt" else "wantune")
    for command in ([script], [python, "-m", "wantune"]):
        answer = subprocess.run([*command, "--help"], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert answer.returncode == 0 and "usage: wantune" in answer.stdout, answer.stderr
    report = subprocess.run([script, "scan", "--folder", pictures, "--resolution", "64"], cwd=tmp_path, env=clean,
                            capture_output=True, text=True)
    assert report.returncode == 0 and "12 of 12 files are used" in report.stdout, report.stderr
