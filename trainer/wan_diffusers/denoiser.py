"""diffusers' WanTransformer3DModel as the trainer's Denoiser; afterwards exactly as it was.

The network's own forward runs, with blocks computed by block.py; each block's instance gets a `forward` of ours for as
long as it is trained. Parameters are frozen for that time and get their `requires_grad` back.

Shape legend: B batch, C latent channels, F latent frames, H height, W width, L tokens, D width of the text encoder, K
text rows after trainer/model/text_padding.py has folded the padding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..adapter.adapters import Adapter
from ..base.errors import UserError
from ..base.switches import full_sums
from ..base.tensors import sampled
from ..blocks.attention import BiasedAttention
from ..blocks.compiled_pieces import AUTO, pieces_of
from ..blocks.parking import Parking
from ..blocks.pieces import Shared
from ..memory.choice import Space
from ..memory.plan import Plan
from ..memory.sizes import ModelSize
from ..model import text_padding
from ..model.conditions import KNOWN
from ..model.family import ModelFamily
from . import space
from .block import Together, WanBlock, rotation_of
from .conditions import BESIDE, SEEN, example, replayed, seen_by_diffusers
from .frozen import FrozenLinear
from .names import comfyui_name
from .quantised import is_plain, plain
from .stand_ins import StandIns

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

ERROR = 5e-2
"""Allowed relative difference of what a block adds, computed here and by diffusers: bf16 makes about 5e-3, another
formula about 1."""


class DiffusersDenoiser:
    """As the protocol `Denoiser` of trainer/model/backend.py; names are ComfyUI's.

    Args:
        transformer: as `loading.load_transformer` gives it, on the device.
        family: as `loading.family_of_transformer` tells it.
        id: what stands for the weights in a run's key, such as what ComfyUI's model of the same file has; "" for a hash
            of the weights.

    Raises:
        UserError: the transformer carries adapters.
    """

    def __init__(
        self, transformer: WanTransformer3DModel, family: ModelFamily, device: torch.device, id: str = ""
    ) -> None:
        self._transformer, self.family = transformer, family
        self.device = _with_index(device)
        self.compute_dtype = transformer.patch_embedding.weight.dtype
        self.compile = AUTO
        """One of compiled_pieces.MODES: whether small functions of a block are compiled; read by `attached`."""
        self._modules = {comfyui_name(name): module for name, module in transformer.named_modules()
                         if isinstance(module, nn.Linear)}
        missing = set(self._trainable()) - self._modules.keys()
        if missing:
            raise UserError(f"The transformer has no Linear {min(missing)}; it carries adapters, so unload them "
                            "(unload_lora_weights), or fuse them and load what was saved then.")
        self.id = id or self._hash()
        self._stand_ins = StandIns()

    def _trainable(self) -> list[str]:
        return [f"{self.family.blocks}.{number}.{name}" for number in range(len(self._transformer.blocks))
                for name in self.family.trained]

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for key, value in sorted((comfyui_name(key), value) for key, value in self._transformer.named_parameters()):
            values = value if is_plain(value) else plain(value, self.compute_dtype)
            digest.update(f"{key} {tuple(values.shape)} {type(value).__name__} {value.dtype}".encode())
            digest.update(sampled(values))
        return digest.hexdigest()

    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every Linear of the model by its name."""
        return {name: (module.out_features, module.in_features) for name, module in self._modules.items()}

    def linears(self) -> dict[str, FrozenLinear]:
        """The Linears that can get an adapter, by name; the adapter's settings choose among them."""
        return {name: FrozenLinear(self._modules[name]) for name in self._trainable()}

    @property
    def size(self) -> ModelSize:
        """What of it counts for memory."""
        return space.model_size(self._transformer, self.compute_dtype)

    def space(self) -> Space:
        """What its device has for training."""
        return space.space(self._transformer, self.device)

    def make_room(self, memory: int) -> None:
        """What PyTorch keeps for later goes back to the device; there is no other model to move."""
        space.make_room(self.device)

    def keep_free(self, memory: int) -> None:
        """Nothing: the weights are on the device and stay there."""

    @contextmanager
    def attached(
        self, adapter: Adapter, linears: Mapping[str, FrozenLinear], plan: Plan, memory: int
    ) -> Iterator[tuple[str, ...]]:
        """Hold the model frozen with the adapter in it; leaves it as it was, however that ends.

        Raises:
            UserError: this version of diffusers computes a block otherwise than it is computed here.
        """
        trainable = [parameter for parameter in self._transformer.parameters() if parameter.requires_grad]
        self._adapter = adapter
        try:
            self._transformer.requires_grad_(False)
            self.reload()
            self._hold(plan)
            with torch.inference_mode(False):
                self._test()
            yield ()
        finally:
            self._stand_ins.take_out()
            for parameter in trainable:
                parameter.requires_grad_(True)

    def _hold(self, plan: Plan) -> None:
        parking = Parking(self.device) if plan.inputs_in_ram and self.device.type == "cuda" else None
        self._together = Together(
            adapter=self._adapter, compute_dtype=self.compute_dtype, pieces=pieces_of(self.compile, self.device),
            parking=parking, rotations=Shared(rotation_of))
        blocks, embedder = self._transformer.blocks, self._transformer.condition_embedder
        frequencies = partial(_sinusoid, self._transformer.config.freq_dim)
        self._stand_ins.put({embedder: self._embedded, embedder.timesteps_proj: frequencies})
        self._stand_ins.put({
            block: WanBlock(block, f"{self.family.blocks}.{number}", self._together,
                            plan if number < len(blocks) - plan.whole_blocks else None)
            for number, block in enumerate(blocks)})

    def change_plan(self, plan: Plan) -> None:
        """Follow another plan from the next forward pass on; while attached, and between steps."""
        self._hold(plan)
        self.make_room(0)

    def reload(self) -> None:
        """Bring the model to the device again, after someone moved it away."""
        if any(parameter.device != self.device for parameter in self._transformer.parameters()):
            self._transformer.to(self.device)

    def _test(self) -> None:
        """Raises UserError where a block of this diffusers computes something else than ours."""
        size_FHW = [2 * patch for patch in self.family.patch_FHW]
        x_BCFHW = torch.randn(1, self.family.latent_channels, *size_FHW, generator=torch.Generator().manual_seed(0))
        block = self._transformer.blocks[0]
        ours, found = block.forward, []

        def compared(x_BLD: torch.Tensor, *args) -> torch.Tensor:
            result = ours(x_BLD, *args)
            layers = StandIns()  # quantised ones may change themselves when they are called
            layers.put({layer: FrozenLinear(layer) for layer in block.modules() if isinstance(layer, nn.Linear)})
            try:
                theirs = type(block).forward(block, x_BLD, *args).float()
            finally:
                layers.take_out()
            found.append(float((result.float() - theirs).norm() / (theirs - x_BLD.float()).norm()))
            return result

        self._stand_ins.put({block: compared})
        try:
            with torch.no_grad(), self._adapter.switched_off():
                self.velocity(x_BCFHW, torch.tensor([0.5]), self.prepared(example(self.family, size_FHW), size_FHW))
        finally:
            self._stand_ins.put({block: ours})
        if not found[0] <= ERROR:
            import diffusers

            raise UserError(f"diffusers {diffusers.__version__} computes a block of Wan otherwise than it is trained "
                            f"here (relative difference {found[0]:.2g}); install diffusers 0.42.")

    @contextmanager
    def training(self) -> Iterator[None]:
        """Autograd on, and fp16 products summed up in fp32."""
        with full_sums(), torch.enable_grad():
            yield

    def prepared(
        self, conditions: Mapping[str, torch.Tensor], size_FHW: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """The text folded, as "text": text_BKD and "text_bias": bias_BK, and the rest as conditions.py makes it."""
        text_BKD, bias_BK = text_padding.fold(
            conditions["text"].cpu(), self.compute_dtype, self.family.text_length,
            other_than=self._num_tokens(size_FHW), numbers_are_few=text_padding.are_numbers_few(self.device))
        return {"text": text_BKD.to(self.compute_dtype), "text_bias": bias_BK,
                **replayed(self.family, conditions, self.compute_dtype)}

    def velocity(
        self, x_BCFHW: torch.Tensor, t_B: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """velocity_BCFHW, the predicted noise - x0, in fp32; only while attached.

        Args:
            x_BCFHW: the noisy latent; it is cast to the model's dtype.
            t_B: the noise level in 0..1.
            conditions: what `prepared` gave, for a latent of this size.
        """
        timestep = t_B.to(self.device, torch.float32) * self.family.time_scale
        if KNOWN.name in conditions:
            timestep = timestep[:, None] * (1 - conditions[KNOWN.name].to(self.device))
        self._tokens_per_frame = self._num_tokens((self.family.patch_FHW[0], *x_BCFHW.shape[3:]))
        x_BCFHW = x_BCFHW.to(self.device, self.compute_dtype)
        if BESIDE in conditions:
            x_BCFHW = torch.cat([x_BCFHW, conditions[BESIDE].to(self.device)], dim=1)
        seen = conditions.get(SEEN)
        self._together.attention = BiasedAttention(conditions["text_bias"].to(self.device))
        velocity_BCFHW = self._transformer(
            x_BCFHW, timestep, conditions["text"].to(self.device),
            None if seen is None else seen_by_diffusers(seen.to(self.device)), return_dict=False)[0]
        return velocity_BCFHW.float()

    def _num_tokens(self, size_FHW: Sequence[int]) -> int:
        return math.prod(size // patch for size, patch in zip(size_FHW, self.family.patch_FHW, strict=True))

    def _embedded(self, *args, **kwargs) -> tuple[torch.Tensor, ...]:
        """As the condition embedder, for a noise level of each frame: diffusers' head wants one for each token."""
        embedder = self._transformer.condition_embedder
        level, *rest = type(embedder).forward(embedder, *args, **kwargs)
        if level.dim() == 3:
            level = level.repeat_interleave(self._tokens_per_frame, dim=1)
        return level, *rest


def _sinusoid(width: int, timestep: torch.Tensor) -> torch.Tensor:
    """(B, width) of the noise level times 1000, by the formula of Wan's own code (sinusoidal_embedding_1d).

    The phase, up to 1000 radians, is rounded to fp32, by as much as 3e-5. diffusers rounds it another way than ComfyUI
    does, and the same run would learn something else by as much.
    """
    half = width // 2
    position = timestep.float()
    phase = torch.outer(position, torch.pow(10000, -torch.arange(half, device=position.device).float().div(half)))
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def _with_index(device: torch.device) -> torch.device:
    return torch.empty(0, device=device).device
