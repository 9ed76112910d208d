"""A run as text: the nodes' widgets without ComfyUI (`widgets`, `configs`), a settings file (`settings`), and a folder
that takes a run to another machine (`folder`)."""
