"""Compare Videos: the same prompt and seed without and with the LoRA, in one video."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..trainer.media.side_by_side import Panels, panels, side_by_side
from ..trainer.media.videos import write_mp4
from .backend import paths
from .backend.applied import applied_loras
from .page.shown import video_output


class CompareVideos(io.ComfyNode):
    """Shows two clips side by side and saves them as one mp4."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_CompareVideos",
            display_name="Compare Videos",
            category="WanTune",
            description="Puts two clips side by side in one mp4, shown here and saved in output/wantune.",
            inputs=[
                io.Image.Input("base", tooltip="The clip on the left: made without the LoRA."),
                io.Image.Input("tuned", tooltip="The clip on the right: the same with the LoRA."),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=1.0,
                    max=120.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Frames per second of the video. Wan2.1 makes 16.",
                ),
                io.String.Input(
                    "base_label", default="base", optional=True, tooltip="Written above the left clip."
                ),
                io.String.Input(
                    "tuned_label", default="with LoRA", optional=True, tooltip="Written above the right clip."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model of Apply LoRA that made the right clip: its LoRA's name, step and strength "
                    "are then written above the clip.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The side-by-side video, as saved.")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, base, tuned, fps, base_label="base", tuned_label="with LoRA", model=None) -> io.NodeOutput:
        # numpy reads neither GPU memory nor bfloat16; for fp32 on the CPU these calls copy nothing.
        clips = [clip.float().cpu() if hasattr(clip, "cpu") else clip for clip in (base, tuned)]
        labels = (base_label, ", ".join([tuned_label, *applied_loras(model)]))
        video, both = paths.new_video_file("compare"), panels(*clips)
        write_mp4(video, side_by_side(*clips, labels), fps)
        height, width = both.size
        data = {"base": _write_alone(video, both, 0, fps), "tuned": _write_alone(video, both, 1, fps),
                "labels": list(both.labels(labels)), "fps": fps, "frames": both.frames, "width": width,
                "height": height}
        return video_output(cls.hidden, video, data)


def _write_alone(video: Path, both: Panels, side: int, fps: float) -> dict[str, str]:
    """Write one clip (0 base, 1 tuned) without its label, for the page's player, which lays one over the other.

    It goes into a folder `compare` of its own, so that the gallery does not show it.

    Returns:
        The file as ComfyUI's SavedResult.
    """
    path = video.parent / "compare" / f"{video.stem}{('base', 'tuned')[side]}.mp4"
    write_mp4(path, both.of(side), fps)
    return paths.saved_result(path)
