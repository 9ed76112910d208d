"""Which modules an adapter's settings choose, and the sentences about settings that make no sense."""

import json
from dataclasses import asdict

import pytest

from wantune.trainer.adapter.adapter_kinds import chosen
from wantune.trainer.base.errors import UserError
from wantune.trainer.settings.training import LoraConfig

NAMES = [f"blocks.{i}.{name}" for i in range(3) for name in (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
    "cross_attn.o", "ffn.0", "ffn.2")]


def test_blocks_count_as_numbers():
    names = [f"blocks.{i}.ffn.0" for i in range(12)]
    assert chosen(LoraConfig(first_block=2, last_block=10), names) == names[2:11]


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"targets": "atn"}, r"targets is 'atn', which is found in none of the 30 modules, such as blocks.0.self_attn.q"),
    ({"first_block": 3}, "The model has no block 3, its last is 2; choose a smaller first_block"),
    ({"first_block": 1, "last_block": 1, "targets": "blocks.2"}, "found in none of the 10 modules, such as blocks.1"),
])
def test_a_choice_of_nothing_is_named(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        chosen(LoraConfig(**settings), NAMES)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"kind": "dora"}, "kind is 'dora'; choose one of lora, rslora, lokr, loha"),
    ({"dropout": 1.0}, "dropout is 1.0; choose 0 or more, below 1"),
    ({"dropout": float("nan")}, "dropout is nan"),
    ({"targets": "("}, r"targets is '\(', which is no regular expression"),
    ({"targets": " "}, "targets is empty; choose all"),
    ({"first_block": -1}, "first_block is -1; choose 0 or more"),
    ({"last_block": -2}, "last_block is -2; choose -1 or more"),
    ({"first_block": 5, "last_block": 4}, "The blocks are 5 to 4; choose last_block"),
    ({"lokr_factor": 0}, "lokr_factor is 0; choose 2 to 1024, or -1"),
])
def test_settings_out_of_range_are_named(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        LoraConfig(**settings)


def test_settings_are_plain_data():
    config = LoraConfig(kind="lokr", targets="attention", dropout=0.1)
    assert LoraConfig(**json.loads(json.dumps(asdict(config)))) == config
