"""The keys of a settings file are the widgets of the nodes."""

import asyncio
from dataclasses import replace

import pytest
from comfy_api.latest import io

from wantune.nodes import WanTuneExtension
from wantune.nodes.page import routes
from wantune.trainer.job import configs
from wantune.trainer.job.widgets import MADE_FOR, SECTIONS
from wantune.trainer.model import families
from wantune.trainer.settings.adapter import LoraConfig
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import ObjectiveConfig, TrainConfig

TYPES = {io.Int: int, io.Float: float, io.String: str, io.Combo: str, io.Boolean: bool}


@pytest.fixture(scope="module")
def schemas():
    """The schema of each node, by its display name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "register", lambda: None)
        nodes = asyncio.run(WanTuneExtension().get_node_list())
    return {schema.display_name: schema for schema in (node.define_schema() for node in nodes)}


@pytest.mark.parametrize("section", [each for each in SECTIONS.values() if each.display_name], ids=lambda it: it.name)
def test_a_section_has_the_widgets_of_its_node(section, schemas):
    assert section.name == section.display_name.lower().replace(" ", "_")
    widgets = {each.id: each for each in schemas[section.display_name].inputs
               for kind in TYPES if isinstance(each, kind.Input)}
    keys = {each.name: each for each in section.widgets if not each.is_beyond}
    assert list(keys) == list(widgets), "in the order of the node"
    for name, key in keys.items():
        widget = widgets[name]
        kind = next(type for node, type in TYPES.items() if isinstance(widget, node.Input))
        assert (key.type, key.default, list(key.choices)) == (kind, widget.default, list(_choices(widget))), name
        assert key.help.endswith(".")


def _choices(widget) -> list[str]:
    is_comfyuis = widget.id in ("sampler_name", "scheduler")  # which differ from version to version
    return [] if not isinstance(widget, io.Combo.Input) or is_comfyuis else widget.options


def test_every_settings_node_has_a_section(schemas):
    told = {name for name in schemas if name.endswith(" Settings")} | {"Load Dataset", "Train Wan LoRA"}
    assert told == {each.display_name for each in SECTIONS.values() if each.display_name}
    assert MADE_FOR == tuple(families.DATASETS)


def test_records_go_through_widgets_and_back_unchanged():
    dataset = DatasetConfig(folder="/a", family="Wan2.2 5B", frame_buckets=(1, 17), more_resolutions=(256, 768),
                            preserve_prompts=("a dog", "a cat"), condition="first frame", num_repeats=3)
    sections = configs.of_dataset(dataset, "/a")
    settings = configs.dataset_settings(**sections.pop("dataset_settings"))
    assert configs.dataset_config(**sections, settings=settings) == dataset
    train = TrainConfig(lora=LoraConfig(rank=3, kind="loha", dropout=0.5), epochs=7, deterministic=True, objective=(
        ObjectiveConfig(boundary=0.3, window="high expert")))
    assert configs.train_config(**_widgets(configs.of_train(train))) == train
    sampled = replace(train, objective=ObjectiveConfig(timesteps="as sampled", sigmas=(1.0, 0.5, 0.0)))
    assert configs.of_train(sampled)["timestep_and_loss_settings"]["sigmas"] == "1.0, 0.5, 0.0"


def _widgets(sections: dict) -> dict:
    """What the settings nodes make of their widgets, with those of Train Wan LoRA."""
    return {**sections["train_wan_lora"], "adapter": sections["adapter_settings"],
            "objective": ObjectiveConfig(**sections["timestep_and_loss_settings"])}
