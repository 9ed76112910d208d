"""A disk that is full at any write: a sentence that says so, nothing is lost, and with room all goes on bit for bit."""

import json
import os
import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wantune.tests.support import full_disk, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import caption_edit, folder, scan
from wantune.trainer.data.caption_files import CaptionFiles
from wantune.trainer.data.notes import Notes
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.runs import checkpoints, history
from wantune.trainer.runs.folder import RunFolder
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")

SETTINGS = TrainConfig(
    epochs=99, max_steps=6, learning_rate=2e-2, lora=LoraConfig(rank=2), gradient_checkpointing=False,
    validation=ValidationConfig(every_steps=2, every_minutes=0, keep_last=2, evaluate_epochs=0, evaluate_steps=2))

OLD, NEW, OTHER = "a cup of coffee on a wooden table", "a cup of tea", "written elsewhere"


@pytest.fixture(scope="module")
def world(comfy):
    """The models, and the previews' settings."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec
    from wantune.nodes.previews import PreviewSettings

    vae, clip = tools.load_vae(), tools.load_clip()
    with torch.inference_mode():
        prompt = clip.encode_from_tokens_scheduled(clip.tokenize("zwx"))
    previews = PreviewSettings.execute(
        positive=prompt, negative=prompt, vae=vae, width=32, height=32, frames=1, steps=1, cfg=1.0, shift=5.0, seed=7,
        every_epochs=0, every_steps=3).result[0]
    return SimpleNamespace(model=tools.load_dit(tools.WORLD / "dit.safetensors"), previews=previews,
                           encoders=(WanCodec(vae), {"text": CaptionEncoder(clip)}))


class Story:
    """From a folder of pictures to a LoRA file, in ComfyUI's folders below `place`."""

    def __init__(self, world, place: Path, patch: pytest.MonkeyPatch) -> None:
        import folder_paths

        self.world, self.place = world, place
        self.pictures = tools.write_pictures(place / "pictures", (96, 96))
        self.loras = place / "loras"
        self.loras.mkdir()
        (self.loras / "mine_00001.safetensors").write_bytes(b"of the user")
        (place / "output" / "wantune").mkdir(parents=True)
        (self.pictures / "coffee.txt.bak").write_text(OTHER, encoding="utf-8")
        patch.setattr(folder_paths, "output_directory", str(place / "output"))
        patch.setattr(folder_paths, "get_folder_paths", lambda name: [str(self.loras)])
        self.hidden = SimpleNamespace(unique_id="5", extra_pnginfo={"workflow": {"id": "w"}}, prompt={})
        self.saved_steps: list[int] = []
        self.done_steps: list[int] = []

    def tell(self) -> tuple:
        """Everything once; (the LoRA, its losses, its run). Raises UserError where the disk is full."""
        from wantune.nodes import train
        from wantune.nodes.backend import paths
        from wantune.nodes.lora import SaveLoRA
        from wantune.nodes.page import shown

        config = DatasetConfig(folder=str(self.pictures), resolution=64, num_repeats=2, trigger_word="zwx",
                               validation_items=1, caption_dropout=0.2)
        store = Store(paths.cache_folder())
        manifest = scan.scan(config, paths.scans_folder())
        cached = tools.drained(fill(manifest, store, *self.world.encoders))[1]
        with torch.inference_mode():
            lora, losses, run = train.train(
                self.world.model, cached, "run", SETTINGS, tools.Watch(self._look), previews=self.world.previews)
            SaveLoRA.execute(lora, "mine")
        shown.remember(self.hidden, "run", run)
        return lora, losses, Path(run)

    def edit(self) -> None:
        """Save a caption, as the page does."""
        entries = list(folder.walk(self.pictures, Notes()))
        entry = next(entry for entry in entries if entry.name == "coffee.png")
        caption_edit.save(entry, CaptionFiles.among(entries, Notes()), NEW, OLD)

    def check_nothing_is_lost(self) -> None:
        """After an error: captions, LoRAs, checkpoints that were saved, and the log of what was done."""
        texts = {path.name: path.read_text(encoding="utf-8") for path in self.pictures.glob("coffee.txt*")
                 if path.suffix != ".tmp"}
        assert texts.pop("coffee.txt") in (OLD, NEW) and texts.pop("coffee.txt.bak") == OTHER
        assert set(texts.values()) <= {OLD}, "no half backup"
        assert {path.name for path in self.pictures.glob("*.png")} == set(tools.PICTURES) - {"rocket.jpg"} | {
            "rocket.png"}
        assert (self.loras / "mine_00001.safetensors").read_bytes() == b"of the user"
        for run in self.runs():
            found = RunFolder(run).newest()[0]
            assert (found.step if found else 0) >= max(self.saved_steps, default=0)
            for step in checkpoints.checkpoints(run).steps if found else ():
                checkpoints.load(run, step)
            assert self.logged(run)[:len(self.done_steps)] == self.done_steps

    def runs(self) -> list[Path]:
        return [path for path in (self.place / "output" / "wantune").iterdir() if history.is_run(path)]

    @staticmethod
    def logged(run: Path) -> list[int]:
        """The steps of the log's complete lines."""
        path = run / "log.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [line["step"] for line in map(json.loads, lines) if line["event"] == "StepDone"]

    def left_over(self) -> list[Path]:
        return [path for path in self.place.rglob("*") if path.name.endswith(".tmp")]

    def _look(self, event) -> None:
        name = type(event).__name__
        if name == "Saved":
            self.saved_steps.append(event.step)
        if name == "StepDone" and event.step > max(self.done_steps, default=0):
            self.done_steps.append(event.step)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """What comes of it where there is room, and how many writes it takes."""
    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("whole")
    story = Story(world, place, patch)
    with full_disk.full_from(None, place) as disk:
        lora, losses, run = story.tell()
        in_story = disk.count
        story.edit()
    patch.undo()
    assert len(losses) == 6 and len(story.saved_steps) == 3 and not story.left_over()
    return SimpleNamespace(lora=lora, losses=losses, run=run, writes=in_story, edits=disk.count - in_story)


def is_about_a_full_disk(error: UserError, place: Path) -> bool:
    text = str(error)
    return "is full; free some space on it, then " in text and str(place) in text and text.endswith(".")


def tell_to_the_end(story: Story, whole) -> None:
    """With room it all goes on, and is what it would have been."""
    lora, losses, run = story.tell()
    assert losses == whole.losses and lora.keys() == whole.lora.keys()
    assert all(torch.equal(lora[key], value) for key, value in whole.lora.items())
    assert story.logged(run) == [1, 2, 3, 4, 5, 6]
    # one that could not be deleted stays until the run is made longer
    assert set(checkpoints.checkpoints(run).steps) >= set(checkpoints.checkpoints(whole.run).steps)
    assert history.read_json(run / "best.json") == history.read_json(whole.run / "best.json")
    assert sorted(path.name for path in (run / "samples").iterdir()) == sorted(
        path.name for path in (whole.run / "samples").iterdir())
    assert not story.left_over()


SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 40))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_is_full_at_a_random_write(world, whole, tmp_path, monkeypatch, seed):
    """In each of as many equal parts of all writes one is drawn, so that a few seeds are spread over all stages."""
    number = random.Random(seed).randrange(whole.writes // 4) + seed % 4 * (whole.writes // 4) + 1
    story = Story(world, tmp_path, monkeypatch)
    with full_disk.full_from(number, tmp_path) as disk:
        try:
            story.tell()
        except UserError as error:
            assert is_about_a_full_disk(error, tmp_path), error
        story.check_nothing_is_lost()
        disk.full_from = None
        tell_to_the_end(story, whole)


def test_a_disk_that_is_full_while_a_caption_is_saved(world, whole, tmp_path, monkeypatch):
    for number in range(1, whole.edits + 1):
        place = tmp_path / str(number)
        story = Story(world, place, monkeypatch)
        with full_disk.full_from(number, place) as disk:
            with pytest.raises(UserError) as caught:
                story.edit()
            assert is_about_a_full_disk(caught.value, place) and "coffee.png cannot be saved" in str(caught.value)
            story.check_nothing_is_lost()
            disk.full_from = None
            assert (story.pictures / "coffee.txt").read_text(encoding="utf-8") == OLD
            story.edit()
        assert (story.pictures / "coffee.txt").read_text(encoding="utf-8") == NEW
        assert (story.pictures / "coffee.txt.bak2").read_text(encoding="utf-8") == OLD and not story.left_over()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MiB; skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.name == "posix" and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("no disk may be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_a_real_disk_without_room(world, whole, small_disk, monkeypatch, seed):
    story = Story(world, small_disk, monkeypatch)
    total = sum(path.stat().st_size for path in whole.run.parents[2].rglob("*") if path.is_file())
    room = random.Random(seed).randrange(4096, total)
    ballast = small_disk / "ballast"
    status = os.statvfs(small_disk)
    ballast.write_bytes(bytes(status.f_bavail * status.f_frsize - room))
    try:
        story.tell()
    except UserError as error:
        assert is_about_a_full_disk(error, small_disk), error
    story.check_nothing_is_lost()
    ballast.unlink()
    tell_to_the_end(story, whole)
