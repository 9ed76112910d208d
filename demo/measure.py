"""Runs inside the environment: prints versions, and how far two videos are apart, as JSON."""

import importlib.metadata
import json
import platform
import sys

import av
import numpy


def frames_FHW3(path: str) -> numpy.ndarray:
    """Every frame of a video: (F, H, W, 3) uint8."""
    with av.open(path) as container:
        return numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def main(base: str, tuned: str) -> None:
    """Print the part of report.json that needs packages of the environment."""
    difference = frames_FHW3(base).astype(numpy.float32) - frames_FHW3(tuned).astype(numpy.float32)
    found = {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "mean_absolute_difference": round(float(numpy.abs(difference).mean()), 4),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
