"""Training: `objective` (the flow matching loss), `optim` (optimizers, learning rate schedules, moving averages),
`evaluate` (the held-out loss), `loop` (optimizer steps; when to evaluate and save), and `run`, from a model, a cached
dataset and settings to a LoRA."""
