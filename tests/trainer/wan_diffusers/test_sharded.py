"""A model that processes hold together, or each for itself, is trained to the adapter of one process."""

import os

import pytest

from wantune.tests.support import wan_models
from wantune.tests.support.ranked import Ranked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes that have torch loaded")

CLOSE = 1e-5


@pytest.fixture(scope="module")
def workers():
    running = Ranked()
    yield running
    running.close()


@pytest.fixture(scope="module")
def alone(workers, tmp_path_factory):
    """The model's file, and what one process learns on it."""
    folder = tmp_path_factory.mktemp("alone")
    file = wan_models.write("Wan2.1 T2V", folder / "wan.safetensors")
    done = workers.run("train_wan", 1, folder / "one", file=str(file))
    assert done.codes == [0], done.said
    return file, done.results[0]


@pytest.mark.parametrize("is_sharded, count", [
    (True, 2), pytest.param(False, 2, marks=pytest.mark.long), pytest.param(True, 4, marks=pytest.mark.long),
    pytest.param(False, 4, marks=pytest.mark.long)])
def test_the_adapter_is_that_of_one_process(workers, alone, tmp_path, is_sharded, count):
    file, expected = alone
    done = workers.run("train_wan", count, tmp_path / "several", file=str(file), is_sharded=is_sharded)
    assert done.codes == [0] * count, done.said
    for result in done.results:
        assert result["losses"] == pytest.approx(expected["losses"], rel=CLOSE)
        assert result["lora"].keys() == expected["lora"].keys()
        for name, values in expected["lora"].items():
            assert result["lora"][name] == pytest.approx(values, abs=CLOSE), name
        share = result["numbers"] / expected["numbers"]
        assert share == pytest.approx(1 / count, rel=0.05) if is_sharded else share == 1
