"""The server helper, on fake ComfyUI folders and on the real one."""

import sys
from pathlib import Path

import pytest

from wantune.demo import server as host
from wantune.demo.comfyui import ComfyUI

ROOT = Path(__file__).resolve().parents[2]


def fake(tmp_path, main):
    tree = tmp_path / "fake"
    (tree / "comfy").mkdir(parents=True)
    (tree / "main.py").write_text(main, encoding="utf-8")
    return host.Server(Path(sys.executable), ComfyUI(tree, "--comfyui"), ROOT, tmp_path / "work")


def test_server_that_dies_at_start_shows_its_last_words(tmp_path):
    dying = fake(tmp_path, "import sys; print('no such card'); sys.exit(3)")
    with pytest.raises(RuntimeError, match="exit code 3(.|\n)*no such card"):
        dying.start()
    assert dying.process is None


def test_server_ends_when_its_parent_is_gone(tmp_path, monkeypatch):
    orphan = fake(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    monkeypatch.setattr(orphan, "_wait_until_ready", lambda: None)
    orphan.start()
    orphan.process.stdin.close()
    assert orphan.process.wait(60) == 1


def test_main_py_finds_its_own_modules_first(tmp_path):
    tree = fake(tmp_path, "import server, sys; print(server.NAME, sys.argv[1:3]); sys.exit(4)")
    (tree.comfyui.path / "server.py").write_text("NAME = 'the real one'", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"the real one \['--listen', '127.0.0.1'\]"):
        tree.start()


def test_pack_that_sits_in_comfyui_is_not_loaded_twice(tmp_path):
    inside = host.Server(Path("python"), ComfyUI(ROOT.parent.parent, "custom_nodes"), ROOT, tmp_path)
    outside = host.Server(Path("python"), ComfyUI(tmp_path, "--comfyui"), ROOT, tmp_path)
    inside.root = ROOT.parent.parent / "custom_nodes" / "pack"
    assert len(inside._model_paths()["wantune"]["custom_nodes"].splitlines()) == 1
    assert str(ROOT.parent) in outside._model_paths()["wantune"]["custom_nodes"].splitlines()


def test_real_server_knows_the_pack_and_the_small_world(server):
    known = server.get("/object_info")
    assert {"WanTune_TrainWanLoRA", "WanTuneTest_LoadTextEncoder"} <= known.keys()
    assert "dit.safetensors" in known["UNETLoader"]["input"]["required"]["unet_name"][0]


def test_real_server_runs_a_graph_and_hands_out_its_files(server):
    entry = server.run(
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "one"}},
        }
    )
    assert server.fetch(entry["outputs"]["2"]["images"][0]).startswith(b"\x89PNG")


def test_real_server_refuses_and_fails_in_one_sentence(server):
    picture = {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}}
    outside = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "../../outside"}}
    with pytest.raises(host.PromptFailed, match="SaveImage failed: .*not allowed"):
        server.run({"1": picture, "2": outside})
    # ComfyUI itself would run node 2 and say nothing of the rest.
    too_wide = {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "upscale_method": "area", "width": "wide"}}
    half = {"1": picture, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}, "3": too_wide}
    with pytest.raises(host.PromptFailed, match=r"refused the graph: node 3 \(ImageScale\): .*"):
        server.run({**half, "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}})
    with pytest.raises(host.PromptFailed, match="refused the graph: .*Nothing"):
        server.run({"1": {"class_type": "Nothing", "inputs": {}}})
