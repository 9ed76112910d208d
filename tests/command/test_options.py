"""Each widget has a flag, which overrules the settings; --help names all of them with their defaults."""

import re

import pytest

from wantune.command import options
from wantune.command.parsers import parser
from wantune.trainer.base.errors import UserError
from wantune.trainer.job.widgets import SECTIONS

EVERY = [(section.name, widget) for section in SECTIONS.values() for widget in section.widgets]


def another(widget):
    """A value of the widget that is not its default, and how it is written as flags."""
    if widget.type is bool:
        return not widget.default
    if widget.choices:
        return next(choice for choice in widget.choices if choice != widget.default)
    return {int: 3, float: 0.25, str: "something"}[widget.type]


def flags_of(flag: str, value) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, str(value)]


@pytest.mark.parametrize("section, widget", EVERY, ids=[f"{section}.{widget.name}" for section, widget in EVERY])
def test_each_flag_overrules_the_file(section, widget):
    value = another(widget)
    arguments = parser().parse_args(["train", *flags_of(options.flag_of(section, widget.name), value)])
    before = {section: {widget.name: widget.default, "other": 1}}
    if section == "dataset_settings":
        before = {"load_dataset": [{"dataset_settings": before[section]}]}
    found = options.merged(before, options.given(arguments))
    if section == "dataset_settings":
        found = found["load_dataset"][0]
    found = found[section]
    assert (found[0] if isinstance(found, list) else found) == {widget.name: value, "other": 1}


def test_help_names_each_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["train", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for section, widget in EVERY:
        flags = options.flag_of(section, widget.name), f"--{widget.name.replace('_', '-')}"
        described = re.search(rf"(?:{'|'.join(map(re.escape, flags))})[ ,].{{0,700}}?Default: ", text)
        assert described, f"{section}.{widget.name}"
        assert all(choice in text for choice in widget.choices)
        assert " ".join(widget.help.split()) in text.replace("- ", "-") or widget.help.split()[0] in text
    assert "Default: 0.0001." in text and "GiB of the card" in text and "in pixels" in text


def test_short_flags_mean_the_section_that_one_would_expect():
    arguments = parser().parse_args(
        ["train", "--seed", "5", "--shift", "3", "--folder", "pictures", "--model", "m", "--rank=8"])
    assert options.given(arguments) == {
        "train_wan_lora": {"seed": 5, "rank": 8}, "timestep_and_loss_settings": {"shift": 3.0},
        "load_dataset": {"folder": "pictures"}, "models": {"model": "m"}}
    assert options.given(parser().parse_args(["sample", "--seed", "5"])) == {"preview_settings": {"seed": 5}}


def test_flags_of_datasets_are_for_all_of_them():
    sections = {"load_dataset": [{"folder": "a"}, {"folder": "b", "dataset_settings": {"masks": "none"}}]}
    found = options.merged(sections, {"load_dataset": {"resolution": 256}, "dataset_settings": {"masks": "alpha"}})
    assert found["load_dataset"] == [
        {"folder": "a", "resolution": 256},
        {"folder": "b", "resolution": 256, "dataset_settings": {"masks": "alpha"}}]
    assert found["dataset_settings"] == {"masks": "alpha"}
    assert sections["load_dataset"][1]["dataset_settings"] == {"masks": "none"}, "the file's own stays as it is"
    with pytest.raises(UserError, match="--folder is given, but the settings have 2 datasets"):
        options.merged(sections, {"load_dataset": {"folder": "c"}})
