"""`_punie/use`: the model and its engine's settings are changed while the daemon goes on."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from punie_protocol.client import Drafting
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.errors import PunieError
from punie_supervisor.config import Config
from tests.process.test_supervisor_door import model_of, until_model
from tests.support.cli import LEVEL
from tests.support.supervisor_rig import Client, Failed, running

type Test = Callable[[Client], Awaitable[None]]

SERVER = "http://127.0.0.1:9/v1#big"


def with_daemon(home: Path, test: Test, **options: Any) -> None:
    async def main() -> None:
        async with running(home, **options) as (_, paths), Client.connect(paths) as client:
            await test(client)

    asyncio.run(main())


async def ready(client: Client) -> dict[str, Any]:
    return await until_model(client, lambda model: model["state"] == "ready")


def drafting(model: dict[str, Any]) -> tuple[str, int | None, str | None]:
    settings = model["settings"]
    return (settings["speculation"], settings["num_draft_tokens"], settings["draft_model"])


def test_settings_change_and_the_model_stays(punie_home: Path):
    async def test(client: Client) -> None:
        assert drafting(await ready(client)) == ("auto", None, None)
        told = await client.call("_punie/use", speculation="ngram", numDraftTokens=3)
        assert (told["model"], told["folder"], told["changed"]) == ("tiny", "/models/tiny", True)
        assert drafting(told) == ("ngram", 3, None)
        told = await client.call("_punie/use", speculation="auto", draftModel="small")
        assert drafting(told) == ("auto", 3, "small"), "what is not named stays"
        model = await until_model(client, lambda model: model["engine"]["draft_model"]["name"])
        assert model["engine"]["draft_model"]["name"] == "small"
        told = await client.call("_punie/use", numDraftTokens=0, draftModel="")
        assert drafting(told) == ("auto", None, None)

    with_daemon(punie_home, test)


def test_settings_that_are_so_already_wait_for_the_model_that_is_being_loaded(punie_home: Path):
    """A daemon that was just started for them said at once that a model was in use, and that a
    draft model drafted which did not exist."""

    async def test(client: Client) -> None:
        told = await client.call("_punie/use", speculation="auto")
        assert (told["folder"], told["changed"]) == ("/models/tiny", False)
        assert (await model_of(client))["state"] == "ready"

    with_daemon(punie_home, test)


def test_what_is_so_already_loads_nothing(punie_home: Path):
    async def test(client: Client) -> None:
        await ready(client)
        await client.call("_punie/use", speculation="off")
        before = await until_model(client, lambda model: model["engine"])
        for wish in ({"speculation": "off"}, {"model": "tiny"}, {"model": "/models/tiny"}, {}):
            assert not (await client.call("_punie/use", **wish))["changed"], wish
        assert (await model_of(client))["engine"]["steps"] == before["engine"]["steps"]

    with_daemon(punie_home, test)


@pytest.mark.parametrize("wish", [{"model": "bad"}, {"model": "other", "draftModel": "bad"}])
def test_one_that_cannot_be_loaded_changes_nothing(punie_home: Path, wish: dict[str, Any]):
    async def test(client: Client) -> None:
        await ready(client)
        await client.call("_punie/use", numDraftTokens=7)
        before = await ready(client)
        with pytest.raises(Failed, match="half copied") as failed:
            await client.call("_punie/use", numDraftTokens=5, **wish)
        assert failed.value.punie["type"] == "model_load_failed"
        after = await ready(client)
        assert (after["name"], after["settings"]) == ("tiny", before["settings"])

    with_daemon(punie_home, test)


def test_a_draft_model_that_is_named_and_not_used_changes_nothing(punie_home: Path):
    async def test(client: Client) -> None:
        await ready(client)
        before = await client.call("_punie/use", draftModel="small")
        with pytest.raises(Failed, match="misfit!") as failed:
            await client.call("_punie/use", model="other", draftModel="misfit")
        assert failed.value.punie["type"] == "model_load_failed"
        after = await until_model(client, lambda model: model["engine"]["draft_model"]["name"])
        assert (after["name"], after["settings"]) == ("tiny", before["settings"])

    with_daemon(punie_home, test)


def test_a_draft_model_of_the_config_file_that_does_not_fit_is_no_obstacle(punie_home: Path):
    engine = EngineSettings(draft_model="misfit")

    async def test(client: Client) -> None:
        await ready(client)
        assert (await client.call("_punie/use", model="other"))["model"] == "other"
        model = await model_of(client)
        assert model["engine"]["draft_model"] == {"name": "", "error": "misfit!"}
        with pytest.raises(Failed, match="misfit!"):
            await client.call("_punie/use", draftModel="misfit")

    with_daemon(punie_home, test, config=Config(model="tiny", isolation=LEVEL, engine=engine))


@pytest.mark.parametrize(
    ("wish", "what"),
    [
        ({"speculation": "sometimes"}, "speculation"),
        ({"numDraftTokens": 65}, "numDraftTokens"),
        ({"numDraftTokens": -1}, "numDraftTokens"),
        ({"speculation": "draft"}, "needs a draft_model"),
        ({"model": SERVER}, "a server's"),
    ],
)
def test_a_faulty_wish_is_refused(punie_home: Path, wish: dict[str, Any], what: str):
    async def test(client: Client) -> None:
        before = await ready(client)
        with pytest.raises(Failed, match=what) as failed:
            await client.call("_punie/use", **wish)
        assert failed.value.punie["type"] == "invalid_request"
        assert (await ready(client))["settings"] == before["settings"]

    with_daemon(punie_home, test)


def test_the_next_host_has_the_settings_in_force(punie_home: Path):
    async def test(client: Client) -> None:
        await ready(client)
        await client.call("_punie/use", model="other", draftModel="small")
        pid = (await model_of(client))["pid"]
        os.kill(pid, signal.SIGKILL)
        model = await until_model(
            client,
            lambda model: model["pid"] not in (None, pid) and model["engine"] is not None,
        )
        assert model["name"] == "other"
        assert model["engine"]["draft_model"]["name"] == "small"
        assert model["engine"]["steps"] == -1, "its first load had them, not another one"

    with_daemon(punie_home, test)


def test_it_waits_for_the_turns_under_way_and_says_so(punie_home: Path, tmp_path: Path):
    async def test(client: Client) -> None:
        session = await client.session(tmp_path)
        turn = await client.ask(session, "wait")
        await client.method("session/update")
        use = await client.start("_punie/use", model="slow")
        waiting = await client.until(lambda m: m.get("params", {}).get("sessionId") == "")
        assert waiting["method"] == "_punie/progress"
        assert waiting["params"]["text"] == "waiting for 1 turn on model tiny"
        assert (await model_of(client))["name"] == "tiny"
        await client.send(method="$/cancel_request", params={"requestId": turn})
        assert (await client.result(turn))["stopReason"] == "cancelled"
        loading = await client.until(
            lambda m: m.get("params", {}).get("text", "").startswith("loading model slow ")
        )
        told = [m["params"]["text"] for m in client.seen if m.get("method") == "_punie/progress"]
        assert not [text for text in told if text.startswith("loading model tiny")], "it is there"
        assert loading["params"]["total"] == 10 * 1024 * 1024
        assert (await client.result(use))["model"] == "slow"

    with_daemon(punie_home, test)


def test_it_says_which_requests_of_others_the_host_waits_for(punie_home: Path):
    async def test(client: Client) -> None:
        await ready(client)
        assert (await client.call("_punie/use", model="late"))["model"] == "late"
        texts = [m["params"]["text"] for m in client.seen if m.get("method") == "_punie/progress"]
        waited = {text for text in texts if text.startswith("waiting for ")}
        one, two = (f"waiting for {count} on model tiny" for count in ("1 request", "2 requests"))
        assert waited
        assert waited <= {one, two}

    with_daemon(punie_home, test)


def test_a_switch_that_waits_can_be_withdrawn(punie_home: Path, tmp_path: Path):
    async def test(client: Client) -> None:
        session = await client.session(tmp_path)
        turn = await client.ask(session, "wait")
        await client.method("session/update")
        use = await client.start("_punie/use", model="other")
        await client.until(lambda m: m.get("params", {}).get("sessionId") == "")
        await client.send(method="$/cancel_request", params={"requestId": use})
        with pytest.raises(Failed) as failed:
            await client.result(use)
        assert failed.value.punie["type"] == "cancelled"
        ask = {"id": 7, "method": "_punie/use", "params": {"model": "other"}}
        client.together(ask, {"method": "$/cancel_request", "params": {"requestId": 7}})
        with pytest.raises(Failed) as failed:
            await client.result(7)
        assert failed.value.punie["type"] == "cancelled", "right behind it, too"
        await client.send(method="$/cancel_request", params={"requestId": turn})
        assert (await client.result(turn))["stopReason"] == "cancelled"
        assert await client.said(session, "say a") == "a"
        assert (await model_of(client))["name"] == "tiny"

    with_daemon(punie_home, test)


def test_whoever_goes_away_withdraws_it(punie_home: Path, tmp_path: Path):
    async def main() -> None:
        async with running(punie_home) as (_, paths), Client.connect(paths) as client:
            session = await client.session(tmp_path)
            turn = await client.ask(session, "wait")
            await client.method("session/update")
            async with Client.connect(paths) as other:
                await other.start("_punie/use", model="other")
                await other.method("_punie/progress")
            await client.send(method="$/cancel_request", params={"requestId": turn})
            await client.result(turn)
            assert await client.said(session, "say a") == "a"
            assert (await model_of(client))["name"] == "tiny"

    asyncio.run(main())


def test_a_host_that_rests_begins_with_it(punie_home: Path, tmp_path: Path):
    async def test(client: Client) -> None:
        assert (await model_of(client))["state"] == "server"
        told = await client.call("_punie/use", draftModel="small")
        assert (told["folder"], drafting(told)) == ("", ("auto", None, "small"))
        assert told["model"] == SERVER, "it answers, not the model that rests"
        assert (await model_of(client))["state"] == "server", "settings are no reason to start it"
        told = await client.call("_punie/use", model="tiny")
        assert (told["model"], told["changed"]) == ("tiny", True)
        model = await until_model(client, lambda model: model["engine"])
        assert (model["name"], model["engine"]["draft_model"]["name"]) == ("tiny", "small")
        session = await client.session(tmp_path)
        assert await client.said(session, "say a") == "a", "prompts that name no model get it"

    with_daemon(punie_home, test, model=SERVER)


def test_a_host_that_rests_and_cannot_begin_with_it(punie_home: Path):
    async def test(client: Client) -> None:
        with pytest.raises(Failed, match="half copied"):
            await client.call("_punie/use", model="tiny", draftModel="bad")
        assert drafting(await model_of(client)) == ("auto", None, None)
        assert (await client.call("_punie/use", model="tiny"))["model"] == "tiny"
        assert (await ready(client))["name"] == "tiny"

    with_daemon(punie_home, test, model=SERVER)


def test_the_command_line_goes_before_the_config_file(punie_home: Path):
    engine = EngineSettings(num_draft_tokens=4, speculation=Speculation.OFF)
    config = Config(model="tiny", isolation=LEVEL, engine=engine)

    async def test(client: Client) -> None:
        assert drafting(await ready(client)) == ("draft", 4, "small")

    wish = Drafting(speculation=Speculation.DRAFT, draft_model="small")
    with_daemon(punie_home, test, config=config, drafting=wish)


def test_settings_that_do_not_go_together_start_nothing(punie_home: Path):
    async def test(_client: Client) -> None:
        raise AssertionError

    with pytest.raises(PunieError, match="needs a draft_model"):
        with_daemon(punie_home, test, drafting=Drafting(speculation=Speculation.DRAFT))
