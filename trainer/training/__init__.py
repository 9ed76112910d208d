"""How it learns: `objective` (flow matching), `optim` (optimizers, rates, averages), `evaluate` (the held-out loss),
`loop` (steps and cadences), and `run`, from a model, a cache and settings to a LoRA."""
