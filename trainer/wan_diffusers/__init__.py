"""Wan on diffusers' networks, without ComfyUI but under its names, so that adapters and files are the same."""
