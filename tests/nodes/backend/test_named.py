"""Which Wan a model or a LoRA is: what its form and its file's name tell, and no more."""

import pytest
import torch

from wantune.tests.support import tools
from wantune.trainer.lora import made_for

pytestmark = pytest.mark.usefixtures("comfy")


def sizes(width: int, blocks: int, *leaves: str) -> dict[str, tuple[int, int]]:
    return {f"blocks.{block}.{leaf}": (width, width) for block in range(blocks) for leaf in ("self_attn.q", *leaves)}


@pytest.mark.parametrize(("found", "text"), [
    (sizes(1536, 30), "Wan2.1 1.3B of width 1536 with 30 blocks"),
    (sizes(3072, 30), "Wan2.2 5B of width 3072 with 30 blocks"),
    (sizes(5120, 40), "Wan 14B of width 5120 with 40 blocks (Wan2.1, or an expert of Wan2.2 A14B: their shapes are the "
     "same)"),
    (sizes(5120, 40, "cross_attn.k_img"), "Wan 14B of width 5120 with 40 blocks (Wan2.1 image-to-video: it has modules "
     "for the image)"),
])
def test_shapes_tell_what_they_can_and_no_more(found, text):
    assert made_for.describe_model(found) == text


@pytest.mark.parametrize(("name", "told"), [
    ("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", "the high-noise expert of Wan2.2 A14B"),
    ("Wan2_2-T2V-A14B-LOW_fp8.safetensors", "the low-noise expert of Wan2.2 A14B"),
    ("Wan2.2-T2V-A14B-HighNoise-Q4_K_M.gguf", "the high-noise expert of Wan2.2 A14B"),
    ("wan22_l_14b.safetensors", "the low-noise expert of Wan2.2 A14B"), ("wan2.2_ti2v_5B.safetensors", "Wan2.2"),
    ("wan2.1_t2v_14B_fp16.safetensors", ""), ("my_low_res_high_quality.safetensors", ""), ("", ""),
])
def test_file_names_tell_the_experts(name, told):
    assert made_for.told_by_name(name) == told


def test_a_lora_of_one_expert_on_the_other_is_said(comfy, tmp_path, monkeypatch):
    import folder_paths

    from wantune.nodes.lora import ApplyLoRA
    from wantune.trainer.lora.file import LoraStateDict

    model = tools.load_dit(tools.random_dit(tmp_path))
    folder_paths.filename_list_cache.clear()
    prompt = {"1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan2.2_t2v_low_noise_14B.safetensors"}},
              "2": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0]}},
              "3": {"class_type": "WanTune_ApplyLoRA", "inputs": {"model": ["2", 0]}}}
    monkeypatch.setattr(model, "cached_patcher_init", None, raising=False)  # as before ComfyUI 0.13

    class Node(ApplyLoRA):
        hidden = type("Hidden", (), {"prompt": prompt, "unique_id": "3", "extra_pnginfo": None})

    tensors = {"diffusion_model.blocks.0.norm3.diff": torch.ones(128)}

    def said(file: str, header: dict | None = None) -> str:
        return Node.execute(model, 1.0, lora=LoraStateDict(tensors, header or {}, file)).ui.as_dict()["text"][0]

    assert ("By its name the LoRA was made for the high-noise expert, by its name the model is the low-noise expert."
            in said("wan22_mine_high_noise.safetensors"))
    assert "the high-noise expert, by" in said("a.safetensors", {
        "ss_sd_model_name": "Wan 14B (Wan2.1, or Wan2.2); by its file's name the high-noise expert of Wan2.2 A14B"})
    assert "made for Wan2.1, by its name the model is Wan2.2" in said("wan2.1_mine.safetensors")
    for file in ("wan22_mine_low_noise.safetensors", "mine.safetensors"):
        assert said(file) == "1 of 1 modules matched, strength 1"


def test_a_model_tells_its_file_where_there_is_no_node(comfy, tmp_path):
    from wantune.nodes.backend.named import file_of

    model = tools.load_dit(tools.random_dit(tmp_path))
    model.cached_patcher_init = None
    assert file_of(model, None) == ""
    model.cached_patcher_init = (tools.load_dit, ("D:\\models\\wan2.2_low.safetensors", {}))  # as of ComfyUI 0.13
    assert file_of(model, None) == "wan2.2_low.safetensors"
