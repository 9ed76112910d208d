"""ComfyUI's objects as the protocols of trainer/model/backend.py.

`family` tells which model family a MODEL is. `denoiser`, with the layers of `frozen` put in by `stand_ins`, trains
through the loaded model without copying it, and restores it; `carried` says what becomes of what others put on it,
`attention` and `self_test` check gradients; `aside` lets ComfyUI sample in the middle of a run. `applying` and
`applied` put a LoRA on a MODEL. `encoders` wraps VAE and CLIP, `fingerprint` hashes weights and what is `described`.
`paths` has the folders of ComfyUI that we use, `runs` finds the run and the checkpoints that a node's widgets name.
"""
