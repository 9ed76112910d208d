"""ComfyUI's objects as the protocols of trainer/model/backend.py.

`family` tells which model family a MODEL is. `denoiser`, with the layers of `frozen`, trains through the loaded model
without copying it, and restores it. `encoders` wraps VAE and CLIP, `fingerprint` hashes weights. `paths` has the
folders of ComfyUI that we use, `runs` finds the run and the checkpoints that a node's widgets name.
"""
