"""The WanTune trainer: a library that does not know ComfyUI.

Its folders stand in the order in which one sample flows through them; each imports only from those before it:

- `base`      errors, atomic file writes, cached facts about files
- `settings`  what is trained and how: frozen records, validated on construction
- `model`     the interface of a video model, and the adapters that are trained on it
- `data`      from a folder of pictures and clips to samples
- `encoded`   from samples to latents and conditions on disk, and the order in which training takes them
- `lora`      LoRA files: key names, metadata, reading those of any trainer
- `runs`      the events of a run, its folder and its checkpoints
- `training`  the loss, the loop, and a run from a model, a cache and settings to a LoRA
- `media`     videos and pictures that are shown: mp4 files, labels, two clips side by side
- `wan_diffusers`  Wan without ComfyUI: models of diffusers and transformers, and sampling from them

Follow a sample: `data.scan` -> `data.buckets` -> `data.pictures` or `data.video` -> `encoded.fill` -> `encoded.batches`
-> `training.loop.train_step` -> `training.objective.denoising_loss` -> `Denoiser.velocity` -> `runs.events.StepDone`.
"""
