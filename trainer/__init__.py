"""The WanTune trainer: a library that does not know ComfyUI.

Its folders stand in the order in which one sample flows through them; each imports only from those before it:

- `base`      errors, files, what is remembered of files
- `settings`  what is trained and how: frozen records, checked once
- `model`     what a video model is to a trainer, and what is trained of it
- `data`      from a folder of pictures and clips to samples
- `encoded`   from samples to latents and conditions on disk, and in which order they come
- `lora`      LoRA files: key names, metadata, reading any trainer's
- `runs`      what a run tells, and its folder
- `training`  the loss, the loop, and a run from a model, a cache and settings to a LoRA

Follow a sample: `data.scan` -> `data.buckets` -> `data.pictures` or `data.video` -> `encoded.fill` -> `encoded.batches`
-> `training.loop.train_step` -> `training.objective.denoising_loss` -> `Denoiser.velocity` -> `runs.events.StepDone`.
"""
