"""ComfyUI's objects as the trainer asks for them: `family` (which model it is), `denoiser` with `frozen` (the loaded
model, shared and put back as it was), `encoders` (VAE and CLIP), `fingerprint` (names for weights), `paths` (folders).
"""
