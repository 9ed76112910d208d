"""What a run tells and leaves: `events`, `state` (a checkpoint's files), `folder` (a run on disk), `tensorboard`,
`history` (runs as their folders tell them), `checkpoints` (a run's checkpoints as LoRAs)."""
