"""LoRA files, the only place that knows their key names: `keys` (the names of other trainers, normalized to ours),
`file` (writing, reading, metadata, and continuing to train a LoRA), `convert` and `merge`."""
