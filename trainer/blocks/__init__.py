"""A block of a video model as training computes it."""
