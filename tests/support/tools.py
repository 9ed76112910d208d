"""What in-process tests share: models through ComfyUI's loaders, real pictures, a cached dataset."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from PIL import Image

from ..world import random_models

WORLD = Path(__file__).parents[1] / "world"

PICTURES = {
    "astronaut.png": "a woman in an orange suit before a flag",
    "chelsea.png": "a ginger cat looking up",
    "coffee.png": "a cup of coffee on a wooden table",
    "rocket.jpg": "a rocket on its launch pad",
}
"""Of scikit-image, with captions of ours."""


def loras_folder(folder: Path, monkeypatch) -> Path:
    """Make a new folder, the only one of ComfyUI's LoRA lists."""
    import folder_paths

    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return folder


def write_pictures(folder: Path, size: tuple[int, int] | None = None) -> Path:
    """Write the four pictures with captions to a folder, scaled down to fit `size`, (width, height)."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in PICTURES.items():
        image = Image.open(source / name).convert("RGB")
        if size:
            image.thumbnail(size)
        image.save(folder / Path(name).with_suffix(".png").name)
        (folder / Path(name).with_suffix(".txt").name).write_text(caption, encoding="utf-8")
    return folder


def load_dit(path: Path, **model_options):
    """A MODEL, as UNETLoader gives it: loaded in inference mode."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path), model_options=model_options)


def load_vae(path: Path = WORLD / "vae.safetensors"):
    """A VAE, as VAELoader gives it."""
    import comfy.sd
    import comfy.utils

    with torch.inference_mode():
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def load_clip(path: Path = WORLD / "umt5.safetensors"):
    """A CLIP, as Load CLIP gives it."""
    from ..world_nodes.text_encoder import load_small_text_encoder

    with torch.inference_mode():
        return load_small_text_encoder(path)


def random_dit(folder: Path, **sizes) -> Path:
    """A transformer's file of random weights: two blocks of width 128, unless `sizes` says otherwise."""
    return random_models.make_dit(folder / "random_dit.safetensors", **sizes)


def scale_to_fp8(path: Path) -> Path:
    """The same model as an fp8_scaled file, the form Wan 14B is mostly used in."""
    from safetensors.torch import load_file, save_file

    scaled = path.with_stem(path.stem + "_fp8_scaled")
    save_file(scaled_to_fp8(load_file(path)), scaled)
    return scaled


def scaled_to_fp8(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of such a file; takes the given ones out of their dict as it goes, so that few are there twice."""
    state = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for key in list(tensors):
        value = tensors.pop(key)
        if key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2:
            scale = value.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            state[key] = (value / scale).to(torch.float8_e4m3fn)
            state[key.replace(".weight", ".scale_weight")] = scale
        else:
            state[key] = value
    return state


class Watch:
    """Stands in for `Live` (nodes/page/live.py): keeps the events, shows each to `look`, may ask the run to stop."""

    def __init__(self, look=lambda event: None) -> None:
        self.events, self.said, self.stop, self._look = [], [], False, look

    def describe(self, folder, base: str, notes=(), is_finished: bool = False) -> None:
        self.run, self.base, self.notes = folder.path.name, base, notes

    running = staticmethod(contextlib.nullcontext)

    def publish(self, event) -> None:
        self.events.append(event)
        self._look(event)

    def say(self, text: str) -> None:
        self.said.append(text)

    def is_stop_asked(self) -> bool:
        return self.stop


class PairWatch:
    """Stands in for `PairLive` (nodes/page/pair_live.py): keeps (expert, event), shows each to `look`.

    Args:
        stop_after: asks to stop after so many steps of both; 0 = never.
    """

    def __init__(self, stop_after: int = 0, look=lambda expert, event: None) -> None:
        self.events, self.said, self.described, self._stop_after, self._look = [], [], {}, stop_after, look

    def describe(self, expert, folder, base: str, notes=(), is_finished: bool = False) -> None:
        self.described[expert] = folder.path, notes, is_finished

    def running(self, experts):
        return contextlib.nullcontext()

    def publish(self, expert: str, event) -> None:
        self.events.append((expert, event))
        self._look(expert, event)

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def steps(self) -> str:
        """The first letter of the expert of each step."""
        return "".join(expert[0] for expert, event in self.events if type(event).__name__ == "StepDone")

    def is_stop_asked(self) -> bool:
        return bool(self._stop_after) and len(self.steps) >= self._stop_after


def drained(progress) -> tuple[list, object]:
    """What a generator yields, and what it returns."""
    events = []
    while True:
        try:
            events.append(next(progress))
        except StopIteration as finished:
            return events, finished.value


def sample(model, seed: int = 0, steps: int = 2, frames: int = 5, size: int = 64, cfg: float = 1.0) -> torch.Tensor:
    """latent_BCFHW from ComfyUI's own sampler (euler, simple); `size` is height and width in pixels."""
    import comfy.sample

    with torch.inference_mode():
        channels = model.model.latent_format.latent_channels
        latent = torch.zeros(1, channels, (frames - 1) // 4 + 1, size // 8, size // 8)
        text = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(7))
        conditioning = [[text, {"pooled_output": None}]]
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", conditioning, conditioning, latent, seed=seed,
            disable_pbar=True,
        ).clone()


class Snapshot:
    """What must be the same after training: state dict, flags, forwards, hooks, and the video of one seed."""

    def __init__(self, model) -> None:
        self.model = model
        self.video = sample(model)
        self.state = {key: value.detach().clone() for key, value in model.model.state_dict().items()}
        self.flags = {name: parameter.requires_grad for name, parameter in model.model.named_parameters()}
        self.modules = [name for name, _ in model.model.named_modules()]

    def assert_untouched(self) -> None:
        """Fails on the first difference, and names it."""
        import comfy.model_management

        # first: ComfyUI leaves a merged LoRA in the shared weights until the model without it is loaded again
        assert torch.equal(sample(self.model), self.video)
        now = self.model.model.state_dict()
        assert list(now) == list(self.state)
        for key, value in self.state.items():
            assert now[key].dtype == value.dtype, key
            assert torch.equal(now[key].view(torch.uint8), value.view(torch.uint8)) if value.ndim else True, key
        flags = {name: parameter.requires_grad for name, parameter in self.model.model.named_parameters()}
        assert flags == self.flags
        assert [name for name, _ in self.model.model.named_modules()] == self.modules
        for name, module in self.model.model.named_modules():
            assert "forward" not in module.__dict__, name
            assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks, name
        assert not self.model.injections and not self.model.is_injected
        assert getattr(comfy.model_management, "in_training", False) is False
