"""ComfyUI's layers as training sees them: frozen, but the gradient of their input passes through.

ComfyUI loads weights under inference mode, and may keep them in fp8, int8 or GGUF form, in another
memory, or in buffers that the next layer overwrites. So autograd must not save the weight of a
forward pass, except where it is a plain tensor that stays where it is:

- *resident*: a normal-tensor view of the same memory, through torch's own functions;
- *managed*: ComfyUI's own forward without autograd, and in backward ComfyUI is asked for the weight again.

A Bypass LoRA and the like put a forward of their own around a layer's. It then runs between two of ours: `below`, in
place of the layer that it calls, and the stand-in with the adapter, which calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.ops
import torch
from torch import nn

from ...trainer.adapter.linears import FrozenLinearNode, times
from . import casting
from .normal import NormalTensors, normal_view


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, by its attributes: ComfyUI's quantised layers are no nn.Linear."""
    return hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight")


class FrozenModule:
    """Stands in for one module's forward while training: `begin` puts `function` in its place, `end` takes it out.

    Only the instance attribute `forward` is touched; keys and modules stay as they are.
    """

    uses_own_forward = True
    """Whether the module's own forward computes; where it always casts, there may be more to it than a cast."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before: Callable | None = None
        self._displaced: Callable | None = None
        self._views: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self._columns: torch.Tensor | None = None

    def begin(self, function: Callable) -> None:
        """Let `function` answer the module's calls."""
        self._before = self.module.__dict__.get("forward")
        self._displaced = foreign_forward(self.module)
        # not through setattr: a Module assigned there would be registered as a child
        self.module.__dict__["forward"] = function

    def end(self) -> None:
        """Put back what was there, and let go of the weights."""
        if self._before is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.__dict__["forward"] = self._before
        self._before = self._displaced = None
        self._views = self._columns = None

    @property
    def displaced(self) -> Callable | None:
        """The forward of another pack in whose place this one is; None where there was only the module's own."""
        return self._displaced

    def original(self, *args, **kwargs):
        """The forward that was there: ComfyUI's own, or another pack's."""
        if self._displaced is not None:
            return self._displaced(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def is_resident(self, x: torch.Tensor) -> bool:
        """Whether the weight is a plain tensor that can be used as it is for an input like x."""
        module, weight = self.module, self.module.weight
        return (
            type(weight) in (nn.Parameter, torch.Tensor)
            and weight.dtype == x.dtype
            and weight.device == x.device
            and self._displaced is None
            and not (self.uses_own_forward and getattr(module, "comfy_cast_weights", False))
            and not getattr(module, "weight_function", ())
            and not getattr(module, "bias_function", ())
            and not hasattr(module, "_v")  # dynamic VRAM: may be evicted at any time
        )

    def views(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Normal tensors over the memory of a resident weight and bias."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        if self._views is None or self._views[0].data_ptr() != weight.data_ptr():
            self._views = normal_view(weight), None if bias is None else normal_view(bias)
            self._columns = self._views[0].t() if weight.dim() == 2 else None
        return self._views


class FrozenLinear(FrozenModule):
    """A Linear that is not trained; callable, so that an adapter can be put beside it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.in_features, self.out_features = module.in_features, module.out_features
        self.theirs: Callable | None = None
        """A forward of another pack around `below`."""
        self.is_skipped = False
        """Whether nothing reads its output now: it ends a checkpointed part, which is computed again in backward."""
        self.hands_on = True
        """Whether its input carries a gradient, so that `input_gradient` follows `output`."""
        self.keeps_cast = False
        """Whether what `output` casts is kept for `input_gradient` then; streaming.py sets it."""
        self._kept: casting.Cast | None = None
        self._normal = NormalTensors()

    def begin_below(self) -> None:
        """Stand in for the layer itself: what others put in its place next is around `below`."""
        self.begin(self.below)

    def begin_above(self, function: Callable) -> None:
        """After `begin_below` and what others did since, let `function` answer the module's calls; `end` ends both."""
        theirs = self.module.__dict__["forward"]
        self.theirs = None if theirs == self.below else theirs
        self.module.__dict__["forward"] = function

    def end_above(self) -> None:
        """Put back what others put in."""
        self.module.__dict__["forward"] = self.theirs or self.below
        self.theirs = None

    def below(self, x: torch.Tensor) -> torch.Tensor:
        """The layer itself, for a forward of another pack that calls it."""
        with self._normal.paused():
            return self._layer(x)

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """For the last layer of a checkpointed part, while the part is computed again in backward.

        Nothing reads its output then, and in a feed-forward branch it is half of the matrix products. It is NaN
        instead: should a version of ComfyUI ever read it, the gradient is NaN and training stops with an error message.
        """
        self.is_skipped = True
        try:
            yield
        finally:
            self.is_skipped = False

    @property
    def is_plain(self) -> bool:
        """Whether `output` and `input_gradient` are all there is: no other pack's forward is around it."""
        return self.theirs is None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)"""
        return self._layer(x) if self.is_plain else self._through_theirs(x)

    def _through_theirs(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # which is for the adapter; sampling has none
            if not (x.requires_grad and torch.is_grad_enabled()):
                with torch.no_grad():
                    return self.theirs(x)
            with self._normal:
                return self.theirs(x)

    def _layer(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return FrozenLinearNode.apply(x, self)
        return self.output(x)

    def output(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """W x + b without autograd, (..., in_features) to (..., out_features); x is left as it is.

        Args:
            out: where it is written; None for a new tensor.
        """
        if self.is_skipped:
            # no memory; should it ever be read, the loss is NaN and training stops with an error message
            return x.new_full((), math.nan).expand(*x.shape[:-1], self.out_features)
        with torch.no_grad():
            if self.is_resident(x):
                weight, bias = self.views()
                if x.dim() == 2 and bias is not None:
                    # of the kept view: a call less to PyTorch's dispatcher
                    return torch.addmm(bias, x, self._columns, out=out)
                y = nn.functional.linear(x, weight, bias)
            elif self._displaced is not None:
                y = self.original(self._spared(x))
            else:
                y = self._managed_output(x, self.keeps_cast and self.hands_on)
            return y if out is None else out.copy_(y)

    def input_gradient(self, grad_output: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """grad_output @ W, (..., out_features) to (..., in_features), without autograd; a new tensor.

        ComfyUI moves, dequantises and patches W anew, unless `output` kept it.

        Args:
            onto: a gradient of the same input, to which this one is added in place.
        """
        with torch.no_grad():
            if self.is_resident(grad_output):
                return times(grad_output, self.views()[0], onto)
            return self._managed_gradient(grad_output, onto)

    def _managed_gradient(self, grad_output: torch.Tensor, onto: torch.Tensor | None) -> torch.Tensor:
        module = self.module
        scale = getattr(module, "scale_weight", None)
        if scale is not None:  # fp8_scaled in older versions: the weight is stored divided by this scale
            grad_output = grad_output * scale.to(grad_output)
        of_input = getattr(module, "pre_quant_scale", None)
        cast, self._kept = self._kept or casting.cast(module, grad_output), None
        try:
            weight = casting.plain(cast.weight, grad_output.dtype)
            if of_input is None:
                return times(grad_output, weight, onto)
            grad_input = grad_output @ weight * of_input.to(grad_output)
        finally:
            cast.give_back()
        return grad_input if onto is None else onto.add_(grad_input)

    def let_go(self) -> None:
        """Give back a cast that was kept and that no gradient asked for."""
        if self._kept is not None:
            self._kept.give_back()
            self._kept = None

    def _managed_output(self, x: torch.Tensor, keeps: bool) -> torch.Tensor:
        module = self.module
        only_casts = casting.only_casts(module)
        if not only_casts and (not keeps or casting.changes_in_cast(module)):
            return self.original(self._spared(x))
        comfy.ops.run_every_op()  # the user may have interrupted
        cast = casting.cast(module, x) if only_casts else casting.moved(module, x)
        try:
            if only_casts:
                y = nn.functional.linear(x, cast.weight, cast.bias)
            else:
                y = type(module).forward(casting.layer_with(module, cast.weight, cast.bias), self._spared(x))
        except BaseException:
            cast.give_back()
            raise
        if keeps:
            self.let_go()
            cast.keep()
            self._kept = cast
        else:
            cast.give_back()
        return y

    def _spared(self, x: torch.Tensor) -> torch.Tensor:
        """x for ComfyUI's own forward, which computes differently where its input needs a gradient."""
        # fp8_e4m3fn_fast clamps it in place, and autograd may have saved it
        return x.clone() if isinstance(self.module, comfy.ops.fp8_ops.Linear) else x.detach()


def foreign_forward(module: nn.Module) -> Callable | None:
    """The forward that someone has put in the place of the module's own, or None.

    Who takes his out again may leave the module's own behind as an attribute, as ComfyUI does.
    """
    forward = module.__dict__.get("forward")
    is_own = getattr(forward, "__self__", None) is module and forward.__func__ is type(module).forward
    return None if is_own else forward
