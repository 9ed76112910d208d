"""A job in another place is the same data, the same cache and the same run, and a part that is missing is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from wantune.tests.support import clips, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import manifest, scan
from wantune.trainer.encoded.batches import read_batch
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.job import configs, digests, folder, models, settings
from wantune.trainer.job.writing import Content, ModelFile, write
from wantune.trainer.settings.adapter import LoraConfig
from wantune.trainer.settings.data import CONTROL, DatasetConfig
from wantune.trainer.settings.training import OptimizerConfig, TrainConfig
from wantune.trainer.training import identity

TRAIN = TrainConfig(epochs=3, lora=LoraConfig(rank=4, alpha=2), optimizer=OptimizerConfig(schedule="cosine"))


class Mean:
    """Stands for an encoder of pixels: their mean, each time it is asked for."""

    def __init__(self, name):
        self.id, self.count = name, 0

    def encode(self, pixels_FHW3):
        self.count += 1
        return torch.full((16, (len(pixels_FHW3) - 1) // 4 + 1, 8, 8), float(pixels_FHW3.mean()))


class Text:
    """Stands for UMT5."""

    id, count = "umt5", 0

    def encode(self, caption):
        self.count += 1
        return torch.full((1, 8), float(len(caption)))


def encoded(dataset, cache):
    """The cached dataset, and how often an encoder was asked."""
    vae, control, text = Mean("vae"), Mean("control"), Text()
    cached = tools.drained(fill(dataset, Store(cache), vae, {"text": text, "control": control}))[1]
    return cached, vae.count + control.count + text.count


def scanned(configs):
    return manifest.join([scan.scan(config) for config in configs])


class World:
    """Two folders of pictures and a clip with captions, lists of captions, masks and control clips."""

    def __init__(self, root: Path) -> None:
        self.first, self.second = root / "Omas F\u00fc\u00dfe & 1", root / "\u6570\u636e"
        for place, name in ((self.first, "3_sub/a"), (self.first, "b"), (self.second, "c d"), (self.second, "e")):
            for number, path in enumerate((place / f"{name}.png", place / "control" / f"{name}.png")):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(clips.numbered(len(str(path)) + 7 * number)).save(path)
        (self.first / "3_sub" / "a.txt").write_text("zwx on a chair", encoding="utf-8")
        (self.first / "masks" / "3_sub").mkdir(parents=True)
        Image.new("L", (64, 64), 200).save(self.first / "masks" / "3_sub" / "a.png")
        (self.first / "metadata.jsonl").write_text(
            json.dumps({"file_name": "b.png", "text": "zwx \u6bd4"}), encoding="utf-8")
        (self.first / "notes.pdf").write_bytes(b"no part of the dataset")
        (self.second / "e.caption").write_text("a zwx", encoding="utf-8")
        clips.at_rate(self.second / "f.mp4", 16, 6)
        clips.at_rate(self.second / "control" / "f.mp4", 16, 6, picture=lambda number: clips.numbered(number + 99))
        self.configs = tuple(DatasetConfig(
            folder=str(place), resolution=64, frame_buckets=(1, 5), condition=CONTROL, trigger_word="zwx", upscale=True,
            num_repeats=2, validation_items=held, preserve_prompts=("a dog",), caption_dropout=0.1)
            for place, held in ((self.first, 0), (self.second, 1)))
        self.dataset = scanned(self.configs)
        self.cached, self.count = encoded(self.dataset, root / "the cache")
        self.model = root / "wan 14B.safetensors"
        self.model.write_bytes(b"weights" * 999)

    def content(self, **changes) -> Content:
        sections = configs.of_train(TRAIN)
        sections["train_wan_lora"]["run_name"] = "my run"
        return Content(**{
            "sections": sections, "dataset": self.dataset, "dtype": "float32", "cached": self.cached,
            "models": {"model": ModelFile(self.model.name, self.model, "the base")}, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("here"))
    tools.drained(write(made.model.parent / "my job", made.content()))
    return made


@pytest.fixture
def job(world, tmp_path):
    """A copy of the whole job on another machine: nothing of this one is reached from it."""
    shutil.copytree(world.model.parent / "my job", tmp_path / "the job \u00e9")
    return tmp_path / "the job \u00e9"


def test_elsewhere_it_is_the_same_run_and_nothing_is_encoded_again(world, job):
    found = folder.read(job)
    found.check_data()
    assert found.settings.train == TRAIN and found.settings.run_name == "my run"
    assert found.settings.datasets == tuple(
        replace(config, folder=str(job / "data" / str(number))) for number, config in enumerate(world.configs, 1))
    dataset, cached = scanned(found.settings.datasets), found.cached()
    assert (dataset.digest, dataset.former_digest, dataset.prior_digest) == (
        world.dataset.digest, world.dataset.former_digest, world.dataset.prior_digest)
    assert identity.keys(found.settings.train, cached, "the base") == identity.keys(TRAIN, world.cached, "the base")
    assert len(cached.held_out) == 1 and all(path.is_relative_to(job) for it in cached.samples for path in it.paths)
    assert encoded(dataset, job / "cache") == (cached, 0), "from the files in the job alone"
    for here, there in zip(world.cached.samples, cached.samples, strict=True):
        one, other = (read_batch([sample.visit(1)], cached.family.kinds(CONTROL)) for sample in (here, there))
        assert torch.equal(one.latent_BCFHW, other.latent_BCFHW)
        assert (one.mask_B11HW is None) == (other.mask_B11HW is None)
    assert not list(job.rglob("notes.pdf"))


def test_its_readme_has_the_command_the_models_and_the_way_back(job):
    text = (job / "README.md").read_text(encoding="utf-8")
    for part in ("wantune train .", "`wan 14B.safetensors`, 7.0 kB", "Neither VAE nor text encoder is needed",
                 "`my run-...`", "the graph it came from goes on with it"):
        assert part in text
    size = sum(path.stat().st_size for path in job.rglob("*") if path.name != "README.md" and path.is_file())
    assert f"{sum(path.is_file() for path in job.rglob('*'))} files, {size / 1000:.1f} kB" in text


def test_data_that_is_referred_to_is_used_where_it_lies_or_where_it_is_copied_to(world, tmp_path):
    job = tools.drained(write(tmp_path / "job", world.content(has_data=False, cached=None)))[1]
    assert not (job / "data").exists() and not (job / "cache").exists()
    found = folder.read(job)
    found.check_data()
    assert found.settings.datasets == world.configs and found.cached() is None
    text = (job / "README.md").read_text(encoding="utf-8")
    assert f"`{world.second}` to `data/2`" in text and "VAE and text encoder are needed, too" in text
    told = job / "job.toml"
    told.write_text(told.read_text(encoding="utf-8").replace("here", "C:\\\\gone"), encoding="utf-8")  # as from Windows
    with pytest.raises(UserError, match="copy it to .*data.1, or write into job.toml where it is"):
        folder.read(job).check_data()
    shutil.copytree(world.first, job / "data" / "1")
    shutil.copytree(world.second, job / "data" / "2")
    found = folder.read(job / "job.toml")
    found.check_data()
    assert scanned(found.settings.datasets).digest == world.dataset.digest


def flip(path: Path) -> None:
    """Another content of the same size."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda job: (job / "data/1/3_sub/a.png").unlink(), "3_sub/a.png of the data is missing"),
    (lambda job: (job / "data/1/masks/3_sub/a.png").unlink(), "masks/3_sub/a.png of the data is missing"),
    (lambda job: shutil.rmtree(job / "data/2/control"), "control/c d.png of the data is missing"),
    (lambda job: flip(job / "data/2/e.png"), "e.png of the data in .* has another content"),
    (lambda job: (job / "data/1/3_sub/a.txt").write_text("zwx"), "a.txt of .* has 3 bytes, exported were 14"),
    (lambda job: (job / "data/1/metadata.jsonl").unlink(), "metadata.jsonl of the data is missing"),
    (lambda job: shutil.copy(job / "data/2/e.png", job / "data/1/z.png"), "z.png in .* was not there when the job was"),
    (lambda job: next((job / "cache/latents").iterdir()).unlink(), "latents/.*safetensors of the cache is missing"),
    (lambda job: next((job / "cache/texts").iterdir()).write_bytes(b""), "texts/.* has 0 bytes"),
    (lambda job: (job / "cache/dataset.json").unlink(), "dataset.json is missing or damaged"),
    (lambda job: (job / "files.json").write_text("{"), "files.json is missing or damaged"),
    (lambda job: (job / "files.json").write_text('{"data": [], "cache": {}}'), "do not belong together"),
    (lambda job: (job / "job.toml").unlink(), "is no job, it has no job.toml"),
    (lambda job: edit(job / "job.toml", "version = 1", "version = 2"), "of version 2, this WanTune reads versions"),
    (lambda job: edit(job / "job.toml", "version = 1", ""), "does not say of which version"),
    (lambda job: edit(job / "job.toml", "epochs = 3", "epoch = 3"), "no key 'epoch'; did you mean epochs"),
    (lambda job: edit(job / "cache/dataset.json", "latents/", "../latents/"), "that does not lie in it"),
    (lambda job: edit(job / "cache/dataset.json", '"repeats"', '"repeat"'), "The list of the cache in .* is damaged"),
])
def test_what_is_missing_or_differs_is_named_in_a_sentence(job, change, sentence):
    change(job)
    with pytest.raises(UserError, match=sentence):
        found = folder.read(job)
        found.check_data()
        found.cached()


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_a_model_is_the_base_of_the_job_by_its_content(world, job, tmp_path):
    found = folder.read(job)
    with pytest.raises(UserError, match="wan 14B.safetensors .model of models. is neither in .* nor in .*models; put"):
        models.find(found.settings.models, job, ["model"])
    with pytest.raises(UserError, match="vae of models is empty"):
        models.find(found.settings.models, job, ["vae"])
    (job / "models" / "deeper").mkdir(parents=True)
    here = job / "models" / "deeper" / world.model.name
    shutil.copy(world.model, here)
    assert models.find(found.settings.models, job, ["model"]) == {"model": here}
    assert found.check_models({"model": here}) == {"model": "the base"}
    other = here.rename(here.with_name("other.safetensors"))
    assert found.check_models({"model": other}) == {"model": "the base"}
    assert found.check_models({"model": tmp_path, "vae": other}) == {"model": "", "vae": ""}
    flip(other)
    assert found.check_models({"model": other}) == {"model": ""}
    with pytest.raises(UserError, match="is not the file wan 14B.safetensors of the job, its content differs"):
        found.check_models({"model": other.rename(here)})


def test_a_file_of_28_gb_is_known_by_little_of_it(tmp_path):
    path = tmp_path / "large.safetensors"
    prints = set()
    for place in (None, 10, (28 << 30) - 1):
        with path.open("r+b" if place else "wb") as file:
            file.truncate(28 << 30)
            if place:
                file.seek(place)
                file.write(b"1")
        prints.add(digests.of(path))
    assert len(prints) == 3 and {each.size for each in prints} == {28 << 30}


def test_a_job_is_never_written_over_and_what_is_broken_off_leaves_nothing(world, tmp_path):
    (tmp_path / "job").mkdir()
    with pytest.raises(UserError, match="never written over"):
        tools.drained(write(tmp_path / "job", world.content()))
    progress = write(tmp_path / "other", world.content())
    assert {next(progress).kind for _ in range(9)} == {"data"}
    progress.close()
    assert [path.name for path in tmp_path.iterdir()] == ["job"]
    with pytest.raises(UserError, match="The cache is that of another dataset"):
        tools.drained(write(tmp_path / "other", world.content(dataset=scan.scan(world.configs[0]))))


def test_a_file_that_changed_since_it_was_read_is_not_exported(world, tmp_path):
    sample = replace(world.dataset.samples[0], stamp=replace(world.dataset.samples[0].stamp, size=1))
    changed = replace(world.dataset, samples=(sample, *world.dataset.samples[1:]))
    with pytest.raises(UserError, match=f"{sample.name} changed since it was read; queue again"):
        tools.drained(write(tmp_path / "job", world.content(dataset=changed)))
    assert not list(tmp_path.iterdir())


def test_a_lora_to_begin_with_goes_along(world, tmp_path):
    lora = {"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 3).T}
    job = tools.drained(write(tmp_path / "job", world.content(loras={"continue_from": lora})))[1]
    moved = job.rename(tmp_path / "moved")
    found = folder.read(moved).settings
    assert found.continue_from == str(moved / "continue_from.safetensors")
    assert torch.equal(load_file(found.continue_from)["blocks.0.ffn.0.lora_A.weight"], torch.ones(3, 2))


def test_a_job_is_no_settings_file(job):
    with pytest.raises(UserError, match="give the folder in which it lies"):
        settings.of(settings.read(job / "job.toml"), job)
