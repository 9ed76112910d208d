"""Compare Videos: the mp4 is read back with PyAV and compared with what went in."""

import json
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from wantune.nodes.media.side_by_side import side_by_side, write_mp4

LABELS = ("base", "with LoRA")


def moving_clip(frames: int, height: int, width: int, phase: float = 0.0) -> np.ndarray:
    """A smooth clip in 0..1: what a codec keeps well, and different for every phase and frame."""
    time, y, x = np.ogrid[0:frames, 0:height, 0:width]
    waves = [0.5 + 0.4 * np.sin(phase + 0.3 * time + k * x / width * 5 + y / height * 4) for k in (1, 2, 3)]
    return np.stack(waves, axis=-1).astype(np.float32)


def read_back(path) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream


def picture_part(video: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right picture, without the strip of labels above them."""
    below = video[:, video.shape[1] - height :]
    half = video.shape[2] // 2
    return below[:, :, :half] / 255, below[:, :, half:] / 255


def write(path, base, tuned, fps=16.0, labels=LABELS) -> np.ndarray:
    write_mp4(path, side_by_side(base, tuned, labels), fps)
    return read_back(path)[0]


def test_left_half_is_base_and_right_half_is_tuned(tmp_path):
    base, tuned = moving_clip(9, 160, 288), moving_clip(9, 160, 288, phase=2.0)
    video = write(tmp_path / "a.mp4", base, tuned)
    left, right = picture_part(video, 160)
    assert video.shape[0] == 9 and video.shape[2] == 2 * 288
    assert abs(left - base).mean() < 0.01 and abs(right - tuned).mean() < 0.01
    assert abs(left - tuned).mean() > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_colours_survive(tmp_path):
    """Each corner of the colour cube: a wrong matrix or range would move them."""
    for colour in np.ndindex(2, 2, 2):
        clip = np.broadcast_to(np.float32(colour), (2, 64, 64, 3))
        halves = picture_part(write(tmp_path / "a.mp4", clip, clip), 64 * 4)
        # Away from the strip, whose edge the codec softens by a few pixels.
        assert all(abs(half[:, 16:] - np.float32(colour)).max() < 0.02 for half in halves)


@pytest.mark.parametrize("fps", [16, 23.976, 24000 / 1001, 1.0])
def test_file_is_a_streamable_h264_mp4_of_the_given_rate(tmp_path, fps):
    clip = moving_clip(3, 64, 64)
    path = tmp_path / "a.mp4"
    write_mp4(path, side_by_side(clip, clip, LABELS), fps)
    _, stream = read_back(path)
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert abs(stream.average_rate - Fraction(fps)) < Fraction(1, 1000)
    assert stream.width % 2 == 0 and stream.height % 2 == 0
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("width", [64, 300, 832])
def test_both_labels_are_written(width):
    clip = moving_clip(1, 96, width)
    frame = next(iter(side_by_side(clip, clip, LABELS)))
    factor = -(-256 // width)
    strip = frame[: frame.shape[0] - 96 * factor]
    left, right = np.split(strip, 2, axis=1)
    assert left.std() > 5 and right.std() > 5 and not np.array_equal(left, right)
    assert strip.shape[0] >= 32
    blank = next(iter(side_by_side(clip, clip, ("", " \n "))))[: strip.shape[0]]
    assert blank.std() == 0


def test_a_label_too_long_is_shortened_and_keeps_the_frame_size():
    clip = moving_clip(1, 64, 64)
    long = next(iter(side_by_side(clip, clip, ("word " * 200, "x" * 999))))
    short = next(iter(side_by_side(clip, clip, LABELS)))
    assert long.shape == short.shape
    assert long[:, :4].std(axis=(0, 1)).shape == (3,) and long[:16, :2].std() == 0


def test_tiny_pictures_are_enlarged_pixel_by_pixel():
    base, tuned = moving_clip(1, 64, 64), moving_clip(1, 64, 64, phase=1.0)
    frame = next(iter(side_by_side(base, tuned, LABELS)))
    expected = np.rint(base[0] * 255).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(frame[-256:, :256], expected)


def test_odd_sizes_get_a_black_border_and_lose_nothing(tmp_path):
    base = moving_clip(2, 301, 257)
    frame = next(iter(side_by_side(base, base, LABELS)))
    assert frame.shape[0] % 2 == 0 and frame.shape[1] == 2 * 258
    picture = np.rint(base[0] * 255).astype(np.uint8)
    assert np.array_equal(frame[-302:-1, :257], picture) and np.array_equal(frame[-302:-1, 258:-1], picture)
    assert not frame[-1].any() and not frame[-302:, -1].any()
    assert len(write(tmp_path / "a.mp4", base, base)) == 2


def test_a_smaller_clip_is_fitted_uncropped_on_black():
    base, tuned = np.ones((1, 200, 400, 3)), np.ones((1, 100, 100, 3)) * 0.5
    frame = next(iter(side_by_side(base, tuned, LABELS)))
    right = frame[-200:, 400:]
    assert (frame[-200:, :400] == 255).all()
    assert (right[:, 100:300] == 128).all() and not right[:, :100].any() and not right[:, 300:].any()


def test_a_shorter_clip_holds_its_last_frame_and_its_label_says_how_long_it_is():
    base, tuned = moving_clip(5, 64, 256), moving_clip(2, 64, 256, phase=1.0)
    frames = list(side_by_side(base, tuned, LABELS))
    assert len(frames) == 5
    rights = [frame[-64:, 256:] for frame in frames]
    assert np.array_equal(rights[1], rights[4]) and not np.array_equal(rights[0], rights[1])
    said = next(iter(side_by_side(base, tuned, ("base (5 frames)", "with LoRA (2 frames)"))))
    equal_length = next(iter(side_by_side(base, base, ("base (5 frames)", "with LoRA (2 frames)"))))
    assert np.array_equal(frames[0][:-64], equal_length[:-64]) and not np.array_equal(said, frames[0])


@pytest.mark.parametrize(("fps", "shown"), [(16.0, 16), (23.976, 24), (1.0, 1)])
def test_single_pictures_are_shown_for_a_second(tmp_path, fps, shown):
    base, tuned = moving_clip(1, 64, 256), moving_clip(1, 64, 256, phase=1.0)
    video = write(tmp_path / "a.mp4", base, tuned, fps)
    assert len(video) == shown
    assert abs(picture_part(video, 64)[1][-1] - tuned[0]).mean() < 0.02


def test_alpha_is_dropped_and_values_outside_0_to_1_are_clipped():
    base = moving_clip(1, 64, 256)
    with_alpha = np.concatenate([base, np.zeros_like(base[..., :1])], axis=-1)
    assert np.array_equal(*[next(side_by_side(clip, base, LABELS)) for clip in (base, with_alpha)])
    wild = next(side_by_side(base * 9 - 4, base, LABELS))[-64:, :256]
    assert np.array_equal(wild, np.rint(np.clip(base[0] * 9 - 4, 0, 1) * 255).astype(np.uint8))


def test_tensors_and_bytes_give_the_same_frames_as_floats():
    base = np.round(moving_clip(1, 64, 256) * 255) / 255
    expected = next(side_by_side(base, base, LABELS))
    with torch.inference_mode():
        tensor = torch.from_numpy(base)
        assert np.array_equal(expected, next(side_by_side(tensor, tensor, LABELS)))
    pixels = np.rint(base * 255).astype(np.uint8)
    assert np.array_equal(expected, next(side_by_side(pixels, pixels, LABELS)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "'tuned' must be pictures .* but is a NoneType"),
        (np.zeros((2, 8, 8, 1)), r"\(2, 8, 8, 1\)"),
        (np.zeros((8, 8, 3)), r"\(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3)), r"\(0, 8, 8, 3\)"),
        ({"samples": 1}, "a dict"),
    ],
)
def test_what_is_not_an_image_is_refused_before_any_work(wrong, said):
    with pytest.raises(ValueError, match=said):
        side_by_side(np.zeros((2, 8, 8, 3)), wrong, LABELS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_clip_and_frame_and_leaves_no_file(tmp_path, value):
    base, tuned = moving_clip(3, 64, 64), moving_clip(3, 64, 64)
    tuned[1, 5, 5, 0] = value
    with pytest.raises(ValueError, match="frame 2 of 'tuned'"):
        write_mp4(tmp_path / "a.mp4", side_by_side(base, tuned, LABELS), 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf")])
def test_wrong_rate_is_refused(tmp_path, fps):
    with pytest.raises(ValueError, match="fps is"):
        write_mp4(tmp_path / "a.mp4", iter(()), fps)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    clip = moving_clip(2, 64, 64)
    write(path, clip, clip)
    before = path.read_bytes()

    def interrupted():
        # The encoder holds some 50 frames back before it writes the first.
        for _ in range(100):
            yield from side_by_side(clip, clip, LABELS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(path, interrupted(), 16)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_frames_are_made_one_at_a_time():
    """200 frames of 256x256 side by side are 82 MB; one is 0.4 MB."""
    picture = moving_clip(1, 256, 256)
    clip = np.broadcast_to(picture, (200, 256, 256, 3))
    tracemalloc.start()
    assert sum(1 for _ in side_by_side(clip, clip, LABELS)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


# The node, inside ComfyUI.


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
    left = components.images[:, -256:, :256].numpy()
    assert abs(left - base.numpy().repeat(4, 1).repeat(4, 2)).mean() < 0.02


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
