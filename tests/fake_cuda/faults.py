"""Faults that a GPU would show and a CPU does not, planted by patching functions of the project or of ComfyUI.

Each leaves the result of training as it is: nothing but the device, the memory, the bus or the clock tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    with ExitStack() as stack:
        for place, attribute, changed in FAULTS[name]():
            stack.enter_context(patch.object(place, attribute, changed(getattr(place, attribute))))
        yield


Patch = tuple[object, str, Callable[[Callable], Callable]]
"""Where a function is, its name, and what makes the faulty one of it."""


def _bias_on_cpu() -> list[Patch]:
    from wantune.nodes.backend import attention as of_comfyui
    from wantune.trainer.blocks import attention

    def changed(attend):
        def faulty(q_BLHd, k_BKHd, v_BKHd, bias_B11K=None):
            return attend(q_BLHd, k_BKHd, v_BKHd, None if bias_B11K is None else bias_B11K.cpu())
        return faulty

    return [(attention, "by_head", changed), (of_comfyui, "by_head", changed)]


def _loss_argument_on_cpu(position: int) -> Callable[[], list[Patch]]:
    def patched() -> list[Patch]:
        from wantune.trainer.training import objective

        def changed(loss):
            def faulty(*args, **kwargs):
                return loss(*(arg.cpu() if number == position else arg for number, arg in enumerate(args)), **kwargs)
            return faulty

        return [(objective, "denoising_loss", changed)]

    return patched


def _adapter_on_cpu() -> list[Patch]:
    from wantune.trainer.adapter.adapters import Adapter

    def changed(init):
        def faulty(adapter, config, linears, device, *args, **kwargs):
            init(adapter, config, linears, torch.device("cpu"), *args, **kwargs)
        return faulty

    return [(Adapter, "__init__", changed)]


def _kept_twice() -> list[Patch]:
    from wantune.nodes.backend.frozen import FrozenLinear
    from wantune.trainer.training.loop import Trainer

    kept = []

    def keeping(output):
        def faulty(linear, x, **options):
            kept.append(x.clone())
            return output(linear, x, **options)
        return faulty

    def forgetting(train_step):
        def faulty(trainer):
            kept.clear()
            return train_step(trainer)
        return faulty

    return [(FrozenLinear, "output", keeping), (Trainer, "train_step", forgetting)]


def _fetched_twice() -> list[Patch]:
    import comfy.ops

    def changed(cast):
        def faulty(module, *args, **kwargs):
            first = cast(module, *args, **kwargs)
            if kwargs.get("offloadable"):
                comfy.ops.uncast_bias_weight(module, *first)
            return cast(module, *args, **kwargs)
        return faulty

    return [(comfy.ops, "cast_bias_weight", changed)]


def _pin_kept() -> list[Patch]:
    import comfy.ops

    return [(comfy.ops, "uncast_bias_weight", lambda uncast: lambda *_args: None)]


def _loss_read() -> list[Patch]:
    from wantune.trainer.training import objective

    def changed(loss):
        def faulty(*args, **kwargs):
            found = loss(*args, **kwargs)
            found.detach().sum().item()
            return found
        return faulty

    return [(objective, "denoising_loss", changed)]


FAULTS: dict[str, Callable[[], list[Patch]]] = {
    "bias left on the CPU": _bias_on_cpu,
    "t not moved": _loss_argument_on_cpu(3),
    "noise left on the CPU": _loss_argument_on_cpu(4),
    "adapter on the CPU": _adapter_on_cpu,
    "activations kept twice": _kept_twice,
    "a weight fetched twice": _fetched_twice,
    "a pin not given back": _pin_kept,
    "the loss read at once": _loss_read,
}
