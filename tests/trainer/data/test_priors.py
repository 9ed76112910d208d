"""Prior captions: what is said without the trigger word, on which the model should stay as it was."""

import pytest

from wantune.tests.support.folders import draw, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import manifest, priors
from wantune.trainer.settings.data import DatasetConfig, parse_prompts


def of(caption: str, trigger: str = "zwx", **settings) -> tuple[str, ...]:
    return priors.prior_captions([caption, "another one of zwx"], DatasetConfig(
        folder="", trigger_word=trigger, **settings))


@pytest.mark.parametrize(("caption", "without"), [
    ("zwx, a man in a park", "a man in a park"), ("a man in a park, zwx", "a man in a park"),
    ("portrait, zwx, outdoors", "portrait, outdoors"), ("a man called zwx, smiling", "a man called, smiling"),
    ("a photo of zwx in a park", "a photo of in a park"), ("zwx walks, zwx runs", "walks, runs"),
    ("a photo of zwx.", "a photo of."), ("a man, zwx.", "a man."), ("(zwx, smiling)", "(smiling)"),
    ("zwx's hat", "hat"), ("the hat of zwx\u2019s dog", "the hat of dog"), ("zwx, zwx, a hat", "a hat"),
    ("\u4e00\u5f20zwx\u7684\u7167\u7247", "\u4e00\u5f20\u7684\u7167\u7247"),
    ("\u4e00\u4e2a\u7537\u4eba\uff0czwx\u5728\u7b11", "\u4e00\u4e2a\u7537\u4eba\uff0c\u5728\u7b11"),
    ("zwxy and zwx", "zwxy and"),
])
def test_without_a_class_word_the_trigger_word_is_taken_out_and_what_stood_around_it_tidied(caption, without):
    assert of(caption) == (without, "")


def test_a_class_word_takes_its_place_everywhere():
    assert of("zwx and zwx's dog, zwxy", class_word=" a person ") == ("a person and a person's dog, zwxy", "")
    assert of(r"a (b), c", trigger="a (b)", class_word=r"\1") == (r"\1, c", "")


def test_the_users_prompts_follow_and_the_empty_one_is_last_each_once():
    prompts = parse_prompts(" a dog \n\n a cat\na dog\n")
    assert prompts == ("a dog", "a cat")
    assert of("zwx, a dog", preserve_prompts=prompts) == ("a dog", "a cat", "")
    assert of("zwx") == ("",), "nothing is left of it"


def test_a_caption_without_the_trigger_word_says_nothing_of_the_prior():
    assert of("a man", preserve_prompts=("a dog",)) == ("a dog", "")
    assert of("a man", trigger="") == ("",)
    assert of("a a b b", trigger="a b") == ("",), "what would still have it"


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"class_word": "a zwx person"}, 'class_word "a zwx person" has the trigger word "zwx" in it; write what that is'),
    ({"preserve_prompts": ("a dog", "zwx, a dog")}, 'preserve_prompts has "zwx, a dog" with the trigger word "zwx"'),
])
def test_the_trigger_word_is_refused_in_them(tmp_path, settings, sentence):
    draw(tmp_path / "one" / "a.png", 1)
    with pytest.raises(UserError, match=sentence):
        scan(tmp_path / "one", trigger_word="zwx", **settings)
    draw(tmp_path / "two" / "b.png", 2)
    parts = [scan(tmp_path / "one", trigger_word="zwx"), scan(tmp_path / "two", trigger_word="qqq", **settings)]
    with pytest.raises(UserError, match=sentence):
        manifest.join(parts)


def test_they_are_a_samples_own_and_change_no_digest_but_their_own(tmp_path):
    draw(tmp_path / "a.png", 1)
    (tmp_path / "a.txt").write_text("zwx, a man")
    plain = scan(tmp_path, trigger_word="zwx")
    other = scan(tmp_path, trigger_word="zwx", class_word="a person", preserve_prompts=("a dog",))
    assert plain.samples[0].prior_captions == ("a man", "")
    assert other.samples[0].prior_captions == ("a person, a man", "a dog", "")
    assert (plain.digest, plain.former_digest) == (other.digest, other.former_digest)
    assert plain.prior_digest != other.prior_digest == scan(
        tmp_path, trigger_word="zwx", class_word="a person", preserve_prompts=("a dog",)).prior_digest
