"""Nested state becomes JSON and safetensors, and what comes back is what it was."""

import json
import math
from collections import OrderedDict, defaultdict
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.trainer.runs.state import put_together, take_apart

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8,
          torch.uint8, torch.bool, torch.float8_e4m3fn]


def through_files(value, folder):
    data, tensors = take_apart(value)
    (folder / "data.json").write_text(json.dumps(data, allow_nan=False), encoding="ascii")
    save_file(tensors, folder / "tensors.safetensors")
    read = json.loads((folder / "data.json").read_text(encoding="ascii"))
    return put_together(read, load_file(folder / "tensors.safetensors"))


def is_same(first, second) -> bool:
    """Of one type, bit for bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        return same and first.contiguous().reshape(-1).view(torch.uint8).equal(
            second.contiguous().reshape(-1).view(torch.uint8))
    if isinstance(first, dict):
        return is_same(list(first.items()), list(second.items()))
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(is_same, first, second))
    if isinstance(first, float):
        return math.copysign(1, first) == math.copysign(1, second) and (first == second or first != first != second)
    return first == second


@pytest.mark.parametrize("value", [
    None, True, False, 0, 1, -5, 2**70, 0.1, -0.0, 1e-310, 1.7976931348623157e308, math.nan, math.inf, -math.inf, "",
    "nan", "map", "a\n\u00e4\U0001f600", torch.float32, torch.bfloat16, torch.float8_e4m3fn, [], (), {}, [[]], ((),),
    (1,), [(1, [2.5, None]), {}], {"map": {"tuple": ["dtype", {"float": "nan"}]}},
    {0: "a", 1: "b", "0": "c", None: 1, True + 1: 2, 2.5: 3, (1, "x"): 4}, {"betas": (None, 0.99), "lr": math.nan},
], ids=repr)
def test_plain_values_come_back_as_they_were(value, tmp_path):
    assert is_same(through_files(value, tmp_path), value)
    assert is_same(through_files({"in": [(value,)]}, tmp_path), {"in": [(value,)]})


def test_whole_numbers_and_their_text_stay_two_keys_and_the_order_stays(tmp_path):
    value = {5: "five", "5": "text", 3: "three"}
    assert list(through_files(value, tmp_path).items()) == list(value.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (4, 3)], ids=str)
def test_tensors_come_back_bit_for_bit(dtype, shape, tmp_path):
    random = torch.Generator().manual_seed(0)
    tensor = (8 * torch.randn(shape, generator=random)).to(dtype)
    assert is_same(through_files([tensor], tmp_path), [tensor])


def test_what_is_not_finite_in_a_tensor_stays(tmp_path):
    tensor = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    assert is_same(through_files(tensor, tmp_path), tensor)


def test_views_parameters_and_the_same_tensor_twice_come_back(tmp_path):
    """safetensors refuses tensors that share memory."""
    whole = torch.arange(12.0).reshape(3, 4)
    value = [whole, whole, whole.T, whole[1:, ::2], whole[0].expand(5, 4), torch.nn.Parameter(whole[0])]
    back = through_files(value, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(back, value, strict=True))
    assert not any(tensor.requires_grad for tensor in back)


def test_an_optimizer_s_state_comes_back_whole(tmp_path):
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}, 1: {"RMS": 0.0, "z": torch.ones(0)}},
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99), "fused": None, "d": 1e-6, "dtype": torch.bfloat16,
                          "d_hat": -math.inf, "params": [0, 1]}]}
    assert is_same(through_files(state, tmp_path), state)


def test_other_kinds_of_maps_come_back_as_plain_ones(tmp_path):
    values = defaultdict(dict, {1: OrderedDict(b=1, a=2)})
    assert is_same(through_files(values, tmp_path), {1: {"b": 1, "a": 2}})


def test_the_tensors_are_copies():
    tensor = torch.zeros(3)
    data, tensors = take_apart({"a": tensor})
    tensor += 1
    assert torch.equal(put_together(data, tensors)["a"], torch.zeros(3))
    (taken,) = tensors.values()
    taken += 5
    assert torch.equal(tensor, torch.ones(3))


def test_every_tensor_has_a_name_of_its_own_and_json_has_none_of_their_values():
    data, tensors = take_apart([torch.full((2,), float(i)) for i in range(1500)])
    assert len(tensors) == 1500 and [tensors[name][0].item() for name in sorted(tensors)] == list(range(1500))
    assert len(json.dumps(data)) < 1500 * 40


@pytest.mark.parametrize("value", [1j, b"bytes", {1, 2}, object(), len, range(3), torch.device("cpu"), Fraction(1, 2),
                                   torch.Generator()], ids=lambda value: type(value).__name__)
def test_anything_else_is_refused_by_its_name(value):
    for place in (value, [value], (value,), {"a": {0: value}}):
        with pytest.raises(TypeError, match=f"{type(value).__name__} cannot be written as JSON"):
            take_apart(place)


@pytest.mark.parametrize("value", ["tensor:", "tensor:000000", ["tensor:a", torch.ones(1)], {"tensor:000000": 1}],
                         ids=repr)
def test_a_text_that_looks_like_a_tensor_s_name_stays_text(value, tmp_path):
    try:
        assert is_same(through_files(value, tmp_path), value)
    except KeyError as error:
        raise AssertionError from error
