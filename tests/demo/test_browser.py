"""Finding a browser for the tests of the page, and what is installed where there is none."""

import json
import os
import shutil
from pathlib import Path

import pytest

from wantune.demo import browser

ROOT = Path(__file__).resolve().parents[2]


def program(folder: Path, name: str, text: str = "exit 0") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def give_playwright(root: Path, version: str = browser.PLAYWRIGHT) -> None:
    folder = root / browser.FOLDER / "node_modules" / "playwright-core"
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": version}), encoding="utf-8")


def give_front_end(root: Path, version: str) -> None:
    folder = root / browser.FOLDER / "front_end"
    (folder / f"comfyui_frontend_package-{version}.dist-info").mkdir(parents=True)


needs_sh = pytest.mark.skipif(os.name == "nt", reason="its stand-ins for programs are shell scripts")


@needs_sh
@pytest.mark.parametrize("name", browser.NAMES)
def test_each_usual_name_of_the_browser_is_found(tmp_path, name):
    path = program(tmp_path, name)
    assert browser.find_chromium({"PATH": str(tmp_path)}) == path


@needs_sh
def test_the_variable_wins_and_is_believed_only_if_it_names_a_file(tmp_path):
    program(tmp_path, "chromium")
    mine = program(tmp_path / "mine", "brave")
    assert browser.find_chromium({"PATH": str(tmp_path), "WANTUNE_CHROMIUM": mine}) == mine
    with pytest.raises(browser.Missing, match="WANTUNE_CHROMIUM names nowhere, which is no file"):
        browser.find_chromium({"PATH": str(tmp_path), "WANTUNE_CHROMIUM": "nowhere"})


@needs_sh
def test_what_is_missing_is_named_one_after_the_other(tmp_path):
    programs, root = tmp_path / "bin", tmp_path / "pack"
    environ = {"PATH": str(programs)}
    with pytest.raises(browser.Missing, match="no node"):
        browser.find(root, environ)
    node = program(programs, "node")
    with pytest.raises(browser.Missing, match=r"run: python3 run\.py browser"):
        browser.find(root, environ)
    give_playwright(root)
    with pytest.raises(browser.Missing, match="no Chromium"):
        browser.find(root, environ)
    chromium = program(programs, "chromium")
    assert browser.find(root, environ) == browser.Browser(
        node, chromium, root / browser.FOLDER / "node_modules" / "playwright-core")


def test_the_newest_front_end_tells_its_version(tmp_path):
    with pytest.raises(browser.Missing, match="run.py browser"):
        browser.newest_front_end(tmp_path)
    give_front_end(tmp_path, "1.58.1")
    found = browser.newest_front_end(tmp_path)
    assert found.version == "1.58.1" and found.static.parts[-2:] == ("comfyui_frontend_package", "static")


@needs_sh
def test_a_script_gets_the_browser_and_what_is_given(tmp_path):
    script = tmp_path / "script.mjs"
    node = program(tmp_path, "node", 'echo "$1 $2 $WANTUNE_CHROMIUM $WANTUNE_PLAYWRIGHT"; echo wrong >&2; exit 3')
    done = browser.Browser(node, "/a/chromium", Path("/a/playwright")).run(script, 60, url="x", vue=True)
    assert done.returncode == 3
    assert done.stdout.splitlines() == [f'{script} {{"url": "x", "vue": true}} /a/chromium /a/playwright', "wrong"]


class Machine:
    """Stands for Debian: apt-get, npm and pip that only write down how they were called."""

    def __init__(self, tmp_path, monkeypatch):
        self.root, self.bin, self.calls = tmp_path / "pack", tmp_path / "bin", tmp_path / "calls"
        self.root.mkdir()
        self.calls.touch()
        for name in ("apt-get", "npm", "python"):
            program(self.bin, name, f'echo "{name} $@" >> {self.calls}')
        monkeypatch.setenv("PATH", f"{self.bin}:{Path(shutil.which('sh')).parent}")
        monkeypatch.delenv("WANTUNE_CHROMIUM", raising=False)
        monkeypatch.setattr(browser, "NAMES", ("stand-in-chromium",))
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    def replies(self, name: str, text: str) -> None:
        program(self.bin, name, f'echo "{name} $@" >> {self.calls}\n{text}')

    def install(self) -> list[str]:
        browser.install(self.root, self.bin / "python")
        return self.calls.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


PIP_WORKS = ('while [ "$1" != --target ]; do shift; done; '
             'mkdir -p "$2/comfyui_frontend_package-1.99.0.dist-info"')


@needs_sh
def test_a_bare_debian_gets_all_three(machine):
    chromium = machine.bin / "stand-in-chromium"
    machine.replies("apt-get", f'printf "#!/bin/sh\\necho Chromium 156.0\\n" > {chromium}; chmod +x {chromium}')
    machine.replies("python", PIP_WORKS)
    calls = machine.install()
    assert [call.split()[0] for call in calls] == ["apt-get", "apt-get", "npm", "python"]
    assert calls[0].endswith(" update") and calls[1].endswith(" ".join(browser.DEBIAN))
    assert calls[2].endswith(f"playwright-core@{browser.PLAYWRIGHT}")
    assert calls[3].endswith(browser.FRONT_END), "without a version: the newest"
    assert browser.newest_front_end(machine.root).version == "1.99.0"


@needs_sh
def test_what_is_there_is_not_installed_again_but_the_front_end_is_asked_for_anew(machine):
    program(machine.bin, "stand-in-chromium")
    give_playwright(machine.root)
    give_front_end(machine.root, "1.58.1")
    machine.replies("python", PIP_WORKS)
    assert [call.split()[0] for call in machine.install()] == ["python"]
    assert browser.newest_front_end(machine.root).version == "1.99.0"


@needs_sh
def test_another_playwright_is_replaced(machine):
    program(machine.bin, "stand-in-chromium")
    give_playwright(machine.root, "1.0.0")
    machine.replies("python", PIP_WORKS)
    assert [call.split()[0] for call in machine.install()] == ["npm", "python"]


@needs_sh
def test_without_pypi_the_front_end_of_the_last_time_stays_and_the_first_time_fails(machine, capsys):
    program(machine.bin, "stand-in-chromium")
    give_playwright(machine.root)
    machine.replies("python", "exit 1")
    with pytest.raises(RuntimeError, match="try again when PyPI answers"):
        machine.install()
    give_front_end(machine.root, "1.58.1")
    machine.install()
    assert "newest front end 1.58.1" in capsys.readouterr().out


@needs_sh
def test_nothing_is_installed_for_a_user_who_is_not_root(machine, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="no Chromium or Chrome in PATH; install one"):
        machine.install()
    assert machine.calls.read_text(encoding="utf-8") == ""


def test_what_it_installs_is_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {f"{browser.FOLDER}/", "test_artifacts/"} <= set(ignored)


def test_ci_installs_first_and_skips_nothing():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    order = [script.index(text) for text in ("run.py browser", "export WANTUNE_BROWSER=required", "run.py test")]
    assert order == sorted(order)
