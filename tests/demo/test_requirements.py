"""The lowest versions that requirements.txt allows really work, and so do the newest: an environment of each trains.

torch is not pinned and stays as it is here; all others are put before those of this environment.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from wantune.demo import environment, packages

ROOT = Path(__file__).resolve().parents[2]

PASSING = ["tests/nodes/test_train.py", "tests/nodes/test_previews.py", "tests/nodes/test_clip_training.py",
           "tests/nodes/test_compare_videos.py", "tests/nodes/test_compare_checkpoints.py", "tests/nodes/media",
           "tests/trainer/media", "tests/trainer/wan_diffusers",
           "tests/trainer/training/test_optim.py", "tests/trainer/training/test_resume.py", "tests/trainer/encoded",
           "tests/trainer/data", "tests/trainer/base"]


def ours() -> list[str]:
    return packages.without_torch(packages.read(ROOT / "requirements.txt"))


def test_every_requirement_has_a_lowest_version():
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+(; .+)?", line) for line in ours())


@pytest.mark.long
@pytest.mark.parametrize("choice", ["lowest", "newest"])
def test_it_trains_with_the_lowest_and_the_newest_versions(comfy, tmp_path, choice):
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    python = environment.python_in(folder)
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                         capture_output=True, text=True).stdout.strip()
    Path(own, "inherited.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    wanted = [line.replace(">=", "==") for line in ours()] if choice == "lowest" else ["--upgrade", *ours()]
    subprocess.run([python, "-m", "pip", "install", "--constraint", constraints, *wanted], check=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PASSING]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "COMFYUI_PATH": str(comfy.path)}, capture_output=True,
                          text=True)
    print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr)
    assert done.returncode == 0
