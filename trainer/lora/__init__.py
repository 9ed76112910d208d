"""LoRA files, the only place that knows their names: `keys` (every writer's names of modules, brought to ours), `file`
(writing, reading, metadata, and training on from one)."""
