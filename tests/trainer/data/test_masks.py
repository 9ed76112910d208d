"""Masks: where they lie, that they lie on the picture as it is trained on, and what they do to the loss."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from wantune.tests.support import clips, tools
from wantune.tests.support.folders import draw, names, reasons, sample_of, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.encoded import cache
from wantune.trainer.encoded import fill as filling
from wantune.trainer.encoded.batches import read_batch
from wantune.trainer.encoded.store import Store
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.training import objective


class AreaCodec:
    """Stands for the VAE: the brightness of each 8 x 8 pixels, 0..1, of the first frame."""

    id = "vae"

    def encode(self, pixels_FHW3):
        frames, height, width, _ = pixels_FHW3.shape
        grey_HW = torch.from_numpy(pixels_FHW3[0].astype(np.float32)).mean(-1) / 255
        area_HW = grey_HW.view(height // 8, 8, width // 8, 8).mean((1, 3))
        return area_HW.expand(16, (frames - 1) // 4 + 1, -1, -1).clone()


class Text:
    """Stands for UMT5."""

    id = "umt5"

    def encode(self, caption):
        return torch.ones(1, 8)


def fill(manifest, folder):
    return tools.drained(filling.fill(manifest, Store(folder.parent / "cache"), AreaCodec(), {"text": Text()}))[1]


def read(manifest, folder, name):
    """(brightness_HW, mask_HW or None) of one file as it is trained on."""
    (cached,) = (clip for clip in fill(manifest, folder).samples if clip.name == name)
    batch = read_batch([cached.visit(0)], WAN21_T2V.conditions)
    mask = batch.mask_B11HW
    return batch.latent_BCFHW[0, 0, 0], None if mask is None else mask[0, 0, 0]


def shapes(size: tuple[int, int]) -> Image.Image:
    """White on black, and like itself neither turned nor mirrored."""
    width, height = size
    image = Image.new("RGB", size)
    pen = ImageDraw.Draw(image)
    pen.rectangle((width * 0.3, height * 0.1, width * 0.6, height * 0.45), "white")
    pen.ellipse((width * 0.5, height * 0.5, width * 0.95, height * 0.9), "white")
    pen.rectangle((0, 0, width * 0.1, height * 0.2), "white")
    return image


@pytest.fixture
def root(tmp_path):
    """A picture at the top and one in a folder; each test adds masks."""
    root = tmp_path / "data"
    draw(root / "a.png", 1, "zwx a")
    draw(root / "sub" / "b.jpg", 2, "zwx b")
    return root


def paint(path, size=(96, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes(size).convert("L").save(path)


@pytest.mark.parametrize(("mask", "picture"), [
    ("masks/a.png", "a.png"), ("masks/a.jpg", "a.png"), ("Masks/a.webp", "a.png"),
    ("masks/sub/b.png", "sub/b.jpg"), ("sub/masks/b.png", "sub/b.jpg"),
])
def test_a_mask_is_found_by_its_picture_s_name_and_is_not_trained_on(root, mask, picture):
    paint(root / mask)
    manifest = scan(root)
    assert names(manifest) == ["a.png", "sub/b.jpg"] and not manifest.notes and not manifest.rejected
    assert {clip.name: clip.mask.name for clip in manifest.samples if clip.mask} == {picture: mask}
    masked = sample_of(manifest, picture).mask
    assert masked.path == root / mask and not masked.is_alpha


def test_a_mask_without_its_picture_is_noted(root):
    paint(root / "masks" / "c.png")
    paint(root / "masks" / "b.png")
    (note,) = scan(root).notes
    assert note.startswith("masks/b.png, masks/c.png: a mask without its picture; give both the same name")


def test_masks_that_are_switched_off_are_noted_and_not_even_read(root):
    (root / "masks").mkdir()
    (root / "masks" / "a.png").write_bytes(b"damaged")
    manifest = scan(root, masks="none")
    assert names(manifest) == ["a.png", "sub/b.jpg"] and not any(clip.mask for clip in manifest.samples)
    assert manifest.notes == ('masks/a.png: a mask that is not used, since masks is "none".',)


@pytest.mark.parametrize("size", [(64, 96), (96, 96), (96, 60), (200, 140)])
def test_a_mask_of_another_shape_leaves_its_picture_out(root, size):
    paint(root / "masks" / "a.png", size)
    manifest = scan(root)
    assert names(manifest) == ["sub/b.jpg"]
    assert reasons(manifest)["a.png"] == (f"a.png is 96x64, its mask masks/a.png is {size[0]}x{size[1]}; make the "
                                          "mask of the picture's shape.")


@pytest.mark.parametrize("size", [(48, 32), (192, 128), (97, 64), (96, 65)])
def test_a_mask_of_the_same_shape_and_another_size_is_used(root, size):
    paint(root / "masks" / "a.png", size)
    assert sample_of(scan(root), "a.png").mask


def test_masks_that_cannot_be_used_leave_their_pictures_out(root):
    draw(root / "c.png", 3, "zwx c")
    (root / "masks" / "sub").mkdir(parents=True)
    Image.new("L", (96, 64)).save(root / "masks" / "a.png")
    paint(root / "masks" / "sub" / "b.jpg")
    data = (root / "masks" / "sub" / "b.jpg").read_bytes()
    (root / "masks" / "sub" / "b.jpg").write_bytes(data[:len(data) // 2])
    manifest = scan(root)
    left_out = reasons(manifest)
    assert names(manifest) == ["c.png"] and set(left_out) == {"a.png", "sub/b.jpg"}
    assert left_out["a.png"] == ("a.png has a mask that cannot be used: masks/a.png is black all over; paint white "
                                 "what is to be learned.")
    assert "sub/b.jpg has a mask that cannot be used: masks/sub/b.jpg is damaged" in left_out["sub/b.jpg"]
    assert "export or download it again" in left_out["sub/b.jpg"]


def test_a_mask_that_is_white_only_where_the_picture_is_cropped_away_leaves_it_out_when_it_is_read(root):
    draw(root / "tall.png", 3, "zwx tall", size=(64, 600))
    mask = Image.new("L", (64, 600))
    mask.paste(255, (0, 0, 64, 20))
    (root / "masks").mkdir()
    mask.save(root / "masks" / "tall.png")
    cached = fill(scan(root), root)
    assert [clip.name for clip in cached.samples] == ["a.png", "sub/b.jpg"]
    assert "masks/tall.png is black wherever the picture is trained on; paint white" in cached.left_out[0].reason


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize(("size", "resolution"), [((300, 200), 128), ((512, 384), 128), ((384, 512), 128),
                                                  ((401, 257), 64), ((900, 150), 128)])
def test_the_mask_lies_on_the_picture_as_it_is_cropped(root, size, resolution, shrink):
    shapes(size).save(root / "own.png")
    paint(root / "masks" / "own.png", (size[0] // shrink, size[1] // shrink))
    picture_HW, mask_HW = read(scan(root, resolution=resolution, upscale=True), root, "own.png")
    assert mask_HW.shape == picture_HW.shape and 0 <= mask_HW.min() and mask_HW.max() <= 1
    assert (mask_HW - picture_HW).abs().mean() < 0.02 and (mask_HW - picture_HW).abs().max() < 0.35
    for other_HW in (mask_HW.flip(0), mask_HW.flip(1), mask_HW.roll(1, 0), mask_HW.roll(1, 1)):
        assert (other_HW - picture_HW).abs().mean() > 0.04, "the measure tells one place from the next"


@pytest.mark.parametrize(("turned", "upright"), [("t.jpg", "masks/t.png"), ("masks/t.jpg", "t.png")])
def test_a_picture_and_its_mask_lie_on_each_other_as_exif_shows_them(root, turned, upright):
    exif = Image.Exif()
    exif[274] = 6  # shown turned clockwise by a quarter
    (root / "masks").mkdir()
    shapes((300, 200)).save(root / upright)
    shapes((300, 200)).transpose(Image.Transpose.ROTATE_90).save(root / turned, exif=exif, quality=95)
    picture_HW, mask_HW = read(scan(root, resolution=128), root, min(turned, upright, key=len))
    assert picture_HW.shape[1] > picture_HW.shape[0] and (mask_HW - picture_HW).abs().mean() < 0.02


def test_alpha_is_the_mask_where_it_is_asked_for(root):
    shape = shapes((300, 200)).convert("L")
    image = Image.new("RGB", (300, 200), "white")
    image.putalpha(shape)
    image.save(root / "cut out.png")
    manifest = scan(root, masks="alpha", alpha_color="black", resolution=128, upscale=True)
    assert [clip.name for clip in manifest.samples if clip.mask] == ["cut out.png"], "opaque pictures have none"
    picture_HW, mask_HW = read(manifest, root, "cut out.png")
    assert (mask_HW - picture_HW).abs().mean() < 0.02, "white on black, it is its own mask"
    assert all(read(scan(root, masks=masks), root, "cut out.png")[1] is None for masks in ("none", "folder"))


@pytest.mark.parametrize("masks", ["folder", "alpha", "none"])
def test_a_picture_that_is_transparent_all_over_is_left_out(root, masks):
    Image.new("RGBA", (96, 64), (255, 0, 0, 0)).save(root / "nothing.png")
    reason = reasons(scan(root, masks=masks))["nothing.png"]
    assert "nothing.png is transparent all over; export it again with something to see" in reason


@pytest.mark.parametrize(("color", "brightness"), [("white", 1), ("black", 0), ("#000", 0), ("red", 1 / 3),
                                                   ("#00ffff", 2 / 3), ("rgb(0, 0, 255)", 1 / 3)])
def test_the_chosen_color_lies_under_transparent_pictures(root, color, brightness):
    image = Image.new("RGBA", (96, 64), (128, 128, 128, 255))
    image.paste((7, 7, 7, 0), (0, 0, 48, 64))
    image.save(root / "half.png")
    picture_HW, _ = read(scan(root, alpha_color=color), root, "half.png")
    left, right = picture_HW.chunk(2, 1)
    torch.testing.assert_close(left[:, :-1], torch.full_like(left[:, :-1], brightness), atol=0.02, rtol=0)
    torch.testing.assert_close(right[:, 1:], torch.full_like(right[:, 1:], 128 / 255), atol=0.02, rtol=0)


def test_the_color_is_part_of_the_keys_of_transparent_pictures_alone(root):
    Image.new("RGBA", (96, 64), (128, 128, 128, 128)).save(root / "c.png")

    def keys(color):
        clips = scan(root, alpha_color=color).samples
        return {each.name: each.latent_paths for each in cache.locate(clips, Store(root), "vae", {"text": "umt5"})}

    white, black = keys("white"), keys("black")
    assert {name for name in white if white[name] != black[name]} == {"c.png"}
    assert white == keys("#ffffff") == keys("#FFF")


def test_a_color_that_is_none_is_named():
    with pytest.raises(UserError, match="alpha_color is 'whitish'; write a name such as white, or #rrggbb"):
        DatasetConfig(folder="x", alpha_color="whitish")


class Denoiser:
    """Gives the velocity it was made with."""

    device = torch.device("cpu")
    compute_dtype = torch.float32

    def __init__(self, velocity_BCFHW) -> None:
        self.given = velocity_BCFHW

    def velocity(self, x_BCFHW, t_B, conditions):
        return self.given

    def training(self):
        return nullcontext()


def loss(velocity, latent, noise, mask=None):
    text, t = torch.zeros(len(latent), 1, 8), torch.full((len(latent),), 0.5)
    return objective.denoising_loss(Denoiser(velocity), latent, {"text": text}, t, noise, mask)


@pytest.fixture
def tensors():
    """velocity, latent and noise of two samples of two latent frames."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 16, 2, 6, 8, generator=generator) for _ in range(3)]


def test_the_loss_under_a_mask_is_the_plain_loss_of_what_is_white(tensors):
    mask = torch.zeros(2, 1, 1, 6, 8)
    mask[0, :, :, 1:4, 2:7] = 1
    mask[1, :, :, 5, 0] = 1
    first = loss(*(each[:1, ..., 1:4, 2:7] for each in tensors))
    second = loss(*(each[1:, ..., 5:, :1] for each in tensors))
    torch.testing.assert_close(loss(*tensors, mask), torch.cat([first, second]))


@pytest.mark.parametrize("grey", [1.0, 0.25])
def test_a_mask_of_one_grey_is_no_mask(tensors, grey):
    torch.testing.assert_close(loss(*tensors, torch.full((2, 1, 1, 6, 8), grey)), loss(*tensors), rtol=1e-6, atol=0)


def test_half_the_masked_area_does_not_change_the_loss_of_an_error_that_is_the_same_everywhere(tensors):
    _, latent, noise = tensors
    mask = torch.zeros(2, 1, 1, 6, 8)
    mask[0, ..., :4], mask[1, ..., :2] = 1, 0.5
    torch.testing.assert_close(loss(noise - latent + 3, latent, noise, mask), torch.tensor([9.0, 9.0]))


def test_what_is_black_has_no_gradient(tensors):
    velocity, latent, noise = tensors
    velocity.requires_grad_()
    mask = torch.zeros(2, 1, 1, 6, 8)
    mask[..., :3] = 1
    loss(velocity, latent, noise, mask).sum().backward()
    assert (velocity.grad[..., 3:] == 0).all() and (velocity.grad[..., :3] != 0).all()


def test_samples_with_and_without_masks_share_a_batch(root, tensors):
    paint(root / "masks" / "a.png")
    cached = fill(scan(root), root)
    bare = replace(cached.samples[0], mask_path=None)
    batch = read_batch([cached.samples[0].visit(0), bare.visit(0)], WAN21_T2V.conditions)
    height, width = batch.latent_BCFHW.shape[-2:]
    assert batch.mask_B11HW.shape == (2, 1, 1, height, width) and (batch.mask_B11HW[1] == 1).all()
    assert 0.05 < batch.mask_B11HW[0].mean() < 0.8
    velocity, noise = torch.randn(2, *batch.latent_BCFHW.shape, generator=torch.Generator().manual_seed(0))
    together = loss(velocity, batch.latent_BCFHW, noise, batch.mask_B11HW)
    alone = loss(velocity[1:], batch.latent_BCFHW[1:], noise[1:])
    torch.testing.assert_close(together[1:], alone)


def test_a_mask_lies_on_every_frame_of_a_clip(root):
    clips.at_rate(root / "clip.mp4", 16, 20)
    paint(root / "masks" / "clip.png", (128, 128))
    manifest = scan(root, frame_buckets=(1, 17))
    assert sample_of(manifest, "clip.mp4").mask.name == "masks/clip.png"
    cached = [clip for clip in fill(manifest, root).samples if clip.name == "clip.mp4"]
    batch = read_batch([cached[0].visit(0)], WAN21_T2V.conditions)
    assert batch.latent_BCFHW.shape == (1, 16, 5, 8, 8) and batch.mask_B11HW.shape == (1, 1, 1, 8, 8)
    latent = batch.latent_BCFHW
    velocity = torch.where(batch.mask_B11HW == 0, 1e6, torch.zeros_like(latent)) + 1 - latent
    torch.testing.assert_close(loss(velocity, latent, torch.zeros_like(latent), batch.mask_B11HW), torch.ones(1))
