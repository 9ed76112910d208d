"""Test-only node pack: a text encoder and a CLIP vision so small that ComfyUI's own loaders cannot open them."""


async def comfy_entrypoint():
    from .node import WorldExtension

    return WorldExtension()
