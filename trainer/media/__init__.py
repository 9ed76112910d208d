"""Videos and pictures that are shown to people.

`videos` writes mp4 files, `pictures` scales and labels single frames, `side_by_side` puts two clips beside each other.
"""
