"""From widgets to records."""

import pytest

from wantune.trainer.base.errors import UserError
from wantune.trainer.job import configs
from wantune.trainer.settings.adapter import LoraConfig


def test_an_alpha_of_0_is_the_rank_and_the_record_has_the_number():
    equal = configs.train_config(rank=16, alpha=16.0, adapter={"kind": "rslora"})
    assert configs.train_config(rank=16, alpha=0.0, adapter={"kind": "rslora"}) == equal
    assert configs.train_config("quick try", alpha=0).lora == LoraConfig(rank=16, alpha=16.0)
    assert equal.lora.alpha == configs.of_train(equal)["train_wan_lora"]["alpha"] == 16


def test_any_other_alpha_is_itself_and_none_is_32_whatever_the_rank():
    assert configs.train_config(rank=16).lora.alpha == 32
    assert configs.train_config(rank=16, alpha=0.5).lora.alpha == 0.5
    with pytest.raises(UserError, match="alpha is -1"):
        configs.train_config(alpha=-1.0)
