"""What a run is taken to need, from its data and its model."""

from __future__ import annotations

import pytest
import torch

from wantune.tests.support import small_model
from wantune.tests.support.small_model import SmallModel
from wantune.trainer.encoded.store import Store
from wantune.trainer.model import text_padding
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.training import TrainConfig
from wantune.trainer.training.memory import needs


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("length", [1, 40, 58, 62, 150, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_rows_are_those_that_a_step_computes_with(tmp_path, device, length, dtype):
    """Of as many tokens as the longest text has: 62 take 96 rows on a card, and 72 on a CPU."""
    dataset = small_model.dataset(tmp_path)
    text_LD = torch.randn(length, WAN21_T2V.text_width).to(dtype)
    (path,) = {caption["text"] for sample in dataset.samples for caption in sample.captions}
    Store(tmp_path).write(path, text_LD)
    model = SmallModel()
    model.device = torch.device(device)
    found = needs(model, dataset, TrainConfig()).work
    text_BKD, _ = text_padding.fold(
        text_LD[None].float(), torch.bfloat16, WAN21_T2V.text_length, found.tokens, numbers_are_few=device != "cpu")
    rows = text_BKD.shape[1]
    assert rows <= found.text_rows <= rows + text_padding.ROW_MULTIPLE * (device == "cpu")
