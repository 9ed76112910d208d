"""A ComfyUI server of our own: start, post a graph, wait for its end, fetch what it made, stop."""

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from .comfyui import ComfyUI

LAUNCH = Path(__file__).absolute().with_name("launch.py")
START_SECONDS = 300
"""A first start also compiles every module of ComfyUI, on a slow disk that takes minutes."""


class PromptFailed(RuntimeError):
    """A graph was refused, raised an exception or was interrupted; `details` is the server's own record."""

    def __init__(self, message: str, details: dict):
        super().__init__(message)
        self.details = details


class Server:
    """ComfyUI in a process of its own, with folders of its own in `workspace`; a context manager.

    This pack and `packs` are loaded from where they lie, and the small world of tests/world is among the models;
    `arguments` go to ComfyUI's main.py.
    """

    def __init__(
        self, python: Path, comfyui: ComfyUI, root: Path, workspace: Path, packs: tuple[Path, ...] = (),
        arguments: tuple[str, ...] = (),
    ):
        self.python = python
        self.comfyui = comfyui
        self.root = root
        self.workspace = workspace
        self.packs = (root / "tests" / "world_nodes", *packs)
        self.arguments = arguments
        self.log_path = workspace / "server.log"
        self.process = None
        self.url = ""

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def folder(self, name: str) -> Path:
        """One of the server's folders: input, output, temp, user or loras."""
        return self.workspace / name

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            RuntimeError: ComfyUI ended; with the last lines of its log.
            TimeoutError: it does not answer within START_SECONDS.
        """
        for name in ("input", "output", "temp", "user", "loras"):
            self.folder(name).mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # PASSIVE: threads that wait by spinning slow a busy machine down more than tenfold.
        settings = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        command = [str(self.python), str(LAUNCH), str(self.comfyui.path), *self._arguments(port)]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env={**settings, **os.environ}
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server: terminate it, and kill it where that takes more than 10 seconds."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process = None

    def log(self) -> str:
        """Everything the server has printed."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.is_file() else ""
        # Progress bars rewrite their line: each state becomes a line of its own. Colour codes are removed.
        return re.sub(r"\x1b\[[0-9;]*m", "", text.replace("\r", "\n"))

    def get(self, path: str):
        """The JSON that the server answers to GET."""
        return json.loads(self._request(path))

    def ask(self, path: str, body: dict):
        """The JSON that the server answers to POST of the body as JSON."""
        return json.loads(self._request(path, body))

    def post(self, graph: dict, workflow: dict | None = None) -> str:
        """Queue an API-format graph; returns its prompt id.

        Args:
            workflow: the graph in the page's format, which a page sends along.

        Raises:
            PromptFailed: any part of it is refused.
        """
        extra = {"extra_data": {"extra_pnginfo": {"workflow": workflow}}} if workflow else {}
        try:
            answer = json.loads(self._request("/prompt", {"prompt": graph, **extra}))
        except urllib.error.HTTPError as error:
            details = json.loads(error.read() or b"{}")
            raise PromptFailed(_refusal(details), details) from None
        if answer.get("node_errors"):
            # ComfyUI has queued the part of the graph that it did not refuse.
            self._request("/queue", {"delete": [answer["prompt_id"]]})
            self.interrupt()
            raise PromptFailed(_refusal(answer), answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float | None = None, tick=None) -> dict:
        """The history entry of a prompt once it has ended, well or not; `tick()` is called while it runs.

        Raises:
            TimeoutError: it runs longer than so many seconds.
            RuntimeError: the server ended.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                entry = self.history(prompt_id)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                # Ended, or so busy loading a model that it does not answer; the next line tells which.
                entry = None
            if entry is not None:
                return entry
            self._check_alive()
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"The graph runs longer than {seconds} seconds; see {self.log_path}.")
            if tick:
                tick()
            time.sleep(0.2)

    def run(self, graph: dict, seconds: float | None = None, tick=None, workflow: dict | None = None) -> dict:
        """Queue a graph, wait, and return its history entry.

        Raises:
            PromptFailed: it was refused, failed or was interrupted.
            TimeoutError, RuntimeError: as `wait` does.
        """
        entry = self.wait(self.post(graph, workflow), seconds, tick)
        if entry["status"]["status_str"] != "success":
            raise PromptFailed(_failure(entry), entry)
        return entry

    def history(self, prompt_id: str) -> dict | None:
        """What the server remembers of a prompt; None while it waits or runs."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def interrupt(self) -> None:
        """Interrupt the running prompt, as Cancel in the page does."""
        self._request("/interrupt", {})

    def fetch(self, file: dict) -> bytes:
        """The bytes of a file that a node listed in its output: {"filename", "subfolder", "type"}."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        return self._request(f"/view?{query}")

    def _arguments(self, port: int) -> list[str]:
        paths = self.workspace / "model_paths.yaml"
        # JSON is YAML, but for characters that it escapes as two surrogates; so ensure_ascii is off.
        paths.write_text(json.dumps(self._model_paths(), ensure_ascii=False), encoding="utf-8")
        arguments = ["--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
        arguments += ["--extra-model-paths-config", str(paths)]
        for name in ("input", "output", "temp", "user"):
            arguments += [f"--{name}-directory", str(self.folder(name))]
        if self.comfyui.accepts("--database-url"):
            arguments += ["--database-url", "sqlite:///:memory:"]
        if self.comfyui.accepts("--disable-api-nodes"):
            arguments += ["--disable-api-nodes"]
        arguments += self.arguments
        names = [self.root.name, *(pack.name for pack in self.packs)]
        return [*arguments, "--disable-all-custom-nodes", "--whitelist-custom-nodes", *names]

    def _model_paths(self) -> dict:
        world = str(self.root / "tests" / "world")
        nodes = [str(pack.parent) for pack in self.packs]
        if self.root.parent != self.comfyui.path / "custom_nodes":
            nodes.append(str(self.root.parent))
        return {
            "wantune": {
                "custom_nodes": "\n".join(nodes),
                "diffusion_models": world,
                "vae": world,
                "text_encoders": world,
            },
            # is_default: LoRAs that the graphs save must not land among the user's own.
            "wantune_results": {"is_default": True, "loras": str(self.folder("loras"))},
        }

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            self._check_alive()
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > end:
                    message = f"ComfyUI did not answer in {START_SECONDS} seconds:\n{self._tail()}"
                    raise TimeoutError(message) from None
                time.sleep(0.2)

    def _check_alive(self) -> None:
        if self.process is None or self.process.poll() is not None:
            code = "" if self.process is None else f" with exit code {self.process.returncode}"
            raise RuntimeError(f"ComfyUI ended{code}; its last lines:\n{self._tail()}")

    def _tail(self, lines: int = 25) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def _request(self, path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        # An opener of its own: requests to this machine must not go through a proxy named in the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            return response.read()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _refusal(details: dict) -> str:
    reasons = [details["error"]["message"]] if "error" in details else []
    for number, node in details.get("node_errors", {}).items():
        for error in node["errors"]:
            reason = f"{error['message']}, {error['details']}"
            if error["type"] == "custom_validation_failed":
                # ComfyUI repeats the node's own sentence for each input: "folder - There is no folder ..."
                reason = error["details"].partition(" - ")[2]
            reasons.append(f"node {number} ({node['class_type']}): {reason}")
    return "ComfyUI refused the graph: " + "; ".join(dict.fromkeys(reasons))


def _failure(entry: dict) -> str:
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{message['node_type']} failed: {message['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"The graph was interrupted in {message['node_type']}."
    return "The graph did not succeed, and the server gave no reason."
