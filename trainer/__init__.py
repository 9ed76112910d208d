"""The WanTune trainer: a library that does not know ComfyUI.

Read it in the order in which one sample flows through it:

`dataset.scan` -> `buckets.choose` -> `pictures.read` (or `video.read`) -> `cache.fill` -> `sampling.BucketSampler` ->
`loop.Trainer.train_step` -> `objective.denoising_loss` -> `backend.Denoiser.velocity` -> `events.StepDone`,
with `adapters` (what is trained), `optim` (how it moves), `lora_file` (what is written) and
`checkpoint` (where a run lives) beside it. `config` says how everything is set.
"""
