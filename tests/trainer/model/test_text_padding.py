"""A few rows and a bias against 512 padded rows, through plain attention."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from wantune.trainer.model import text_padding

WIDTH = 32


def texts(*lengths: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def attend(query, text, bias=None):
    """Attention with key and value projections that have a bias, as Wan's have: a zero row gives no zero key."""
    generator = torch.Generator().manual_seed(1)
    key, value = torch.randn(2, WIDTH, WIDTH, generator=generator).to(text)
    offset = torch.randn(2, WIDTH, generator=generator).to(text)
    mask = None if bias is None else bias[:, None].to(text)
    return scaled_dot_product_attention(query.to(text), text @ key + offset[0], text @ value + offset[1], mask)


@pytest.mark.parametrize("numbers_are_few", [False, True])
@pytest.mark.parametrize("lengths", [(1,), (40,), (40, 7, 300), (511,), (512,), (512, 3), (600, 5)])
def test_attention_is_that_to_the_padded_text(lengths, numbers_are_few):
    query = torch.randn(len(lengths), 9, WIDTH)
    folded, bias = text_padding.fold(texts(*lengths), torch.float32, 512, numbers_are_few=numbers_are_few)
    for index, length in enumerate(lengths):
        alone = text_padding.pad(texts(*lengths)[index:index + 1, :length], 512)
        expected = attend(query[index:index + 1].double(), alone.double())
        found = attend(query[index:index + 1].double(), folded[index:index + 1].double(), bias[index:index + 1])
        assert (found - expected).norm() / expected.norm() <= 1e-6


def test_it_does_not_matter_whether_the_text_is_padded_already():
    text = texts(40, 7)
    for a, b in zip(text_padding.fold(text, torch.float32, 512),
                    text_padding.fold(text_padding.pad(text, 512), torch.float32, 512), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_rows_weigh_what_the_padding_weighs(dtype):
    for own in range(0, 513, 7):
        logits = text_padding._logits(512 - own, dtype)
        assert sum(map(math.exp, logits)) == pytest.approx(512 - own, rel=1.1e-6)
        assert torch.tensor(logits, dtype=dtype).tolist() == logits and len(logits) <= text_padding.MAX_ROWS


def test_there_are_few_rows_and_never_as_many_as_the_video_has():
    folded, bias = text_padding.fold(texts(20), torch.bfloat16, 512)
    assert folded.shape[1] == bias.shape[1] == 24
    assert text_padding.fold(texts(20), torch.bfloat16, 512, other_than=24)[0].shape[1] == 32


def test_on_a_card_the_number_of_rows_takes_few_values():
    def rows(own: int, other_than: int = 0) -> int:
        folded, bias = text_padding.fold(texts(own), torch.bfloat16, 512, other_than, numbers_are_few=True)
        assert folded.shape[1] == bias.shape[1]
        return bias.shape[1]

    assert {rows(own) for own in range(509)} == set(text_padding.FEW)
    assert rows(511) == rows(512) == 512 and rows(513) == 640 and rows(641) == 768
    assert rows(20) == 32 and rows(20, other_than=32) == 64 and rows(500, other_than=512) == 640


def test_rows_of_an_empty_text():
    folded, bias = text_padding.fold(torch.zeros(1, 3, WIDTH), torch.float32, 512)
    assert folded.shape[1] == 8 and bias.exp().sum().item() == pytest.approx(512, rel=1e-6)


@pytest.mark.parametrize("are_few", [False, True])
def test_the_most_rows_are_known_by_the_longest_text(are_few):
    for longest in (0, 1, 20, 28, 29, 60, 61, 124, 380, 508, 509, 512, 513, 700):
        for other_than in (0, 64, 512):
            rows = [text_padding.fold(texts(own), dtype, 512, other_than, are_few)[0].shape[1]
                    for own in {longest, longest // 2} for dtype in (torch.float32, torch.bfloat16) if own]
            most = text_padding.most_rows(longest, 512, other_than, are_few)
            assert max(rows, default=0) <= most
            if longest > text_padding.MAX_ROWS:
                fewer = text_padding.most_rows(longest - text_padding.MAX_ROWS, 512, other_than, are_few)
                assert max(rows) >= fewer, "it is not far above what there is"
