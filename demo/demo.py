"""`run.py demo`: the example workflow through a real ComfyUI server, and a report of what came out."""

import json
import shutil
import subprocess
import time
from pathlib import Path

from . import environment, graph, page
from .server import Server

MEASURE = Path(__file__).absolute().with_name("measure.py")


def main(root: Path, options) -> int:
    """Train, sample twice, compare; leaves base.mp4, lora.mp4, compare.mp4, the LoRA and report.json."""
    comfyui, python = environment.prepare(root, options.comfyui, options.python, "demo")
    example = graph.load(root)
    graph.name_installed_models(example, options, comfyui.path / "models")
    adapted = graph.adapt(example, options, root)
    shown = graph.add_outputs(adapted)
    out = options.out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    workspace = root / ".comfyui" / "run" / "demo"
    packs = (page.write_pack(root, adapted, workspace / "packs"),) if options.serve else ()
    print(f"Starting ComfyUI {comfyui.version} from {comfyui.path}", flush=True)
    with Server(python, comfyui, root, workspace, packs) as server:
        print(f"Caching, training and sampling; the page is {server.url}", flush=True)
        start = time.monotonic()
        entry = server.run(adapted, tick=_Heartbeat(server))
        report = {
            "comfyui": comfyui.version,
            "models": _models(adapted),
            "seconds": round(time.monotonic() - start, 1),
            **_collect(server, entry["outputs"], shown, out),
        }
        report |= _measured(python, out)
        (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _print(report, out)
        if options.serve:
            print(f"The workflow: {page.address(server.url)}\nStop with Ctrl+C.", flush=True)
            server.process.wait()
    return 0


class _Heartbeat:
    """Prints the server's last line now and then, so that a long training does not look dead."""

    def __init__(self, server: Server, seconds: float = 15):
        self.server = server
        self.seconds = seconds
        self.next = time.monotonic() + seconds

    def __call__(self) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + self.seconds
            lines = [line for line in self.server.log().splitlines() if line.strip()]
            print("  " + lines[-1][:100] if lines else "  ...", flush=True)


def _models(adapted: dict) -> dict:
    inputs = {node["class_type"]: node["inputs"] for node in adapted.values()}
    clip = inputs.get("CLIPLoader", {}).get("clip_name") or inputs[graph.TEXT_ENCODER]["name"]
    return {"unet": inputs["UNETLoader"]["unet_name"], "vae": inputs["VAELoader"]["vae_name"], "clip": clip}


def _collect(server: Server, outputs: dict, shown: graph.Shown, out: Path) -> dict:
    for name, node in (("base", shown.base), ("lora", shown.tuned), ("compare", shown.compare)):
        (out / f"{name}.mp4").write_bytes(server.fetch(outputs[node]["images"][0]))
    lora_name = outputs[shown.lora_name]["text"][0]
    lora = server.folder("loras") / lora_name
    shutil.copyfile(lora, out / lora.name)
    return {
        "training": _training(Path(outputs[shown.run]["text"][0])),
        "lora": {"name": lora_name, "applied": " ".join(outputs.get(shown.apply, {}).get("text", []))},
        "files": ["base.mp4", "lora.mp4", "compare.mp4", lora.name],
    }


def _training(run: Path) -> dict:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event.get("event") == "StepDone"]
    if not steps:
        raise RuntimeError(f"The run {run} has recorded no training step.")
    return {
        "run": str(run),
        "steps": steps[-1]["step"],
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "seconds": round(sum(step["seconds"] for step in steps), 1),
    }


def _measured(python: Path, out: Path) -> dict:
    command = [str(python), str(MEASURE), str(out / "base.mp4"), str(out / "lora.mp4")]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _print(report: dict, out: Path) -> None:
    training = report["training"]
    print(
        f"{training['steps']} steps in {training['seconds']} s, loss {training['first_loss']:.4f} -> "
        f"{training['last_loss']:.4f}; the videos differ by {report['mean_absolute_difference']} of 255"
    )
    print(f"Results in {out}: {', '.join(report['files'])}, report.json", flush=True)
