"""Settings become the device that workers compute on, and the memory that they give to keys and values there."""

from pathlib import Path

import pytest
import torch

from mint_stream.app.serve_parts import chosen_device, kv_cache_bytes
from mint_stream.errors import InvalidSettings
from mint_stream.kernels.warming import warm
from mint_stream.model.base import load_base
from mint_stream.settings import ServingSettings, Settings
from tests.factories import tiny_base

here = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here, and is found: tests/gpu shows it")


def test_a_cpu_can_be_asked_for_anywhere() -> None:
    assert chosen_device(Settings(device="cpu")) == torch.device("cpu")


@here
def test_auto_is_a_cpu_where_there_is_no_gpu_and_a_gpu_that_is_not_there_is_refused() -> None:
    assert chosen_device(Settings()) == torch.device("cpu")
    with pytest.raises(InvalidSettings, match="MINT_DEVICE is cuda, and torch sees no CUDA device"):
        chosen_device(Settings(device="cuda"))


def test_another_device_is_refused_by_the_name_of_the_setting() -> None:
    with pytest.raises(InvalidSettings, match="MINT_DEVICE"):
        Settings.load(device="tpu")


def test_on_a_cpu_keys_and_values_are_in_slots_whatever_is_set(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"), dtype=torch.float32)
    assert kv_cache_bytes(base, ServingSettings(kv_cache_bytes=1 << 30)) is None


@here
def test_nothing_is_compiled_where_torch_computes() -> None:
    assert warm(torch.device("cpu"), torch.float32) == 0
