"""ComfyUI's MODEL as the trainer's Denoiser: shared, not copied, and afterwards exactly as it was.

During training each layer's instance gets a `forward` of ours, put in and taken out through
ModelPatcher's injections, so that ComfyUI also removes it when it moves or unloads the model. Parameters
are frozen for that time and get their `requires_grad` back. Nothing else of the model is touched.

Shape legend: B batch, C latent channels, F latent frames, H height, W width, L text tokens, D width of the text
encoder, K text rows after trainer/model/text_padding.py has folded the padding.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import comfy.model_management
import torch

from ...trainer.adapter.adapters import Adapter
from ...trainer.base.switches import full_sums
from ...trainer.blocks.compiled_pieces import AUTO, pieces_of
from ...trainer.memory.choice import Space
from ...trainer.memory.plan import Plan
from ...trainer.memory.sizes import ModelSize
from ...trainer.model import text_padding
from . import attention, block, carried, embedding, frozen, quantised_linear, self_test, space
from .conditions import arguments, example, num_tokens, replayed
from .described import described
from .family import family_of
from .fingerprint import fingerprint
from .positions import Positions
from .products import EXACT, products_of
from .quantised_linear import QuantisedLinear
from .room import Room
from .stand_ins import StandIns

INJECTION = "wantune_train"

logger = logging.getLogger("wantune")


class ComfyDenoiser:
    """A loaded MODEL as the protocol `Denoiser` of trainer/model/backend.py.

    Raises:
        UserError: it cannot be trained, see `family_of`.
    """

    def __init__(self, model) -> None:
        with carried.bare(model):
            self.family = family_of(model)
            self._network = model.model.diffusion_model
        self._module = sys.modules[type(self._network).__module__]
        # a clone shares the weights; it exists to carry our injection
        self._patcher = model.clone()
        self._patcher.is_injected = False  # clone copies this flag, but it is the original that is in the network
        self._injections = dict(self._patcher.injections)
        self.notes = tuple(filter(None, (carried.strip(self._patcher), attention.replaced())))
        """Sentences about what is trained that the user should know."""
        self.device = model.load_device
        self.compute_dtype = _compute_dtype(self._patcher)
        self.compile = AUTO
        """One of compiled_pieces.MODES: whether small functions of a block are compiled; read by `attached`."""
        self.products = EXACT
        """One of products.PRODUCTS: how weights that are not trained are multiplied; read by `linears`."""

    @property
    def id(self) -> str:
        """Changes with whatever changes what the network computes in training: weights, LoRAs, forwards of others."""
        own_dtype = self._patcher.object_patches_backup.get("manual_cast_dtype", self._patcher.model.manual_cast_dtype)
        dtype = self._patcher.object_patches.get("manual_cast_dtype", own_dtype)
        with carried.bare(self._patcher):
            forwards = {name: described(theirs, self._network) for name, module in self._network.named_modules()
                        if (theirs := frozen.foreign_forward(module))}
            return fingerprint(self._patcher, forwards=forwards, dtype="" if dtype == own_dtype else str(dtype))

    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every Linear of the model by its name."""
        return linear_sizes(self._patcher)

    @property
    def _blocks(self) -> torch.nn.ModuleList:
        return getattr(self._network, self.family.blocks)

    def linears(self) -> dict[str, frozen.FrozenLinear]:
        """The Linears that can get an adapter, by name; the adapter's settings choose among them.

        Raises:
            UserError: the device has no such products as are asked for.
        """
        products = products_of(self.products, self.device, self.compile)
        return {name: QuantisedLinear(module, products) if products else frozen.FrozenLinear(module)
                for name, module in self._trainable().items()}

    def _trainable(self) -> dict[str, torch.nn.Module]:
        with carried.bare(self._patcher):
            modules = dict(self._network.named_modules())
        names = [f"{self.family.blocks}.{number}.{name}" for number in range(len(self._blocks))
                 for name in self.family.trained]
        return {name: modules[name] for name in names}

    @property
    def size(self) -> ModelSize:
        """What of it counts for memory."""
        # what lies in dynamic VRAM may leave it at any time, and is quantised for each use
        has_copies = self.products != EXACT and not space.is_dynamic(self._patcher)
        copies = quantised_linear.copied_bytes(self._trainable().values(), self.compute_dtype) if has_copies else 0
        with carried.bare(self._patcher):
            return space.model_size(self._patcher, self._network, self._blocks[0], self.compute_dtype, copies)

    def space(self) -> Space:
        """What its device has for training, once all that can leave it has left."""
        return space.space(self._patcher)

    def make_room(self, memory: int) -> None:
        """Move every other model off the device, and of its own weights as many as leave `memory` bytes free."""
        space.make_room(self._patcher, memory)

    @contextmanager
    def attached(self, adapter: Adapter, linears: dict, plan: Plan, memory: int) -> Iterator[tuple[str, ...]]:
        """Hold the model loaded and frozen with the adapter in it; leaves it as it was, however that ends.

        Gives sentences about what was measured of it that the user should know.

        Args:
            linears: what `linears()` gave and the adapter was made over.
            memory: bytes to keep free on the device for what is not there yet; see `keep_free`.

        Raises:
            UserError: something whose gradient is wrong here, or a forward of another pack that is not a Linear's.
        """
        for note in self.notes:
            logger.warning("%s", note)
        with carried.bare(self._patcher):
            self._stand_ins = StandIns(self._network, self.family.blocks, self._injections)
            self._trained = adapter, linears
            self._hold(plan)
            trainable = {name for name, parameter in self._network.named_parameters() if parameter.requires_grad}
        self._patcher.injections = {INJECTION: [self._stand_ins.injection]}
        self.keep_free(memory)
        try:
            self._require_grad(trainable, False)
            self.make_room(0)
            self.reload()
            with torch.inference_mode(False), self.training():
                self._test()
                error = quantised_linear.measure(linears.values(), self.device, self.compute_dtype)
            adapter.discard_gradients()  # which the tests have made
            yield () if error is None else (error,)
        finally:
            self._patcher.eject_model()
            self._patcher.injections = dict(self._injections)
            self._require_grad(trainable, True)
            comfy.model_management.soft_empty_cache()

    def reload(self) -> None:
        """Load the attached model onto the device again, if another one displaced it, with its stand-ins in place."""
        management = comfy.model_management
        # Their buffers are inference tensors, which cannot be written outside. Before loading, since it also takes the
        # pinned RAM of every loaded model for unused, and loading takes it into use.
        if hasattr(management, "reset_cast_buffers"):
            management.reset_cast_buffers()
        with torch.inference_mode():  # as in sampling: patches are written into inference tensors
            management.load_models_gpu([self._patcher], memory_required=self._memory)
        self._room = Room(self._patcher)

    def take_out(self) -> None:
        """Give the network back to ComfyUI while attached; `reload` ends that."""
        with torch.inference_mode():  # as in sampling: what others put on the model may write
            self._patcher.eject_model()

    def _hold(self, plan: Plan) -> None:
        adapter, linears = self._trained
        self._positions = Positions(plan.inputs_in_ram)
        self._stand_ins.hold(
            adapter, linears, self.compute_dtype, plan, pieces_of(self.compile, self.device), self.device,
            space.is_dynamic(self._patcher))

    def keep_free(self, memory: int) -> None:
        """Leave so many bytes free on the device whenever the attached model is loaded from now on."""
        self._memory = memory

    def change_plan(self, plan: Plan) -> None:
        """Follow another plan from the next forward pass on; while attached, and between steps."""
        with torch.inference_mode(), carried.bare(self._patcher):  # which takes our injection out and puts it in again
            self._hold(plan)
        comfy.model_management.soft_empty_cache()
        self.reload()

    def _keep_in_place(self) -> None:
        """Put the stand-ins in again, if someone took one out: another pack's injection whose MODEL was let go of."""
        if not self._stand_ins.are_in_place:
            with torch.inference_mode():
                self._patcher.eject_model()
                self._patcher.inject_model()

    def _test(self) -> None:
        """Raises UserError where what is loaded cannot be trained through."""
        carried.check_forwards(self._network, self._stand_ins.displaced)
        self_test.of_linears(self._stand_ins.linears, self.device, self.compute_dtype)
        attention.check_reached(self._module, self.device, self.compute_dtype)
        heads = self._network.num_heads
        attention.self_test(heads, self._network.dim // heads, self.device, self.compute_dtype)
        branches = {f"{self.family.blocks}.0.{name}": getattr(self._blocks[0], name) for name in block.BRANCHES}
        generator = torch.Generator().manual_seed(0)
        # frames and sides of two patches
        size_FHW = [2 * patch for patch in self.family.patch_FHW]
        x_BCFHW = torch.randn(1, self.family.latent_channels, *size_FHW, generator=generator)
        sample = example(self.family, self._network.patch_embedding.weight.shape[1], size_FHW)

        def run() -> None:
            with torch.no_grad():
                self.velocity(x_BCFHW, torch.tensor([0.5]), self.prepared(sample, size_FHW))

        with self._stand_ins.as_comfyui(), self_test.of_branches(branches):
            run()
        if self._stand_ins.ours_differs(run):
            logger.warning("A block of this ComfyUI is computed otherwise than WanTune does it; trained through "
                           "ComfyUI's own forward, which is slower.")

    def _require_grad(self, names: set[str], value: bool) -> None:
        # inference mode: the only place where flags of inference tensors may be set
        with torch.inference_mode(), carried.bare(self._patcher):
            for name, parameter in self._network.named_parameters():
                if name in names:
                    parameter.requires_grad_(value)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Autograd on, ComfyUI told not to use kernels that have no backward, and fp16 products summed up in fp32."""
        management = comfy.model_management
        known = hasattr(management, "in_training")  # ComfyUI 0.13.0 and newer
        before = getattr(management, "in_training", False)
        if known:
            management.in_training = True
        try:
            with attention.kernels(), full_sums(), torch.enable_grad():
                yield
        finally:
            if known:
                management.in_training = before

    def prepared(
        self, conditions: Mapping[str, torch.Tensor], size_FHW: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """The text folded, as "text": text_BKD and "text_bias": bias_BK, and the rest as `replayed` gives it.

        All are in the compute dtype, as ComfyUI casts them in sampling, and on the CPU. Zero rows at the end of the
        text are padding.
        """
        rest = replayed(self._patcher.model, self.family, conditions, size_FHW, self.compute_dtype)
        text_BKD, bias_BK = text_padding.fold(
            conditions["text"].cpu(), self.compute_dtype, self.family.text_length,
            other_than=num_tokens(self.family, rest, size_FHW),
            numbers_are_few=text_padding.are_numbers_few(self.device))
        return {"text": text_BKD.to(self.compute_dtype), "text_bias": bias_BK, **rest}

    def velocity(
        self, x_BCFHW: torch.Tensor, t_B: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """velocity_BCFHW, the predicted noise - x0, in fp32; only while attached.

        Args:
            x_BCFHW: the noisy latent; it is cast to the model's dtype, as ComfyUI does in sampling.
            t_B: the noise level in 0..1.
            conditions: what `prepared` gave, for a latent of this size.
        """
        attended = attention.Attention(conditions["text_bias"].to(self.device))
        self._keep_in_place()
        self._room.look()
        x_BCFHW, timestep, further = arguments(
            self._patcher.model, x_BCFHW.to(self.device, self.compute_dtype),
            t_B.to(self.device, torch.float32) * self.family.time_scale, conditions)
        with embedding.on_device(self._module, self.device), self._positions.kept(self._network):
            velocity_BCFHW = self._network(
                x_BCFHW, timestep, context=conditions["text"].to(self.device),
                # a fresh dict: the model writes into it
                transformer_options={block.OVERRIDE: attended}, **further)
        attention.check_calls(attended, block.num_attentions(self._network, self._blocks), self._module)
        return velocity_BCFHW.float()


def linear_sizes(model) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every Linear of a MODEL's diffusion model, by the Linear's name."""
    with carried.bare(model):
        return {
            name: (module.out_features, module.in_features)
            for name, module in model.model.diffusion_model.named_modules()
            if frozen.is_linear(module)
        }


def _compute_dtype(patcher) -> torch.dtype:
    """The dtype of activations, as BaseModel._apply_model chooses it, `set_model_compute_dtype` included."""
    cast = patcher.get_model_object("manual_cast_dtype")
    return cast if cast is not None else patcher.model.get_dtype()
