"""The custom sockets of WanTune; `LORA_MODEL` and `LOSS_MAP` are ComfyUI's own types.

ComfyUI's are plain dicts, so its Load LoRA Model, Save LoRA and Plot Loss Graph nodes connect to ours.
"""

from comfy_api.latest import io

Dataset = io.Custom("WANTUNE_DATASET")
Cache = io.Custom("WANTUNE_CACHE")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")
