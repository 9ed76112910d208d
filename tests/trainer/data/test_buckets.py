"""Training sizes."""

import pytest

from wantune.trainer.base.errors import UserError
from wantune.trainer.data import buckets
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.data import parse_frame_buckets


@pytest.mark.parametrize("resolution", [64, 256, 512, 768, 1024])
def test_sides_are_multiples_of_16_and_the_area_is_kept(resolution):
    for width, height in buckets.sizes(resolution, 16):
        assert width % 16 == 0 and height % 16 == 0
        assert max(width, height) / min(width, height) <= buckets.MAX_ASPECT
        if resolution >= 256:
            assert width * height == pytest.approx(resolution**2, rel=0.07)


def test_a_bucket_and_its_turned_twin_are_both_there():
    assert {(height, width) for width, height in buckets.sizes(512, 16)} == set(buckets.sizes(512, 16))


@pytest.mark.parametrize(("width", "height", "expected"), [
    (512, 512, Bucket(1, 512, 512)), (4000, 4000, Bucket(1, 512, 512)), (1920, 1080, Bucket(1, 384, 688)),
    (1080, 1920, Bucket(1, 688, 384)), (20000, 1000, Bucket(1, 256, 1024)),
])
def test_the_nearest_aspect_ratio_is_chosen(width, height, expected):
    assert buckets.choose(width, height, 512, 16) == expected


def test_little_is_cropped():
    for width, height in [(640, 480), (3000, 2000), (1000, 1400), (1280, 720), (777, 1033)]:
        bucket = buckets.choose(width, height, 512, 16)
        scale = max(bucket.width / width, bucket.height / height)
        kept = bucket.width * bucket.height / (width * height * scale * scale)
        assert kept > 0.93


def test_tokens_are_patches_of_the_latent():
    assert WAN21_T2V.num_tokens(Bucket(1, 512, 512)) == 32 * 32
    assert WAN21_T2V.num_tokens(Bucket(33, 480, 832)) == 9 * 30 * 52


@pytest.mark.parametrize(("text", "expected"), [
    ("1, 33", (1, 33)), ("33", (1, 33)), ("", (1,)), ("81,17;1", (1, 17, 81)), ("1\uff0c33\uff1b17", (1, 17, 33)),
])
def test_frame_buckets_are_read(text, expected):
    assert parse_frame_buckets(text) == expected


@pytest.mark.parametrize(("text", "named"), [("1, 30", "29"), ("x", "'x'"), ("0", "1"), ("-3", "1"), ("1.5", "'1.5'")])
def test_wrong_frame_buckets_are_named(text, named):
    with pytest.raises(UserError, match=named):
        for frames in parse_frame_buckets(text):
            WAN21_T2V.check_frames(frames)
