"""Compare Videos inside ComfyUI: the saved mp4 is read back with PyAV and compared with what went in."""

import json
from pathlib import Path

import pytest
import torch

from wantune.tests.support.videos import moving_clip, read_back


def in_folder(tmp_path, monkeypatch):
    """The node, saving into a folder of the test; what it showed, as ComfyUI sends it."""
    import folder_paths

    from wantune.nodes.compare_videos import CompareVideos

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def run(*clips, **inputs):
        with torch.inference_mode():
            output = CompareVideos.execute(*clips, 16.0, **inputs)
        return output, json.loads(json.dumps(output.ui))

    return run


@pytest.fixture
def compare(comfy, tmp_path, monkeypatch):
    return in_folder(tmp_path, monkeypatch)


def test_node_saves_shows_and_returns_the_video(compare, tmp_path):
    base, tuned = (torch.from_numpy(moving_clip(5, 64, 64, phase)) for phase in (0.0, 1.0))
    for number in (1, 2):
        output, shown = compare(base, tuned.to(torch.bfloat16))
        saved = {"filename": f"compare_0000{number}_.mp4", "subfolder": "wantune", "type": "output"}
        assert (shown["images"], shown["animated"]) == ([saved], [True])
        assert set(shown) == {"images", "animated", "wantune_compare"}
    assert sorted(path.name for path in (tmp_path / "wantune").iterdir()) == [
        "compare",
        "compare_00001_.mp4",
        "compare_00002_.mp4",
    ]
    components = output.args[0].get_components()
    assert components.images.shape[0] == 5 and components.frame_rate == 16
    # ComfyUI reads colours as PyAV does, which before version 17 does not look at the standard that the file names
    video, _ = read_back(Path(output.args[0].get_stream_source()))
    assert abs(video[:, -256:, :256] / 255 - base.numpy().repeat(4, 1).repeat(4, 2)).mean() < 0.02


def test_node_saves_both_clips_alone_at_one_size_and_length(compare, tmp_path):
    clips = moving_clip(5, 200, 300), moving_clip(3, 100, 150, phase=1.0)
    _, shown = compare(*map(torch.from_numpy, clips))
    (data,) = shown["wantune_compare"]
    assert data["labels"] == ["base (5 frames)", "with LoRA (3 frames)"]
    assert (data["fps"], data["frames"], data["width"], data["height"]) == (16.0, 5, 300, 200)
    for side, clip in zip(("base", "tuned"), clips, strict=True):
        file = data[side]
        assert file["type"] == "output" and file["filename"] == f"compare_00001_{side}.mp4"
        video, stream = read_back(tmp_path / file["subfolder"] / file["filename"])
        assert video.shape == (5, 200, 300, 3) and stream.average_rate == 16
        for index, frame in enumerate(video / 255):
            expected = clip[min(index, len(clip) - 1)].repeat(200 // clip.shape[1], 0).repeat(300 // clip.shape[2], 1)
            assert abs(frame - expected).mean() < 0.02


def test_the_page_gets_it_back_after_it_was_closed(compare, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from wantune.nodes.compare_videos import CompareVideos
    from wantune.nodes.page import shown

    clip = torch.from_numpy(moving_clip(2, 64, 64))
    hidden = SimpleNamespace(unique_id="7", extra_pnginfo={"workflow": {"id": "a-workflow"}})
    monkeypatch.setattr(CompareVideos, "hidden", hidden)
    _, sent = compare(clip, clip)
    (data,) = sent["wantune_compare"]
    assert shown.recall("default", "a-workflow", "7") == {"compare": data}
    _, later = compare(clip, clip)
    assert shown.recall("default", "a-workflow", "7") == {"compare": later["wantune_compare"][0]} != {"compare": data}


def test_the_label_says_name_step_and_strength_of_what_is_applied(compare):
    from wantune.nodes.lora import ApplyLoRA
    from wantune.tests.support import tools
    from wantune.trainer.lora.file import LoraStateDict

    model = tools.load_dit(tools.WORLD / "dit.safetensors")
    matrices = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 256),
                "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.zeros(256, 2)}
    clip = torch.from_numpy(moving_clip(1, 64, 64))

    def label(model, **inputs) -> str:
        return compare(clip, clip, model=model, **inputs)[1]["wantune_compare"][0]["labels"][1]

    known = LoraStateDict(matrices, {"ss_output_name": "cat", "wantune.step": "800"})
    once = ApplyLoRA.execute(model, 0.75, known).result[0]
    assert label(once) == "with LoRA, cat, step 800, strength 0.75"
    assert label(once, tuned_label="tuned") == "tuned, cat, step 800, strength 0.75"
    twice = ApplyLoRA.execute(once, 1.0, matrices).result[0]
    assert label(twice.clone()) == "with LoRA, cat, step 800, strength 0.75, strength 1"
    assert label(model) == label(None) == "with LoRA"


def test_node_keeps_its_contract(comfy):
    from wantune.nodes.compare_videos import CompareVideos

    schema = CompareVideos.GET_SCHEMA()
    assert (schema.node_id, schema.display_name, schema.category) == (
        "WanTune_CompareVideos",
        "Compare Videos",
        "WanTune",
    )
    inputs = {item.id: item for item in schema.inputs}
    assert list(inputs)[:3] == ["base", "tuned", "fps"] and inputs["fps"].default == 16
    assert [output.io_type for output in schema.outputs] == ["VIDEO"]
    assert [output.display_name for output in schema.outputs] == ["video"]
    assert schema.is_output_node and all(item.tooltip for item in schema.inputs)


def test_node_names_what_is_wrong_with_an_input(comfy):
    from wantune.nodes.compare_videos import CompareVideos

    with pytest.raises(ValueError, match="'tuned' must be pictures"):
        CompareVideos.execute(torch.zeros(1, 8, 8, 3), None, 16.0)
