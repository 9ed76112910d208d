"""Videos and pictures that are shown to people.

`videos` writes mp4 files, `pictures` scales and labels single frames, `strips` puts frames of a clip beside each other,
`side_by_side` two clips.
"""
