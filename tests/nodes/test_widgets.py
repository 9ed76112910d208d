"""The keys of a settings file are the widgets of the nodes."""

import asyncio

import pytest
from comfy_api.latest import io

from wantune.nodes import WanTuneExtension
from wantune.nodes.page import routes
from wantune.trainer.job.settings import PreviewPlan
from wantune.trainer.job.widgets import MADE_FOR, SECTIONS
from wantune.trainer.model import families

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


@pytest.mark.parametrize(("shift", "steps"), [(1.0, 4), (3.0, 15), (5.0, 30), (8.0, 999)])
def test_the_noise_levels_of_previews_are_those_of_the_sampler(shift, steps):
    from wantune.nodes.media.sampling import sigmas_in_training

    levels = tuple(round(level, 6) for level in sigmas_in_training(shift, steps).tolist())
    assert PreviewPlan(prompts=(), shift=shift, steps=steps).sigmas == levels
