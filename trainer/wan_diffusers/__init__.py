"""Wan without ComfyUI: the models of diffusers and transformers as the protocols of trainer/model/backend.py."""
