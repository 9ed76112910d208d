"""The videos and pictures that nodes make.

`sampling` samples and decodes videos for the others. `previewer` makes the previews of a run in training, `cells` and
`grid` make the grid of Compare Checkpoints. What needs no ComfyUI, such as writing mp4 files, is in trainer/media/.
"""
