"""LoRA, rsLoRA, LoKr and LoHa: what is applied equals what was trained, on the modules that were chosen."""

from dataclasses import replace

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.adapted import FixedLinear, gradients_of, plan_of
from wantune.trainer.adapter.adapter_kinds import chosen, kronecker
from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import file as lora_file
from wantune.trainer.settings.training import LoraConfig

pytestmark = pytest.mark.usefixtures("comfy")

RANK, ALPHA, BLOCKS = 4, 10.0, 3
KINDS = {
    "lora": LoraConfig(rank=RANK, alpha=ALPHA),
    "rslora": LoraConfig(rank=RANK, alpha=ALPHA, kind="rslora"),
    "lokr": LoraConfig(rank=RANK, alpha=ALPHA, kind="lokr", lokr_factor=8),  # 8 x 8 and 16 x 16: of rank 4
    "lokr-whole": LoraConfig(rank=8, alpha=ALPHA, kind="lokr", lokr_factor=-1),  # from half of 16 on it is whole
    "loha": LoraConfig(rank=RANK, alpha=ALPHA, kind="loha"),
}
TRAINED = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
           "cross_attn.o", "ffn.0", "ffn.2"]
NAMES = [f"blocks.{i}.{name}" for i in range(BLOCKS) for name in TRAINED]
SUFFIXES = {
    "lora": ["lora_A.weight", "lora_B.weight"], "rslora": ["lora_A.weight", "lora_B.weight"],
    "lokr": ["lokr_w1", "lokr_w2_a", "lokr_w2_b"], "lokr-whole": ["lokr_w1", "lokr_w2"],
    "loha": ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
}

every_kind = pytest.mark.parametrize("kind", KINDS)


class Held:
    """A denoiser with an adapter whose numbers are random, and one batch."""

    def __init__(self, model, config: LoraConfig, is_random: bool = True, checkpointing: bool = False) -> None:
        from wantune.nodes.backend.denoiser import ComfyDenoiser

        self.denoiser = ComfyDenoiser(model)
        self.linears = self.denoiser.linears()
        self.adapter = Adapter(config, self.linears, self.denoiser.device, seed=0)
        self.checkpointing = checkpointing
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(2, 16, 1, 8, 6, generator=generator)
        self.text = torch.randn(2, 512, 4096, generator=generator)
        self.t = torch.tensor([0.2, 0.7])
        if is_random:
            for key, parameter in zip(self.adapter.state_dict(), self.adapter.parameters, strict=True):
                # dW comes to a part of W's size, whatever its kind
                size, power = (0.5, -0.25) if "hada" in key else (0.6 if "lokr_w1" in key else 0.3, -0.5)
                size *= parameter.shape[1] ** power
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)

    def attached(self):
        return self.denoiser.attached(self.adapter, self.linears, plan_of(self.checkpointing), memory=0)

    def velocity(self) -> torch.Tensor:
        return self.denoiser.velocity(self.x, self.t, self.denoiser.prepared({"text": self.text}, self.x.shape[2:]))

    def live(self) -> torch.Tensor:
        """With the adapter."""
        with self.attached(), torch.no_grad():
            return self.velocity()

    def gradients(self, seed: int = 0) -> list[torch.Tensor]:
        with self.attached(), self.denoiser.training(), self.adapter.dropout_from(seed):
            return gradients_of(self.adapter, self.velocity().square().mean())

    def plain(self, model) -> torch.Tensor:
        """Of a MODEL by itself."""
        import comfy.model_management

        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model])
            network = model.model.diffusion_model
            return network(self.x, self.t * 1000, context=self.text, transformer_options={}).float().clone()


@pytest.fixture(scope="module")
def model(comfy, tmp_path_factory):
    return tools.load_dit(tools.random_dit(tmp_path_factory.mktemp("kinds"), layers=BLOCKS))


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """ComfyUI's loras folder."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@every_kind
def test_comfyuis_own_loader_applies_what_was_trained(model, loras, kind, caplog):
    import nodes as comfy_nodes

    held = Held(model, KINDS[kind])
    base, live = held.plain(model), held.live()
    state = lora_file.from_adapter(held.adapter.state_dict(), held.adapter.config.file_alpha)
    assert set(state) == {f"diffusion_model.{name}.{suffix}" for name in NAMES for suffix in [*SUFFIXES[kind], "alpha"]}
    lora_file.save(loras / "a.safetensors", state, {})
    with torch.inference_mode():
        (applied,) = comfy_nodes.LoraLoaderModelOnly().load_lora_model_only(model, "a.safetensors", 1.0)
    assert "not loaded" not in caplog.text and "ERROR" not in caplog.text
    found = error(held.plain(applied), live)
    print(f"{kind}: error {found:.1e}, effect {error(live, base):.2f}")
    assert error(live, base) > 0.05
    assert found < 1e-5


@every_kind
def test_our_own_apply_takes_it_and_counts_all_modules(model, kind):
    from wantune.nodes.backend.applied import apply

    held = Held(model, KINDS[kind])
    state = lora_file.from_adapter(held.adapter.state_dict(), held.adapter.config.file_alpha)
    applied, fit = apply(model, state, 1.0)
    assert str(fit) == "30 of 30 modules matched"
    assert error(held.plain(applied), held.live()) < 1e-5


@every_kind
def test_untrained_it_changes_nothing_and_switched_off_neither(model, kind):
    fresh, trained = Held(model, KINDS[kind], is_random=False), Held(model, KINDS[kind])
    with trained.attached(), torch.no_grad(), trained.adapter.switched_off():
        base = trained.velocity()
    assert torch.equal(fresh.live(), base)
    assert error(base, trained.plain(model)) < 1e-5
    assert not torch.equal(trained.live(), base)


@every_kind
def test_the_same_update_and_gradients_as_pefts_own_forward(kind):
    """Of one layer, also in bf16; where ours is another way to the same numbers."""
    torch.manual_seed(0)
    weight = torch.randn(96, 64)

    adapter = Adapter(KINDS[kind], {"blocks.0.ffn.0": FixedLinear(weight)}, torch.device("cpu"), seed=0)
    for parameter in adapter.parameters:
        torch.nn.init.normal_(parameter.data, std=0.3)
    layer = adapter._layers["blocks.0.ffn.0"].eval()
    x = torch.randn(2, 5, 64)
    gradients = {}
    for name, forward in (("peft", layer), ("ours", adapter.forward_of("blocks.0.ffn.0", torch.float32))):
        start = x.clone().requires_grad_()
        y = forward(start)
        found = gradients_of(adapter, y.square().sum())
        gradients[name] = [y.detach(), start.grad, *found]
    for ours, theirs in zip(gradients["ours"], gradients["peft"], strict=True):
        assert error(ours, theirs) < 1e-6
    half = adapter.forward_of("blocks.0.ffn.0", torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16 and error(half.float(), gradients["peft"][0]) < 1e-2
    assert all(gradient.dtype == torch.float32 for gradient in gradients_of(adapter, half.float().square().sum()))


def test_a_product_by_factors_is_the_product_by_the_kronecker_product():
    for shapes in (((3, 4), (8, 6)), ((5, 2), (3, 7)), ((1, 1), (4, 4))):
        w1, w2 = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
        x = torch.randn(2, 3, w1.shape[1] * w2.shape[1], dtype=torch.float64)
        torch.testing.assert_close(kronecker(x, w1, w2), x @ torch.kron(w1, w2).T)


@every_kind
def test_state_dicts_come_back_bit_for_bit_and_others_are_refused(model, kind):
    held, fresh = Held(model, KINDS[kind]), Held(model, KINDS[kind], is_random=False)
    state = held.adapter.state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    fresh.adapter.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in fresh.adapter.state_dict().items())
    assert torch.equal(fresh.live(), held.live())
    with pytest.raises(UserError, match="use one that was trained on the same modules"):
        Held(model, KINDS["loha" if kind != "loha" else "lora"]).adapter.load_state_dict(state)


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_dropout_follows_its_seed_and_leaves_the_global_generator_alone(model, kind):
    held = Held(model, replace(KINDS[kind], dropout=0.3))
    off, before = held.live(), torch.get_rng_state()
    with held.attached(), torch.no_grad():
        def drawn(seed: int) -> torch.Tensor:
            with held.adapter.dropout_from(seed):
                return held.velocity()

        first, again, other = drawn(3), drawn(3), drawn(4)
        outside = held.velocity()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(outside, off), "off where nobody asked for it"
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(Held(model, KINDS[kind]).live(), off), "the same function without it"


@every_kind
def test_without_dropout_nothing_is_drawn(model, kind):
    held = Held(model, KINDS[kind])
    before = torch.get_rng_state()
    held.gradients()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["lora", "rslora", "lokr", "loha"])
def test_dropout_keeps_the_update_on_average(kind):
    nothing = FixedLinear(torch.zeros(96, 64))
    adapter = Adapter(replace(KINDS[kind], dropout=0.3), {"blocks.0.ffn.0": nothing}, torch.device("cpu"), seed=0)
    for parameter in adapter.parameters:
        torch.nn.init.normal_(parameter.data, std=0.3, generator=torch.Generator().manual_seed(0))
    forward = adapter.forward_of("blocks.0.ffn.0", torch.float32)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = forward(x)
        with adapter.dropout_from(0):
            drawn = [forward(x) for _ in range(2000)]
    assert error(sum(drawn) / 2000, expected) < 0.03
    assert error(drawn[0], expected) > 0.3


@every_kind
def test_gradient_checkpointing_gives_the_same_gradients(model, kind):
    plain, checkpointed = (Held(model, KINDS[kind], checkpointing=flag).gradients() for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_gradient_checkpointing_draws_the_same_dropout_again(model, kind):
    config = replace(KINDS[kind], dropout=0.3)
    plain, checkpointed = (Held(model, config, checkpointing=flag).gradients(5) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    other = Held(model, config, checkpointing=True).gradients(6)
    assert not all(torch.equal(a, b) for a, b in zip(other, checkpointed, strict=True))


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, NAMES),
    ({"targets": "attention"}, [name for name in NAMES if "attn" in name]),
    ({"targets": r"ffn\.2$"}, [f"blocks.{i}.ffn.2" for i in range(BLOCKS)]),
    ({"targets": "^blocks.2.cross_attn.[kv]$"}, ["blocks.2.cross_attn.k", "blocks.2.cross_attn.v"]),
    ({"first_block": 2}, [name for name in NAMES if name.startswith("blocks.2.")]),
    ({"last_block": 0}, [name for name in NAMES if name.startswith("blocks.0.")]),
    ({"first_block": 1, "last_block": 1, "targets": "attention"},
     [name for name in NAMES if name.startswith("blocks.1.") and "attn" in name]),
    ({"last_block": 99}, NAMES),
])
def test_exactly_the_chosen_modules_are_trained(model, settings, expected):
    assert chosen(LoraConfig(**settings), NAMES) == expected
    checkpointed = Held(model, LoraConfig(rank=RANK, alpha=ALPHA, **settings), checkpointing=True)
    plain = Held(model, LoraConfig(rank=RANK, alpha=ALPHA, **settings))
    assert checkpointed.adapter.num_modules == len(expected)
    state = lora_file.from_adapter(plain.adapter.state_dict(), plain.adapter.config.file_alpha)
    assert set(state) == {f"diffusion_model.{name}.{suffix}" for name in expected
                          for suffix in ("lora_A.weight", "lora_B.weight", "alpha")}
    assert error(held_with(model, state, plain), plain.live()) < 1e-5
    for a, b in zip(checkpointed.gradients(), plain.gradients(), strict=True):
        assert torch.equal(a, b) and a.isfinite().all() and a.any()


def held_with(model, state, held: Held) -> torch.Tensor:
    from wantune.nodes.backend.applied import apply

    return held.plain(apply(model, state, 1.0)[0])


@every_kind
def test_models_that_compute_in_half_precision_learn(comfy, tmp_path, kind, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_args, **_kwargs: None)
    for dtype in (torch.bfloat16, torch.float16):
        model = tools.load_dit(tools.random_dit(tmp_path, layers=2), dtype=dtype)
        held = Held(model, KINDS[kind], is_random=False, checkpointing=True)
        assert held.denoiser.compute_dtype == dtype
        optimizer = torch.optim.AdamW(held.adapter.parameters, lr=1e-2)
        losses = []
        with held.attached():
            for _ in range(6):
                with held.denoiser.training():
                    loss = held.velocity().square().mean()
                    loss.backward()
                held.adapter.collect_gradients()
                losses.append(loss.item())
                optimizer.step()
                optimizer.zero_grad()
        assert losses[-1] < 0.95 * losses[0], (dtype, losses)
        assert all(parameter.dtype == torch.float32 for parameter in held.adapter.parameters)
