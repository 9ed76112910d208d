"""Train Wan2.1 LoRAs inside ComfyUI, on the model ComfyUI has loaded.

Importing this file does nothing: ComfyUI calls `comfy_entrypoint` when it wants the nodes, and
pytest may import a root package without ComfyUI being there.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called once by ComfyUI; the nodes (and torch) are imported only then."""
    from .nodes import WanTuneExtension

    return WanTuneExtension()
