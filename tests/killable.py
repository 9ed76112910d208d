"""A process with ComfyUI and the small world's encoders that forks one that fills a cache, whenever it is told to.

Started by test_killed_filling.py as `python killable.py COMFYUI_FOLDER`. Each line on stdin is JSON, [data folder,
cache folder]; it prints the child's number, and how the child ended.
"""

import json
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(comfyui: Path) -> None:
    """Serve until stdin ends."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "tests")]
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(ROOT)]
    sys.modules["wantune"] = pack
    from wantune.tests.host import launch

    launch.prepare_imports()
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    launch.import_comfyui(comfyui)
    from wantune.nodes.encoders import CaptionEncoder, WanCodec
    from wantune.tests import tools

    encoders = WanCodec(tools.load_vae()), CaptionEncoder(tools.load_clip())
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            fill(*map(Path, json.loads(line)), encoders)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def fill(folder: Path, place: Path, encoders: tuple) -> None:
    """Scan and fill with what makes many kinds of files: windows, orders of tags, masks, two resolutions."""
    from wantune.tests import tools
    from wantune.trainer import cache, dataset
    from wantune.trainer.config import DatasetConfig
    from wantune.trainer.store import Store

    config = DatasetConfig(folder=str(folder), resolution=64, more_resolutions=(96,), frame_buckets=(1, 17),
                           extraction="chunks", trigger_word="zwx", shuffle_tags=True, caption_dropout=0.1)
    tools.drained(cache.fill(dataset.scan(config, place / "scans"), Store(place), *encoders))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
