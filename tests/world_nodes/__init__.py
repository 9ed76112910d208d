"""Test-only node pack: the small Wan world's text encoder, which ComfyUI's own loader cannot open."""


async def comfy_entrypoint():
    from .node import WorldExtension

    return WorldExtension()
