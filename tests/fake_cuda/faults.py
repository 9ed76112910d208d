"""Faults that a GPU would show and a CPU does not, planted by patching functions of the project or of ComfyUI.

Each leaves the result of training as it is: nothing but the device, the memory, the bus or the clock tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Inside the context the code has the fault of FAULTS with this name; "" for none.

    Raises:
        ValueError: there is no such fault.
    """
    if not name:
        yield
        return
    if name not in FAULTS:
        raise ValueError(f"There is no fault {name!r}; choose one of {', '.join(FAULTS)}.")
    place, attribute, changed = FAULTS[name]()
    with patch.object(place, attribute, changed(getattr(place, attribute))):
        yield


Patch = tuple[object, str, Callable[[Callable], Callable]]
"""Where a function is, its name, and what makes the faulty one of it."""


def _bias_on_cpu() -> Patch:
    from wantune.nodes.backend import attention

    def changed(attend):
        def faulty(q_BLD, k_BLD, v_BLD, heads, bias=None):
            return attend(q_BLD, k_BLD, v_BLD, heads, None if bias is None else bias.cpu())
        return faulty

    return attention, "attend", changed


def _loss_argument_on_cpu(position: int) -> Callable[[], Patch]:
    def patched() -> Patch:
        from wantune.trainer.training import objective

        def changed(loss):
            def faulty(*args, **kwargs):
                return loss(*(arg.cpu() if number == position else arg for number, arg in enumerate(args)), **kwargs)
            return faulty

        return objective, "denoising_loss", changed

    return patched


def _adapter_on_cpu() -> Patch:
    from wantune.trainer.adapter.adapters import Adapter

    def changed(init):
        def faulty(adapter, config, linears, device, *args, **kwargs):
            init(adapter, config, linears, torch.device("cpu"), *args, **kwargs)
        return faulty

    return Adapter, "__init__", changed


def _kept_twice() -> Patch:
    from wantune.trainer.training.loop import Trainer

    def changed(train_step):
        def faulty(trainer):
            with torch.autograd.graph.saved_tensors_hooks(lambda x: (x, x.clone()), lambda kept: kept[0]):
                return train_step(trainer)
        return faulty

    return Trainer, "train_step", changed


def _fetched_twice() -> Patch:
    import comfy.ops

    def changed(cast):
        def faulty(module, *args, **kwargs):
            first = cast(module, *args, **kwargs)
            if kwargs.get("offloadable"):
                comfy.ops.uncast_bias_weight(module, *first)
            return cast(module, *args, **kwargs)
        return faulty

    return comfy.ops, "cast_bias_weight", changed


def _pin_kept() -> Patch:
    import comfy.ops

    return comfy.ops, "uncast_bias_weight", lambda uncast: lambda *_args: None


def _loss_read() -> Patch:
    from wantune.trainer.training import objective

    def changed(loss):
        def faulty(*args, **kwargs):
            found = loss(*args, **kwargs)
            found.detach().sum().item()
            return found
        return faulty

    return objective, "denoising_loss", changed


FAULTS: dict[str, Callable[[], Patch]] = {
    "bias left on the CPU": _bias_on_cpu,
    "t not moved": _loss_argument_on_cpu(3),
    "noise left on the CPU": _loss_argument_on_cpu(4),
    "adapter on the CPU": _adapter_on_cpu,
    "activations kept twice": _kept_twice,
    "a weight fetched twice": _fetched_twice,
    "a pin not given back": _pin_kept,
    "the loss read at once": _loss_read,
}
