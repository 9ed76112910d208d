"""The nodes: thin, one theme a file. Everything that knows ComfyUI is in this folder."""

from comfy_api.latest import ComfyExtension, io

from .cache import CacheLatents, PruneCache
from .compare_checkpoints import CompareCheckpoints
from .compare_videos import CompareVideos
from .dataset import DatasetSettings, JoinDatasets, LoadDataset
from .load_run import LoadRunLoRA
from .lora import ApplyLoRA, SaveLoRA
from .page import routes
from .previews import PreviewSettings
from .settings import AdapterSettings, ObjectiveSettings, OptimizerSettings, ValidationSettings
from .train import TrainWanLoRA


class WanTuneExtension(ComfyExtension):
    """What ComfyUI asks for our nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """In the order in which they are used."""
        routes.register()
        return [LoadDataset, DatasetSettings, JoinDatasets, CacheLatents, PruneCache, TrainWanLoRA, AdapterSettings,
                OptimizerSettings, ObjectiveSettings, ValidationSettings, PreviewSettings, LoadRunLoRA, SaveLoRA,
                ApplyLoRA, CompareVideos, CompareCheckpoints]
