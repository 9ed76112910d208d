"""The custom sockets of WanTune.

`io.LoraModel` (a state dict) and `io.LossMap` are ComfyUI's own types and come from `comfy_api`, so
that its Load LoRA Model, Save LoRA and Plot Loss Graph nodes connect to ours and ours to its trainer.
"""

from comfy_api.latest import io

DatasetSettings = io.Custom("WANTUNE_DATASET_SETTINGS")
Dataset = io.Custom("WANTUNE_DATASET")
AdapterChoice = io.Custom("WANTUNE_ADAPTER")
Optimizer = io.Custom("WANTUNE_OPTIMIZER")
Objective = io.Custom("WANTUNE_OBJECTIVE")
Validation = io.Custom("WANTUNE_VALIDATION")
Memory = io.Custom("WANTUNE_MEMORY")
Previews = io.Custom("WANTUNE_PREVIEWS")
Cache = io.Custom("WANTUNE_CACHE")
