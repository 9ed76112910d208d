"""The page's routes on a real server, asked as a page asks, and as nobody should ask."""

import concurrent.futures
import http.client
import json
import sys
import urllib.parse
from pathlib import Path

import pytest
import torch

from wantune.demo.server import Server
from wantune.tests.conftest import ROOT
from wantune.tests.support.runs import begun
from wantune.trainer.base.errors import content_hash
from wantune.trainer.runs.events import Evaluated, Previewed, Started, StepDone

JSON = {"Content-Type": "application/json"}
SECRET = b"nobody may read this"


def make_run(server, name: str, **origin) -> Path:
    """A run as training leaves it, with 50 steps, a checkpoint and a preview."""
    folder = begun(server.folder("output") / "wantune", name, content_hash("run", name), {"lora": {"rank": 4}})
    folder.log(Started(0, 80, 10, 40, 1000))
    folder.log(Evaluated(0, 0.5, (), 0.5, False))
    for step in range(1, 51):
        folder.log(StepDone(step, 80, 1, 1 / step, 1e-4, 1.0, (0.5,), (1 / step,), False, 0.1, 10.0))
    folder.save(50, {"a": torch.zeros(2)}, {"step": 50})
    (folder.path / "samples").mkdir()
    for suffix in ("mp4", "jpg"):
        (folder.path / "samples" / f"step_000050_0.{suffix}").write_bytes(f"a {suffix}".encode())
    folder.log(Previewed(50, "step_000050", ("samples/step_000050_0.mp4",)))
    folder.describe({"started": 1.0, **origin}, {"workflow": {"id": "w"}, "prompt": None})
    return folder.path


@pytest.fixture
def run(server, request):
    return make_run(server, f"route_{content_hash(request.node.name)[:12]}")


def ask(server, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
    """(status, JSON or bytes): the path goes over the wire as it stands."""
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
        for name, value in {**(headers or {}), "Content-Length": str(len(body or b""))}.items():
            connection.putheader(name, value)
        connection.endheaders()
        try:
            connection.send(body or b"")
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered before everything was sent
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    is_json = answer.headers.get_content_type() == "application/json"
    return answer.status, json.loads(content) if is_json else content


def post(server, path: str, body: dict | None = None, **headers):
    return ask(server, "POST", path, json.dumps(body or {}).encode(), JSON | headers)


def is_sentence(answer) -> bool:
    return set(answer) == {"error"} and len(answer["error"]) > 15 and "Traceback" not in answer["error"]


def test_the_page_gets_translations_of_what_the_server_says(server):
    for language in ("zh", "zh-TW"):
        status, found = ask(server, "GET", f"/wantune/sentences/{language}")
        assert status == 200 and found["That is not JSON."] == "\u8fd9\u4e0d\u662f JSON\u3002"
    for language in ("xx", "..", "%2e%2e%2f", "zh%2f.."):
        status, found = ask(server, "GET", f"/wantune/sentences/{language}")
        assert (status, found) == (200, {}) or status == 404


def test_a_damaged_run_is_listed_as_unreadable_beside_the_others_and_can_be_deleted(server, run):
    damaged = make_run(server, "damaged")
    (damaged / "config.json").write_bytes(b'{"run_name": 5')
    (damaged / "best.json").write_text('{"step": [], "loss": NaN}')
    status, listed = ask(server, "GET", "/wantune/runs")
    found = {each["run"]: each for each in listed["runs"]}
    assert status == 200 and found[run.name]["state"] == "interrupted" and found[run.name]["faults"] == []
    assert found[damaged.name]["state"] == "unreadable" and len(found[damaged.name]["faults"]) == 3
    assert found[damaged.name]["faults"][0].startswith("config.json is unreadable (it is not JSON);")
    assert ask(server, "GET", f"/wantune/runs/{damaged.name}")[0] == 200
    assert ask(server, "GET", "/wantune/node?run_name=damaged")[1]["run"] is None
    assert post(server, f"/wantune/runs/{damaged.name}/delete")[0] == 200 and not damaged.exists()


def test_a_run_is_listed_and_told_with_its_curve(server, run):
    status, listed = ask(server, "GET", "/wantune/runs")
    (found,) = [each for each in listed["runs"] if each["run"] == run.name]
    assert status == 200 and (found["step"], found["state"], found["continues_from"]) == (50, "interrupted", 50)
    status, told = ask(server, "GET", f"/wantune/runs/{run.name}?points=10")
    assert status == 200 and found.items() <= told.items()
    assert told["curve"]["step"] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert told["curve"]["high"][0] == 1 and told["curve"]["low"][-1] == 1 / 50
    assert told["held_out"] == [{"step": 0, "loss": 0.5, "base_loss": 0.5, "learned": None, "is_best": False}]
    assert told["now"] is None
    assert told["previews"] == [{
        "step": 50, "name": "step_000050", "files": ["samples/step_000050_0.mp4"],
        "motion": [], "base_motion": [], "likeness": [], "base_likeness": []}]
    status, part = ask(server, "GET", f"/wantune/runs/{run.name}?first=20&last=24")
    assert part["curve"]["step"] == [20, 21, 22, 23, 24]


def test_a_preview_and_the_graph_of_a_run(server, run):
    for suffix in ("mp4", "jpg"):
        assert ask(server, "GET", f"/wantune/runs/{run.name}/file?name=samples/step_000050_0.{suffix}") == (
            200, f"a {suffix}".encode())
    assert ask(server, "GET", f"/wantune/runs/{run.name}/workflow") == (200, {"workflow": {"id": "w"}, "prompt": None})


def test_a_node_finds_its_run_by_its_name_when_nothing_else_is_known(server, run):
    name = run.name.rsplit("-", 1)[0]
    assert ask(server, "GET", f"/wantune/node?workflow=x&node=3&run_name={name}")[1] == {"run": run.name, "shown": {}}
    assert ask(server, "GET", "/wantune/node?workflow=x&node=3&run_name=never")[1] == {"run": None, "shown": {}}


def test_a_node_finds_both_runs_of_a_pair_by_its_name(server, run):
    high, low = (make_run(server, f"pair_{run.name}_{expert}") for expert in ("high", "low"))
    path = f"/wantune/node?workflow=x&node=3&run_name=pair_{run.name}"
    assert ask(server, "GET", path)[1] == {"run": high.name, "run_low": low.name, "shown": {}}
    assert post(server, f"/wantune/runs/{low.name}/delete")[0] == 200
    assert ask(server, "GET", path)[1] == {"run": high.name, "shown": {}}
    answer = ask(server, "GET", f"/wantune/runs/{high.name}")[1]
    assert answer["is_waiting"] is False and answer["state"] == "interrupted"


def test_a_run_is_deleted_once(server, run):
    assert post(server, f"/wantune/runs/{run.name}/delete") == (200, {"deleted": run.name})
    assert not run.exists()
    status, answer = post(server, f"/wantune/runs/{run.name}/delete")
    assert status == 404 and is_sentence(answer)


HOSTILE = ["..", ".", "%2e%2e", "..%2f..", "..%5c..", "%2e%2e%2f%2e%2e%2fsecret", "%2fetc", "%2f", "C:%5cWindows",
           "C:", "%5c%5cserver%5cshare", "%5c%5c%3f%5cC:%5c", "a%00b", "%00", "cache", "compare", "nothing", "CON",
           "a" * 5000, "%ff%fe", "run%0d%0aX:%20y", "*", "~", "$HOME"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("action", ["", "/file?name=samples/a.mp4", "/workflow", "/delete"])
def test_no_name_of_a_run_leads_anywhere_else(server, run, name, action):
    (run.parent / "cache").mkdir(exist_ok=True)
    outside = run.parent.parent / "secret"
    outside.mkdir(exist_ok=True)
    (outside / "config.json").write_text('{"key": "x"}')
    before = sorted(path for path in server.folder("output").rglob("*"))
    if action == "/delete":
        status, answer = post(server, f"/wantune/runs/{name}{action}")
    else:
        status, answer = ask(server, "GET", f"/wantune/runs/{name}{action}")
    assert status in (400, 404, 405), answer
    assert not isinstance(answer, dict) or is_sentence(answer)
    assert sorted(path for path in server.folder("output").rglob("*")) == before


@pytest.mark.parametrize("name", [
    "../config.json", "samples/../config.json", "samples/../../../secret.jpg", "/etc/passwd", "samples//etc/passwd",
    "samples\\..\\config.json", "C:\\secret.jpg", "\\\\server\\share\\a.jpg", "samples/a.jpg\0", "samples/\0.jpg",
    "samples", "samples/", "", "log.jsonl", "step_000050/adapter.safetensors", "samples/.jpg",
    "samples/step_000050_0.JPG", "a" * 9000, "samples/" + "a" * 300 + ".jpg", "samples/link.jpg",
])
def test_no_name_of_a_preview_leads_anywhere_else(server, run, name, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(SECRET)
    (run / "samples" / "link.jpg").symlink_to(secret)
    status, answer = ask(server, "GET", f"/wantune/runs/{run.name}/file?name={urllib.parse.quote(name, safe='')}")
    assert status in (400, 404) and (not isinstance(answer, dict) or is_sentence(answer))


def test_links_are_no_way_out(server, run, tmp_path):
    """A run that is a link, and samples that are one."""
    (tmp_path / "config.json").write_text('{"key": "x"}')
    (tmp_path / "secret.jpg").write_bytes(SECRET)
    linked = run.parent / "linked-00000000"
    linked.symlink_to(tmp_path)
    try:
        assert ask(server, "GET", f"/wantune/runs/{linked.name}")[0] == 404
        assert post(server, f"/wantune/runs/{linked.name}/delete")[0] == 404
        assert linked.name not in [each["run"] for each in ask(server, "GET", "/wantune/runs")[1]["runs"]]
    finally:
        linked.unlink()
    (run / "samples").rename(run / "moved")
    (run / "samples").symlink_to(tmp_path)
    status, answer = ask(server, "GET", f"/wantune/runs/{run.name}/file?name=samples/secret.jpg")
    assert status == 404 and is_sentence(answer)


FOREIGN = [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"},
           {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
           {"Origin": "http://evil.example", "Host": "studio:8188"}]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_foreign_page_gets_and_changes_nothing(server, run, headers):
    for method, path in (("GET", "/wantune/runs"), ("GET", f"/wantune/runs/{run.name}"),
                         ("POST", f"/wantune/runs/{run.name}/delete"), ("POST", "/wantune/stop")):
        status, answer = ask(server, method, path, b"{}" if method == "POST" else None, JSON | headers)
        assert status == 403, (method, path, answer)
    assert run.is_dir()


def test_comfyuis_own_page_is_let_in_also_behind_a_proxy(server):
    host = urllib.parse.urlsplit(server.url).netloc
    for headers in ({"Sec-Fetch-Site": "same-origin", "Origin": server.url}, {"Origin": server.url},
                    {"Host": "inside:8188", "Origin": "https://studio.example", "X-Forwarded-Host": "studio.example"}):
        assert ask(server, "GET", "/wantune/runs", headers={"Host": host} | headers)[0] == 200, headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_that_any_page_can_send_is_no_json(server, run, kind):
    headers = {"Content-Type": kind} if kind else {}
    status, answer = ask(server, "POST", f"/wantune/runs/{run.name}/delete", b"{}", headers)
    assert status == 415 and is_sentence(answer) and run.is_dir()


@pytest.mark.parametrize("body", [b"{", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 60_000, b'{"run": 7}',
                                  b'{"run": null}'])
def test_a_body_that_is_not_what_is_asked_for_is_refused_in_a_sentence(server, body):
    status, answer = ask(server, "POST", "/wantune/stop", body, JSON)
    assert status == 400 and is_sentence(answer)


@pytest.mark.parametrize("size", [70_000, 10_000_000])
def test_a_large_body_is_refused_whether_its_size_is_said_or_not(server, size):
    body = json.dumps({"run": "a" * size}).encode()
    status, answer = ask(server, "POST", "/wantune/stop", body, JSON)
    assert status == 413 and is_sentence(answer)
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        parts = iter([body[i:i + 60_000] for i in range(0, len(body), 60_000)])
        connection.request("POST", "/wantune/stop", parts, JSON, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up on us in the middle, which is an answer as well
    finally:
        connection.close()
    assert ask(server, "GET", "/wantune/runs")[0] == 200


@pytest.mark.parametrize("query", ["points=abc", "points=1e9", "first=-", "last=0x1"])
def test_a_number_that_is_none_is_refused_in_a_sentence(server, run, query):
    status, answer = ask(server, "GET", f"/wantune/runs/{run.name}?{query}")
    assert status == 400 and is_sentence(answer)


def test_numbers_out_of_bounds_are_taken_to_their_bounds(server, run):
    for query in ("points=-5", "points=999999999", "first=-3&last=99999999999999999999"):
        assert ask(server, "GET", f"/wantune/runs/{run.name}?{query}")[0] == 200


def test_methods_that_there_are_not(server, run):
    for method in ("DELETE", "PUT", "PATCH"):
        assert ask(server, method, f"/wantune/runs/{run.name}", b"{}", JSON)[0] in (404, 405)
    assert ask(server, "GET", f"/wantune/runs/{run.name}/delete")[0] in (404, 405) and run.is_dir()


def test_two_hundred_requests_at_once_are_all_answered(server, run):
    with concurrent.futures.ThreadPoolExecutor(200) as threads:
        paths = [f"/wantune/runs/{run.name}", "/wantune/runs", "/wantune/runs/nothing", "/wantune/node?run_name=x"]
        answers = list(threads.map(lambda index: ask(server, "GET", paths[index % 4])[0], range(200)))
    assert sorted(set(answers)) == [200, 404] and answers.count(404) == 50


def test_stop_names_a_run_that_is_not_running(server, run):
    assert post(server, "/wantune/stop") == (200, {"stopping": False})
    assert post(server, "/wantune/stop", {"run": run.name}) == (200, {"stopping": False})


def test_help_is_there_under_the_name_that_the_page_asks_for_first(server):
    docs = ROOT / "web" / "docs"
    for node in (path.stem for path in docs.glob("*.md")):
        for language, path in (("en", docs / f"{node}.md"), ("zh", docs / node / "zh.md")):
            address = f"/extensions/{ROOT.name}/docs/{node}/{language}.md"
            assert ask(server, "GET", address) == (200, path.read_bytes())
    for node in ("nothing", "..%2f..%2fREADME", "%2e%2e", "a%00"):
        assert ask(server, "GET", f"/extensions/{ROOT.name}/docs/{node}/en.md")[0] in (400, 403, 404)


def test_with_several_users_each_sees_and_deletes_their_own_runs(comfy, tmp_path):
    users = {"anna_1": "anna", "ben_1": "ben"}
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "users.json").write_text(json.dumps(users))
    with Server(Path(sys.executable), comfy, ROOT, tmp_path, arguments=("--multi-user",)) as server:
        for path in ("/wantune/runs", "/wantune/node?run_name=x"):
            for headers in ({}, {"Comfy-User": "eve"}, {"Comfy-User": "../anna_1"}):
                status, answer = ask(server, "GET", path, headers=headers)
                assert status == 401 and is_sentence(answer)
        runs = {owner: make_run(server, f"of_{owner}", user=owner) for owner in (*users, None)}

        def names(user: str) -> set[str]:
            listed = ask(server, "GET", "/wantune/runs", headers={"Comfy-User": user})[1]["runs"]
            return {each["run"] for each in listed}

        assert names("anna_1") == {runs["anna_1"].name, runs[None].name}
        assert names("ben_1") == {runs["ben_1"].name, runs[None].name}
        assert post(server, f"/wantune/runs/{runs['anna_1'].name}/delete", **{"Comfy-User": "ben_1"})[0] == 404
        assert ask(server, "GET", f"/wantune/runs/{runs['anna_1'].name}", headers={"Comfy-User": "ben_1"})[0] == 404
        assert runs["anna_1"].is_dir()
        assert post(server, f"/wantune/runs/{runs['anna_1'].name}/delete", **{"Comfy-User": "anna_1"})[0] == 200
