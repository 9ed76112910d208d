"""The forms in which a LoRA can be written (convert.py); importing them does not import torch."""

COMFYUI, DIFFUSERS, KOHYA = FORMATS = ("comfyui", "diffusers", "kohya")
"""diffusion_model.blocks.0.self_attn.q.lora_A, transformer.blocks.0.attn1.to_q.lora_A, and
lora_unet_blocks_0_self_attn_q.lora_down."""
