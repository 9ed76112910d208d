"""The door of the routes: equal questions that wait are answered together, none with something old; whose page asks."""

import asyncio
import threading
import types

import pytest
from aiohttp import ClientSession, test_utils, web


class Questions:
    """A handler that answers with how often it was asked, and waits where it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def answer(self, asked) -> dict:
        about = asked.text("about")
        self.asked.append(about)
        if about == "slow":
            self.begun.set()
            assert self.may_go_on.wait(30)
        return {"about": about, "user": asked.user, "count": len(self.asked)}

    async def begin(self) -> None:
        """Return when the slow answer has begun."""
        assert await asyncio.to_thread(self.begun.wait, 30)


@pytest.fixture
def questions() -> Questions:
    return Questions()


def serve(questions: Questions, scenario) -> None:
    """Play `scenario(ask)`, where `ask(about, user, method)` gives the answer as JSON."""
    from wantune.nodes.page.asking import Door

    users = types.SimpleNamespace(get_request_user_id=lambda request: request.headers["Comfy-User"])
    server = types.SimpleNamespace(routes=web.RouteTableDef(), user_manager=users)
    door = Door(server)
    door.get("/asked", questions.answer)
    door.post("/asked", questions.answer)
    app = web.Application()
    app.add_routes(server.routes)

    async def play() -> None:
        async with test_utils.TestServer(app) as running, ClientSession() as session:
            async def ask(about: str, user: str = "anna", method: str = "GET", page: str = "") -> dict:
                body = {"json": {}} if method == "POST" else {}
                headers = {"Comfy-User": user, "WanTune-Client": page}
                async with session.request(method, running.make_url("/asked"), params={"about": about},
                                           headers=headers, **body) as answer:
                    return await answer.json()

            await scenario(ask)

    asyncio.run(play())


@pytest.mark.usefixtures("comfy")
def test_equal_questions_that_wait_are_answered_together(questions):
    async def scenario(ask):
        first = asyncio.create_task(ask("slow"))
        await questions.begin()
        waiting = [asyncio.create_task(ask(*each)) for each in [("runs",)] * 40 + [("runs", "ben")] * 40 + [("node",)]]
        gone = asyncio.create_task(ask("runs"))
        late = asyncio.create_task(ask("slow"))  # what the first one sees may be old by now
        await asyncio.sleep(0.3)
        gone.cancel()
        questions.may_go_on.set()
        answers = await asyncio.gather(first, late, *waiting)
        assert [each["about"] for each in answers] == ["slow", "slow"] + ["runs"] * 80 + ["node"]
        assert [each["user"] for each in answers[2:]] == ["anna"] * 40 + ["ben"] * 40 + ["anna"]
        assert sorted(questions.asked) == ["node", "runs", "runs", "slow", "slow"]
        assert (await ask("runs"))["count"] == 6, "an answer is not kept"

    serve(questions, scenario)


@pytest.mark.usefixtures("comfy")
def test_what_changes_something_is_done_as_often_as_it_is_asked(questions):
    async def scenario(ask):
        first = asyncio.create_task(ask("slow"))
        await questions.begin()
        waiting = [asyncio.create_task(ask("caption", method="POST")) for _ in range(10)]
        await asyncio.sleep(0.3)
        questions.may_go_on.set()
        await asyncio.gather(first, *waiting)
        assert questions.asked == ["slow"] + ["caption"] * 10

    serve(questions, scenario)


@pytest.mark.usefixtures("comfy")
def test_the_pages_that_asked_last_are_known(questions, monkeypatch):
    from wantune.nodes.page import asking

    monkeypatch.setattr(asking, "_clients", {})
    monkeypatch.setattr(asking, "MAX_CLIENTS", 3)

    async def scenario(ask):
        for page, user in (("a", "anna"), ("b", "ben"), ("c", "ben"), ("a", "anna"), ("d", "dora")):
            await ask("runs", user, page=page)

    serve(questions, scenario)
    assert {page: asking.user_of(page) for page in "abcd"} == {"a": "anna", "b": None, "c": "ben", "d": "dora"}
    assert asking.user_of(None) is None
