"""Where our files lie in ComfyUI's folders."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import folder_paths

from ...trainer.base.errors import UserError
from ...trainer.base.refusals import in_a_sentence
from . import saved_names


def dataset_folder(text: str) -> Path:
    """The real path of a dataset: given as an absolute path, or relative to ComfyUI's input folder.

    Raises:
        UserError: the text is empty or no path.
    """
    if "\0" in text:
        raise UserError(f"folder {text!r} is not a path; give the folder that holds your pictures.")
    if not text.strip():
        raise UserError("folder is empty; give the folder that holds your pictures, for example my_pictures.")
    return (Path(folder_paths.get_input_directory()) / text.strip().strip('"')).resolve()


def cache_folder() -> Path:
    """The folder of the encoded latents and texts, which all runs share."""
    return Path(folder_paths.get_output_directory()) / "wantune" / "cache"


def scans_folder() -> Path:
    """The folder of what scans have found out about dataset files, so that unchanged files are not read again."""
    return cache_folder() / "scans"


def runs_folder() -> Path:
    """The folder that holds a folder for each run."""
    return Path(folder_paths.get_output_directory()) / "wantune"


def new_job_folder(name: str) -> Path:
    """The path of a new folder in output/wantune_jobs, <name>_<number>; it is not made."""
    root = Path(folder_paths.get_output_directory()) / "wantune_jobs"
    return root / f"{name}_{_next_number(root, name, ('',)):05d}"


def shown_file() -> Path:
    """The SQLite file of what our nodes showed last; see nodes/page/shown.py."""
    return runs_folder() / "shown.sqlite"


def new_video_file(name: str) -> Path:
    """The path of a new file in output/wantune, <name>_<number>_.mp4.

    Raises:
        UserError: the folder is missing and cannot be made.
    """
    with in_a_sentence("The video cannot be written", runs_folder()):
        folder, name, counter, *_ = folder_paths.get_save_image_path(
            f"wantune/{name}", folder_paths.get_output_directory())
    return Path(folder) / f"{name}_{counter:05}_.mp4"


def saved_result(path: Path) -> dict[str, str]:
    """A file of ComfyUI's output folder as the page requests it (ComfyUI's SavedResult)."""
    subfolder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": "output"}


def new_lora_files(filename: str, *endings: str) -> list[tuple[Path, str]]:
    """The paths of new files in ComfyUI's first loras folder, and their names in ComfyUI's LoRA lists.

    There is one file for each ending of the name, such as "_high" and "_low". Their number is one more than the highest
    of these names, whether in capitals or not: some systems do not tell these apart, and ComfyUI shows the old content
    of a name that it has loaded before.

    Raises:
        UserError: the name leads out of the folder, or some system refuses it.
    """
    *folders, stem = saved_names.check(filename)
    root = Path(folder_paths.get_folder_paths("loras")[0]).resolve()
    folder = root.joinpath(*folders)
    number = _next_number(folder, stem, endings, r"\.safetensors")
    found = [folder / f"{stem}{ending}_{number:05d}.safetensors" for ending in endings]
    return [(path, str(path.relative_to(root))) for path in found]


def _next_number(folder: Path, stem: str, endings: tuple[str, ...], suffix: str = "") -> int:
    either = "|".join(re.escape(ending.casefold()) for ending in endings)
    form = re.compile(rf"{re.escape(stem.casefold())}(?:{either})_(\d+){suffix}")
    numbers = []
    with suppress(OSError):  # there is no such folder yet
        numbers = [int(found[1]) for path in folder.iterdir() if (found := form.fullmatch(path.name.casefold()))]
    return 1 + max(numbers, default=0)


def lora_file(name: str) -> Path:
    """The file behind a name of ComfyUI's LoRA lists.

    Raises:
        UserError: no such file.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise UserError(f"There is no LoRA {name!r} in ComfyUI's loras folders; press R to refresh the lists.")
    return Path(path)
