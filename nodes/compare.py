"""Compare Videos: the same prompt and seed without and with the LoRA, in one video."""

from pathlib import Path

import folder_paths
from comfy_api.latest import InputImpl, io, ui

from .side_by_side import side_by_side, write_mp4


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
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The side-by-side video, as saved.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, base, tuned, fps, base_label="base", tuned_label="with LoRA") -> io.NodeOutput:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            "wantune/compare", folder_paths.get_output_directory()
        )
        file_name = f"{name}_{counter:05}_.mp4"
        # numpy reads neither GPU memory nor bfloat16; where there is neither, these copy nothing.
        clips = [clip.float().cpu() if hasattr(clip, "cpu") else clip for clip in (base, tuned)]
        path = Path(folder) / file_name
        write_mp4(path, side_by_side(*clips, (base_label, tuned_label)), fps)
        shown = ui.PreviewVideo([ui.SavedResult(file_name, subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=shown)
