"""What a run reports and stores: `events`, `state` (a checkpoint's files), `folder` (a run on disk), `tensorboard`,
`history` (summaries and loss curves, read from run folders), `checkpoints` (a run's checkpoints as LoRAs)."""
