"""The videos and pictures that nodes make.

`sampling` samples and decodes videos for the others. `previewer` makes the previews of a run in training, `cells` and
`grid` make the grid of Compare Checkpoints, `side_by_side` the video of Compare Videos. `strips` puts frames of a clip
beside each other, `pictures` scales and labels single frames, `videos` writes mp4 files.
"""
