"""The ComfyUI nodes. The files of this folder define them, one file for each group of related nodes.

`backend/` adapts ComfyUI's objects to the trainer, `media/` samples and draws videos, `page/` serves the browser page.
Nothing outside nodes/ imports ComfyUI but demo/, bench/ and the tests: training itself is in trainer/.
"""

from comfy_api.latest import ComfyExtension, io

from .cache import CacheLatents, PruneCache
from .compare_checkpoints import CompareCheckpoints
from .compare_videos import CompareVideos
from .dataset import DatasetSettings, JoinDatasets, LoadDataset
from .export_job import ExportTrainingJob
from .load_run import LoadRunLoRA
from .lora import ApplyLoRA, SaveLoRA
from .page import routes
from .previews import PreviewSettings
from .settings import AdapterSettings, MemorySettings, ObjectiveSettings, OptimizerSettings, ValidationSettings
from .train import TrainWanLoRA


class WanTuneExtension(ComfyExtension):
    """The extension object that ComfyUI asks for the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes in the order in which a workflow uses them. Also registers the HTTP routes of nodes/page/."""
        routes.register()
        return [LoadDataset, DatasetSettings, JoinDatasets, CacheLatents, PruneCache, TrainWanLoRA, AdapterSettings,
                OptimizerSettings, ObjectiveSettings, ValidationSettings, PreviewSettings, MemorySettings, LoadRunLoRA,
                SaveLoRA, ApplyLoRA, CompareVideos, CompareCheckpoints, ExportTrainingJob]
