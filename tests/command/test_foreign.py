"""Settings of diffusion-pipe and musubi-tuner: files as their documentation writes them."""

import shutil

import pytest

from wantune.command import diffusion_pipe, musubi
from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.job import settings

DATASET = """
resolutions = [512, [1280, 720]]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = [1, 33]
cache_shuffle_num = 10
new_key = 3

[[directory]]
path = 'pictures'
mask_path = 'pictures/masks'
num_repeats = 10

[[directory]]
path = 'clips'
num_repeats = 0.5
resolutions = [256]
skip_empty_caption = false
caption_prefix = 'GF Carty Chan, '
"""

CONFIG = """
output_dir = '/data/diffusion_pipe_training_runs/wan'
dataset = 'dataset.toml'
epochs = 1000
micro_batch_size_per_gpu = 2
pipeline_stages = 1
gradient_accumulation_steps = 4
gradient_clipping = 0.5
warmup_steps = 100
lr_scheduler = 'cosine'
blocks_to_swap = 20
eval_every_n_epochs = 1
eval_before_first_step = true
eval_micro_batch_size_per_gpu = 1
save_every_n_epochs = 2
checkpoint_every_n_minutes = 120
activation_checkpointing = true
partition_method = 'parameters'
save_dtype = 'bfloat16'
caching_batch_size = 1
steps_per_print = 1
video_clip_mode = 'single_middle'
uncond_fraction = 0.1

[model]
type = 'wan'
ckpt_path = '/models/Wan2.1-T2V-1.3B'
transformer_path = '/models/wan2.1_t2v_1.3B_bf16.safetensors'
llm_path = '/models/umt5-xxl-enc-bf16.safetensors'
dtype = 'bfloat16'
transformer_dtype = 'float8'
timestep_sample_method = 'logit_normal'
shift = 3

[adapter]
type = 'lora'
rank = 16
dtype = 'bfloat16'

[optimizer]
type = 'adamw_optimi'
lr = 2e-5
betas = [0.9, 0.99]
weight_decay = 0.01
eps = 1e-8

[monitoring]
enable_wandb = true
"""


@pytest.fixture
def place(here):
    (here / "dataset.toml").write_text(DATASET, encoding="utf-8")
    (here / "config.toml").write_text(CONFIG, encoding="utf-8")
    for name in ("pictures", "clips"):
        (here / name).mkdir()
    return here


def test_a_config_of_diffusion_pipe_is_a_run_of_ours(place):
    found = diffusion_pipe.read(place / "config.toml")
    run = settings.of(found.sections, place)
    train = run.train
    assert (train.epochs, train.max_steps, train.batch_size, train.learning_rate) == (1000, 0, 2, 2e-5)
    assert (train.lora.rank, train.lora.alpha, train.lora.kind, train.gradient_checkpointing) == (16, 16, "lora", True)
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.beta1, optimizer.beta2, optimizer.schedule, optimizer.warmup_steps,
            optimizer.accumulation, optimizer.max_grad_norm) == ("adamw", 0.9, 0.99, "cosine", 100, 4, 0.5)
    assert (train.objective.timesteps, train.objective.shift) == ("logit_normal", 3)
    assert (train.validation.every_epochs, train.validation.every_minutes, train.validation.evaluate_epochs) == (
        2, 120, 1)
    assert (run.models.model, run.models.clip, run.models.quantization, run.models.dtype) == (
        "/models/wan2.1_t2v_1.3B_bf16.safetensors", "/models/umt5-xxl-enc-bf16.safetensors", "fp8", "bfloat16")
    pictures, clips = run.datasets
    assert (pictures.folder, pictures.resolutions, pictures.frame_buckets, pictures.num_repeats) == (
        str(place / "pictures"), (512, 960), (1, 33), 10)
    assert (pictures.masks, pictures.caption_fallback, pictures.extraction, pictures.caption_dropout,
            pictures.shuffle_tags, pictures.upscale) == ("folder", "leave out", "middle", 0.1, True, True)
    assert (clips.resolutions, clips.num_repeats, clips.trigger_word, clips.masks, clips.caption_fallback) == (
        (256,), 1, "GF Carty Chan", "none", "trigger word")


@pytest.mark.parametrize("named", [
    "output_dir", "blocks_to_swap = 20", "save_dtype", "ckpt_path", "[monitoring]", "eval_micro_batch_size_per_gpu",
    "min_ar = 0.5", "num_ar_buckets", "new_key = 3", "num_repeats is 0.5, and here 1", "caption_prefix",
    "skip_empty_caption", "cache_shuffle_num = 10"])
def test_what_diffusion_pipe_has_alone_is_named_once(place, named):
    notes = diffusion_pipe.read(place / "config.toml").notes
    assert len([note for note in notes if named in note]) in (1, 2), notes  # once, or for each of two folders
    assert not [note for note in notes if "pipeline_stages" in note or "partition_method" in note], "as it is here"


def test_a_dataset_of_diffusion_pipe_alone_is_read(place, call):
    shutil.copytree(tools.write_pictures(place / "written"), place / "pictures", dirs_exist_ok=True)
    shutil.copytree(place / "pictures", place / "clips", dirs_exist_ok=True)
    found = call("scan", "--from-diffusion-pipe", "dataset.toml", "--more-resolutions=", "--resolution", 64)
    assert found.code == 0 and "note: dataset.toml" in found.err, found.err
    assert "8 of 8 files are used" in found.out


@pytest.mark.parametrize("change, said", [
    (("'wan'", "'flux'"), "is for a model of type 'flux'; only wan is trained here"),
    (("[adapter]", "[other]"), "asks for a full fine-tune"),
    (("'dataset.toml'", "'nowhere.toml'"), "nowhere.toml cannot be read"),
    (("[model]", "[models]"), r"has neither \[model\] nor \[\[directory\]\]"),
    (("rank = 16", "rank = 'x'"), "rank is 'x'; give a number"),
])
def test_a_config_that_cannot_be_a_run_is_refused_in_a_sentence(place, change, said):
    (place / "config.toml").write_text(CONFIG.replace(*change), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        diffusion_pipe.read(place / "config.toml")


MUSUBI_DATASET = """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 2
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "pictures"
cache_directory = "/cache/pictures"
num_repeats = 3

[[datasets]]
video_directory = "clips"
cache_directory = "/cache/clips"
resolution = 256
target_frames = [1, 26, 45]
frame_extraction = "chunk"
source_fps = 30.0
multiple_target = true
"""

SCRIPT = r"""
set -e
# as docs/wan.md has it
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/wan_train_network.py \
    --task i2v-A14B \
    --dit path/to/low.safetensors --dit_high_noise path/to/high.safetensors --timestep_boundary 900 \
    --dataset_config dataset.toml --sdpa --mixed_precision bf16 --fp8_base \
    --optimizer_type adamw8bit --optimizer_args "weight_decay=0.1" "betas=0.9,0.95" fused=True \
    --learning_rate 2e-4 --gradient_checkpointing --lr_scheduler cosine --lr_warmup_steps 50 \
    --max_data_loader_n_workers 2 --persistent_data_loader_workers --blocks_to_swap 20 \
    --network_module networks.lora_wan --network_dim 32 --network_alpha=16 \
    --timestep_sampling shift --discrete_flow_shift 3.0 --min_timestep 0 --max_timestep 950 \
    --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 \
    --output_dir path/to/output_dir --output_name name-of-lora --new_argument
"""


@pytest.fixture
def musubi_place(here):
    (here / "dataset.toml").write_text(MUSUBI_DATASET, encoding="utf-8")
    (here / "train.sh").write_text(SCRIPT, encoding="utf-8")
    for name in ("pictures", "clips"):
        (here / name).mkdir()
    return here


def test_a_dataset_and_a_script_of_musubi_are_a_run_of_ours(musubi_place):
    found = musubi.read([musubi_place / "dataset.toml", musubi_place / "train.sh"])
    run = settings.of(found.sections, musubi_place)
    train = run.train
    assert (run.run_name, train.epochs, train.max_steps, train.batch_size, train.seed) == (
        "name-of-lora", 16, 0, 2, 42)
    assert (train.learning_rate, train.lora.rank, train.lora.alpha, train.gradient_checkpointing) == (
        2e-4, 32, 16, True)
    assert (run.models.model, run.models.model_low, run.models.quantization) == (
        "path/to/high.safetensors", "path/to/low.safetensors", "fp8")
    optimizer, objective = train.optimizer, train.objective
    assert (optimizer.name, optimizer.weight_decay, optimizer.beta1, optimizer.beta2, optimizer.schedule,
            optimizer.warmup_steps) == ("adamw8bit", 0.1, 0.9, 0.95, "cosine", 50)
    assert (objective.timesteps, objective.shift, objective.max_t, objective.boundary) == (
        "logit_normal", 3, 0.95, 0.9)
    pictures, clips = run.datasets
    assert (pictures.folder, pictures.resolution, pictures.num_repeats, pictures.frame_buckets, pictures.upscale,
            pictures.condition) == (str(musubi_place / "pictures"), 723, 3, (1,), True, "first frame")
    assert (clips.resolution, clips.frame_buckets, clips.extraction) == (256, (1, 25, 45), "chunks")
    for named in ("blocks_to_swap = 20", "output_dir", "optimizer_args fused=True", "new_argument = True",
                  "multiple_target"):
        assert len([note for note in found.notes if named in note]) == 1, found.notes
    assert not [note for note in found.notes if "cache_directory" in note or "sdpa" in note]


def test_a_config_file_of_musubi_has_its_defaults(musubi_place):
    (musubi_place / "arguments.toml").write_text(
        "[any_section]\ntask = 't2v-1.3B'\ndit = 'dit.safetensors'\n[another]\nnetwork_dim = 8\n", encoding="utf-8")
    run = settings.of(musubi.read([musubi_place / "arguments.toml", musubi_place / "dataset.toml"]).sections,
                      musubi_place)
    assert (run.train.max_steps, run.train.lora.alpha, run.train.learning_rate, run.train.objective.timesteps,
            run.train.optimizer.warmup_steps, run.train.optimizer.beta2) == (1600, 1, 2e-6, "uniform", 0, 0.999)
    assert [config.condition for config in run.datasets] == ["none", "none"]


@pytest.mark.parametrize("text, said", [
    ("[[datasets]]\nimage_jsonl_file = 'a.jsonl'\n", "image_jsonl_file, which is not read here"),
    ("[general]\ntask = 'hv'\n", "is for the task hv; those of Wan"),
    ("[[datasets]]\nimage_directory = 'a'\nresolution = 'big'\n", "resolution is 'big'; give a side"),
    ("[[datasets\n", "is no TOML"),
])
def test_what_of_musubi_cannot_be_read_is_refused_in_a_sentence(here, text, said):
    (here / "musubi.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        musubi.read([here / "musubi.toml"])


def test_a_script_without_musubi_is_refused(here):
    (here / "train.sh").write_text("python train.py\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no line with wan_train_network.py"):
        musubi.read([here / "train.sh"])
