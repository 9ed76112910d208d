"""ComfyUI's MODEL as the trainer's Denoiser: shared, not copied, and afterwards exactly as it was.

During training each layer's instance gets a `forward` of ours, put in and taken out through
ModelPatcher's injections, so that ComfyUI also removes it when it moves or unloads the model. Parameters
are frozen for that time and get their `requires_grad` back. Nothing else of the model is touched.

Shape legend: B batch, C latent channels, F latent frames, H height, W width, L text tokens, D width of the text
encoder, K text rows after trainer/model/text_padding.py has folded the padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import PatcherInjection
from torch.utils.checkpoint import checkpoint

from ...trainer.model import text_padding
from ...trainer.model.adapters import Adapter
from . import frozen
from .family import family_of
from .fingerprint import fingerprint

LAST = "ffn.2"
"""Name, within a block, of its last Linear: its output is scaled by the modulation and added to the residual stream,
and nothing else reads it."""

INJECTION = "wantune_train"

ALL = 1e30
"""Bytes; more than any device has, so that ComfyUI unloads every other model."""


class ComfyDenoiser:
    """A loaded MODEL as the protocol `Denoiser` of trainer/model/backend.py.

    Raises:
        UserError: it cannot be trained, see `family_of`.
    """

    def __init__(self, model) -> None:
        self.family = family_of(model)
        # a clone shares the weights; it exists to carry our injection
        self._patcher = model.clone()
        self._patcher.is_injected = False  # clone copies this flag, but not the original's injections
        self._network = model.model.diffusion_model
        self.device = model.load_device
        self.compute_dtype = _compute_dtype(model)

    @property
    def id(self) -> str:
        """Changes with the weights and with the LoRAs already applied to them."""
        return fingerprint(self._patcher)

    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every Linear of the model by its name."""
        return linear_sizes(self._patcher)

    @property
    def _blocks(self) -> torch.nn.ModuleList:
        return getattr(self._network, self.family.blocks)

    def linears(self) -> dict[str, frozen.FrozenLinear]:
        """The Linears that can get an adapter, by name; the adapter's settings choose among them."""
        modules = dict(self._network.named_modules())
        names = [f"{self.family.blocks}.{number}.{name}" for number in range(len(self._blocks))
                 for name in self.family.trained]
        return {name: frozen.FrozenLinear(modules[name]) for name in names}

    @contextmanager
    def attached(self, adapter: Adapter, linears: dict, gradient_checkpointing: bool, memory: int) -> Iterator[None]:
        """Hold the model loaded and frozen with the adapter in it; leaves it as it was, however that ends.

        Args:
            linears: what `linears()` gave and the adapter was made over.
            memory: bytes to keep free on the device for activations, adapter and optimizer.

        Raises:
            UserError: a kind of layer whose gradient is wrong here, see `frozen.self_test`.
        """
        stand_ins = self._stand_ins(adapter, linears, gradient_checkpointing)

        def inject(_patcher) -> None:
            for stand_in, function in stand_ins:
                stand_in.begin(function)

        def eject(_patcher) -> None:
            for stand_in, _ in reversed(stand_ins):
                stand_in.end()

        trainable = {name for name, parameter in self._network.named_parameters() if parameter.requires_grad}
        self._patcher.set_injections(INJECTION, [PatcherInjection(inject, eject)])
        self._memory = memory
        try:
            self._require_grad(trainable, False)
            with torch.inference_mode():  # as in sampling: patches are written into inference tensors
                # unloads the encoders and every other model, to make room
                comfy.model_management.free_memory(ALL, self.device, [
                    loaded for loaded in comfy.model_management.current_loaded_models
                    if loaded.model is not None and loaded.model.is_clone(self._patcher)])
            self.reload()
            with torch.inference_mode(False), self.training():
                every = [stand_in for stand_in, _ in stand_ins if isinstance(stand_in, frozen.FrozenLinear)]
                frozen.self_test(every, self.device, self.compute_dtype)
            yield
        finally:
            self._patcher.eject_model()
            self._patcher.remove_injections(INJECTION)
            self._require_grad(trainable, True)
            comfy.model_management.soft_empty_cache()

    def reload(self) -> None:
        """Load the attached model onto the device again, if another one displaced it, with its stand-ins in place."""
        with torch.inference_mode():  # as in sampling: patches are written into inference tensors
            comfy.model_management.load_models_gpu([self._patcher], memory_required=self._memory)
        if hasattr(comfy.model_management, "reset_cast_buffers"):
            comfy.model_management.reset_cast_buffers()  # they are inference tensors and cannot be written outside

    def _stand_ins(self, adapter: Adapter, linears: dict, gradient_checkpointing: bool) -> list:
        """(stand-in, function) for every layer whose input may carry a gradient."""
        stand_ins = []
        for name, module in self._network.named_modules():
            if not name.startswith((f"{self.family.blocks}.", "head.")):
                continue
            if name in linears:
                linears[name].ends_block = gradient_checkpointing and name.endswith(LAST)
                stand_ins.append((linears[name], adapter.forward_of(name, self.compute_dtype)))
            elif frozen.is_linear(module):
                linear = frozen.FrozenLinear(module)
                stand_ins.append((linear, linear))
            elif frozen.is_affine_norm(module):
                norm = frozen.FrozenNorm(module)
                stand_ins.append((norm, norm))
        if gradient_checkpointing:
            for number, block in enumerate(self._blocks):
                stand_in = frozen.FrozenModule(block)
                last = linears[f"{self.family.blocks}.{number}.{LAST}"]
                stand_ins.append((stand_in, _checkpointed(stand_in, last, bool(adapter.config.dropout))))
        return stand_ins

    def _require_grad(self, names: set[str], value: bool) -> None:
        with torch.inference_mode():  # the only place where flags of inference tensors may be set
            for name, parameter in self._network.named_parameters():
                if name in names:
                    parameter.requires_grad_(value)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Autograd on, and ComfyUI told not to use kernels that have no backward."""
        management = comfy.model_management
        known = hasattr(management, "in_training")  # ComfyUI 0.13.0 and newer
        before = getattr(management, "in_training", False)
        if known:
            management.in_training = True
        try:
            with torch.enable_grad():
                yield
        finally:
            if known:
                management.in_training = before

    def velocity(
        self, x_BCFHW: torch.Tensor, t_B: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """velocity_BCFHW, the predicted noise - x0, in fp32; only while attached.

        Args:
            x_BCFHW: the noisy latent; like the text it is cast to the model's dtype, as ComfyUI does in sampling.
            t_B: the noise level in 0..1.
            conditions: {"text": text_BLD}; zero rows at its end are padding.
        """
        # the network pads sides that its patch size does not divide
        num_tokens = math.prod(-(-side // patch) for side, patch in
                               zip(x_BCFHW.shape[2:], self.family.patch_FHW, strict=True))
        text_BKD, bias_BK = text_padding.fold(
            conditions["text"], self.compute_dtype, self.family.text_length, other_than=num_tokens)
        velocity_BCFHW = self._network(
            x_BCFHW.to(self.device, self.compute_dtype),
            t_B.to(self.device, torch.float32) * self.family.time_scale,
            context=text_BKD.to(self.device, self.compute_dtype),
            # a fresh dict: the model writes into it
            transformer_options={"optimized_attention_override": _Attention(bias_BK.to(self.device))},
        )
        return velocity_BCFHW.float()

    def memory_estimate(self, num_tokens: int, batch_size: int, adapter: Adapter, gradient_checkpointing: bool) -> int:
        """Bytes that training needs beside the weights: activations, and the adapter four times in fp32.

        The four are its values, their gradients and AdamW's two moments. The constants count values per token, as
        bench/calibration.py measures them in bf16, for which autograd saves a little more than for fp32. With
        checkpointing the activations of one block at a time are kept, and the inputs of all blocks.

        Args:
            num_tokens: of one sample.
        """
        dim, ffn_dim, blocks = self._network.dim, self._network.ffn_dim, len(self._blocks)
        kept = 19 * dim + 2.2 * ffn_dim + adapter.values_per_token
        working = 2 * dim + 2 * ffn_dim
        values = working + (kept + blocks * dim if gradient_checkpointing else blocks * kept)
        # independent of the tokens: the cast copy of the one managed weight in use, and the matrices that LoHa builds
        weights = dim * ffn_dim + adapter.values_per_block * (1 if gradient_checkpointing else blocks)
        activations = (num_tokens * batch_size * values + weights) * torch.finfo(self.compute_dtype).bits // 8
        return int(activations) + sum(parameter.numel() for parameter in adapter.parameters) * 4 * 4


def linear_sizes(model) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every Linear of a MODEL's diffusion model, by the Linear's name."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.model.diffusion_model.named_modules()
        if frozen.is_linear(module)
    }


class _Attention:
    """PyTorch's attention in place of whatever ComfyUI runs: sage and flash attention have no usable backward.

    Cross-attention to the text, recognised by its number of keys, gets the bias that stands for the text's padding
    (trainer/model/text_padding.py).
    """

    def __init__(self, bias_BK: torch.Tensor) -> None:
        self._bias_B11K = bias_BK[:, None, None]

    def __call__(self, _function, q, k, v, heads, mask=None, **kwargs) -> torch.Tensor:
        if k.shape[1] == self._bias_B11K.shape[-1]:
            mask = self._bias_B11K
        return attention_pytorch(q, k, v, heads, mask=mask, **kwargs)


def _checkpointed(block: frozen.FrozenModule, last: frozen.FrozenLinear, draws: bool):
    """The block's forward with gradient checkpointing; backward computes it again, but for its last layer.

    Args:
        last: that layer; nothing in backward reads its output.
        draws: whether the block has dropout, which must draw the same values both times.
    """

    def forward(*args, **kwargs):
        if "transformer_options" in kwargs:  # the model overwrites the block's index in it; backward needs this one
            kwargs["transformer_options"] = dict(kwargs["transformer_options"])
        return checkpoint(
            block.original, *args, use_reentrant=False, preserve_rng_state=draws,
            context_fn=lambda: (nullcontext(), last.skipped_in_recompute()), **kwargs,
        )

    return forward


def _compute_dtype(model) -> torch.dtype:
    """The dtype of activations, as BaseModel._apply_model chooses it, `set_model_compute_dtype` included."""
    patched = model.object_patches.get("manual_cast_dtype", model.model.manual_cast_dtype)
    return patched if patched is not None else model.model.get_dtype()
