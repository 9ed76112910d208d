"""The command line: WanTune's trainer without ComfyUI, `python -m wantune` or, once installed, `wantune`.

It is to the trainer what nodes/ is in ComfyUI, and knows neither nodes/ nor ComfyUI: `main` (parsers, exit codes),
`options` (a flag for each widget of the nodes), a file for each command, and `engine`, which calls diffusers' models.
"""
