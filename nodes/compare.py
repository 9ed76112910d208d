"""Compare Videos: the same prompt and seed without and with the LoRA, in one video."""

from pathlib import Path

import folder_paths
from comfy_api.latest import InputImpl, io, ui

from .lora import applied_loras
from .media.side_by_side import panels, side_by_side, write_mp4
from .page import shown

DATA = "wantune_compare"
"""What the page's player shows (web/compare/video_player.js), among what the node shows."""


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
        # numpy reads neither GPU memory nor bfloat16; where there is neither, these copy nothing.
        clips = [clip.float().cpu() if hasattr(clip, "cpu") else clip for clip in (base, tuned)]
        labels = (base_label, ", ".join([tuned_label, *applied_loras(model)]))
        path, saved = new_video("compare")
        write_mp4(path, side_by_side(*clips, labels), fps)
        data = {"base": _write_alone(path, clips, 0, fps), "tuned": _write_alone(path, clips, 1, fps),
                **_described(clips, labels, fps)}
        return shown_video(cls.hidden, path, saved, data)


def new_video(name: str) -> tuple[Path, ui.SavedResult]:
    """A file that is not there yet in output/wantune, and how the page asks for it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        f"wantune/{name}", folder_paths.get_output_directory()
    )
    saved = ui.SavedResult(f"{name}_{counter:05}_.mp4", subfolder, io.FolderType.output)
    return Path(folder) / saved.filename, saved


def shown_video(hidden, path: Path, saved: ui.SavedResult, data: dict, *outputs) -> io.NodeOutput:
    """The video as output and in ComfyUI's own player, and what ours shows instead where there is a page."""
    shown.remember(hidden, "compare", data)
    return io.NodeOutput(InputImpl.VideoFromFile(str(path)), *outputs,
                         ui={**ui.PreviewVideo([saved]).as_dict(), DATA: [data]})


def _write_alone(video: Path, clips: list, side: int, fps: float) -> dict:
    """One clip without its label, for a player that lays one over the other; beside the runs, out of the gallery."""
    path = video.parent / "compare" / f"{video.stem}{('base', 'tuned')[side]}.mp4"
    write_mp4(path, panels(*clips).of(side), fps)
    return {"filename": path.name, "subfolder": "wantune/compare", "type": "output"}


def _described(clips: list, labels: tuple[str, str], fps: float) -> dict:
    both = panels(*clips)
    height, width = both.size
    return {"labels": list(both.labels(labels)), "fps": fps, "frames": both.frames, "width": width, "height": height}
