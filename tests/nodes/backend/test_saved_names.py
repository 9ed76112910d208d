"""Names of saved files: what every system takes, tokens as ComfyUI's own Save nodes expand them, numbers."""

import time

import pytest

from wantune.trainer.base.errors import UserError

pytestmark = pytest.mark.usefixtures("comfy")

NOW = time.struct_time((2026, 3, 7, 5, 4, 9, 5, 66, 0))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """ComfyUI's loras folder."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


@pytest.mark.parametrize(("filename", "sentence"), [
    ("a:b?*", "has the character ':'"), ("a\nb", "has the character '\\\\n'"), ("con", "Windows keeps for a device"),
    ("NUL.safetensors", "Windows keeps for a device"), ("Aux/a", "Windows keeps for a device"),
    ("lpt1.old/a", "Windows keeps for a device"), ("a" * 300, "has a part of 300 characters"),
    ("本" * 80, "has a part of 80 characters"), ("a./b", "which Windows removes"), ("a /b", "which Windows removes"),
    ("wantune/my.", "which Windows removes"), ("a\u0007", "has the character"), ("a\ud800", "cannot be shown"),
    ("", "leads out of the loras folder"), ("..\\a", "leads out of"), ("/a", "leads out of"), ("C:\\a", "leads out of"),
    ("a/", "names no file"), ("%date:hh%:", "has the character ':'"),
])
def test_a_name_that_some_system_refuses_is_refused_before_anything_runs(root, filename, sentence):
    from wantune.nodes.backend import paths
    from wantune.nodes.lora import SaveLoRA

    with pytest.raises(UserError, match=sentence):
        paths.new_lora_files(filename, "")
    assert sentence.split("\\")[0] in SaveLoRA.validate_inputs(filename=filename)
    assert not list(root.iterdir())


@pytest.mark.parametrize("filename", ["wantune/my_lora", "我的", "v1.5", "constant", "%date:yyyy-MM-dd%/x", " a "])
def test_other_names_are_taken(root, filename):
    from wantune.nodes.backend import paths, saved_names
    from wantune.nodes.lora import SaveLoRA

    assert SaveLoRA.validate_inputs(filename=filename) is True and SaveLoRA.validate_inputs() is True
    assert paths.new_lora_files(saved_names.expand(filename, None), "")[0][0].name.endswith("_00001.safetensors")


def test_names_that_differ_only_in_case_get_different_numbers(root):
    from wantune.nodes.backend import paths

    for name, number in (("My_Lora", 1), ("my_lora", 2), ("MY_LORA.safetensors", 3)):
        ((path, _),) = paths.new_lora_files(name, "")
        assert path.stem.endswith(f"_0000{number}")
        path.touch()
    (root / "My_Lora_00001.safetensors").unlink()
    assert paths.new_lora_files("my_lora", "")[0][0].name == "my_lora_00004.safetensors", "a name is not used twice"
    assert paths.new_lora_files("sub\\a", "")[0][1].replace("\\", "/") == "sub/a_00001.safetensors"


@pytest.mark.parametrize(("name", "expected"), [
    ("%date:yyyy-MM-dd%", "2026-03-07"), ("%date:yy_M_d hhmmss%", "26_3_7 050409"), ("%date:yyy h m s%", "yyy 5 4 9"),
    ("%year%-%month%-%day%_%hour%%minute%%second%", "2026-03-07_050409"), ("%width%x%height%", "0x0"),
    ("%KSampler.seed%", "42"), ("%My loader.unet_name%", "wan_2.1_a.safetensors"), ("%KSampler.model%",) * 2,
    ("%nobody.seed%",) * 2, ("%other%",) * 2, ("50%", "50%"), ("%date:yyyy%/%KSampler.seed%", "2026/42"),
])
def test_tokens_are_expanded_as_the_page_and_comfyui_do(monkeypatch, name, expected):
    from wantune.nodes.backend import saved_names

    prompt = {"1": {"class_type": "KSampler", "inputs": {"seed": 42, "model": ["2", 0]}},
              "2": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan/2.1:a.safetensors"},
                    "_meta": {"title": "My loader"}}}
    monkeypatch.setattr(time, "localtime", lambda *_: NOW)
    assert saved_names.expand(name, prompt) == expected


def test_comfyuis_own_tokens_are_the_same(tmp_path):
    import folder_paths

    from wantune.nodes.backend import saved_names

    name = "%year%-%month%-%day%-%hour%-%minute%-%width%-%height%"
    before, theirs = saved_names.expand(name, None), folder_paths.get_save_image_path(name, str(tmp_path))[4]
    assert theirs in (before, saved_names.expand(name, None))
