"""Test-only node pack: loaders of models so small that ComfyUI's own cannot open them."""


async def comfy_entrypoint():
    from .node import WorldExtension

    return WorldExtension()
