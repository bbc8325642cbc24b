"""One of every message, for golden bytes and round trips."""

from typing import Any

import msgspec

from punie_protocol import client, engine, errors
from punie_protocol.backends import Backend
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_protocol.messages import common, to_model_client, to_model_host, to_supervisor, to_worker
from punie_protocol.permissions import Grant, Mode, PermissionSettings, Rule

LIMITS = common.Limits(max_frame=1024, max_queued_frames=8)
MODEL = common.ModelInfo(
    name="embedded",
    folder="/models/embedded",
    context_window=1024,
    prompt_style=common.PromptStyle.LEARNED,
    tool_call_format="qwen3-coder",
    max_output_tokens=700,
)
USAGE = common.Usage(input_tokens=10, cached_tokens=4, output_tokens=3)
ENGINE = engine.EngineStatus(
    running=1,
    batch=1,
    requests={"finished": 2},
    input_tokens=10,
    ttft_s=engine.Histogram(bounds=[0.5], counts=[1, 1], sum=2.0),
    kv=engine.KVStatus(running=4096, budget=1 << 30),
    clients=[engine.ClientUsage(client_id="c", running=1, requests=3)],
)
LOST = errors.ProcessLost(message="worker-1 ended", hint="ask again", process="worker-1", pid=7)

UNIONS: dict[str, Any] = {
    "to_supervisor": to_supervisor.ToSupervisor,
    "to_worker": to_worker.ToWorker,
    "control_to_model_host": to_model_host.ControlToModelHost,
    "client_to_model_host": to_model_host.ClientToModelHost,
    "to_model_client": to_model_client.ToModelClient,
}

SAMPLES: dict[str, list[msgspec.Struct]] = {
    "to_supervisor": [
        to_supervisor.Hello(
            protocol=1, version="0.1.0", role=common.Role.WORKER, pid=7, limits=LIMITS
        ),
        to_supervisor.Ready(),
        to_supervisor.ProjectReady(project_id="p1", activate_ms=12.5),
        to_supervisor.ProjectFailed(project_id="p1", error=LOST),
        to_supervisor.AgentMessage(session_id="s1", body=b'{"jsonrpc":"2.0","id":1,"result":{}}'),
        to_supervisor.StoreDelta(
            request_id=1, session_id="s1", prompt_id="q1", ordinal=0, data=b"[]"
        ),
        to_supervisor.EffectStarted(
            request_id=2,
            session_id="s1",
            prompt_id="q1",
            ordinal=1,
            effect_id="e1",
            tool="edit_file",
            arguments=b"{}",
        ),
        to_supervisor.EffectFinished(
            request_id=3, session_id="s1", effect_id="e1", ok=True, summary="1 line changed"
        ),
        to_supervisor.StoreGrant(
            request_id=4, session_id="s1", grant=Grant(key="edit", allow=True)
        ),
        to_supervisor.StoreTrust(request_id=5, project_id="p1", digest="abc"),
        to_supervisor.PromptDescribed(
            request_id=6,
            report=client.PromptReport(
                model="embedded",
                style="learned",
                exact=True,
                tokens=5,
                parts=[client.PromptPart(name="core", text="", tokens=5)],
            ),
            error=errors.Internal(message="no"),
        ),
        to_supervisor.CommandsTold(
            request_id=7,
            commands=[client.BackgroundCommand(job="job1-aa", command="serve", seconds=1.5)],
            error=errors.Internal(message="no"),
        ),
        to_supervisor.ModelState(
            request_id=-1,
            state=to_supervisor.Load.FAILED,
            name="x",
            done_bytes=1,
            total_bytes=2,
            model=MODEL,
            error=errors.ModelLoadFailed(message="no", folder="/x", file="config.json"),
        ),
        to_supervisor.HalfQuarantined(project_id="p1", operation="search", seconds=30.0),
        to_supervisor.ProgramsRunning(project_id="p1", count=2),
        to_supervisor.EngineReport(engine=ENGINE),
        to_supervisor.DoorIs(request_id=6, port=8321),
        to_supervisor.DoorIs(request_id=-1, error=LOST),
        to_supervisor.Pong(
            nonce=5,
            busy=1,
            halves=[
                common.HalfStatus(
                    project_id="p1",
                    calls=3,
                    failed=1,
                    busy_ms=2.5,
                    longest_ms=2.0,
                    waiting=0,
                    replaced=0,
                )
            ],
        ),
    ],
    "to_worker": [
        to_worker.Welcome(
            protocol=1,
            version="0.1.0",
            limits=LIMITS,
            model_socket="/run/m.sock",
            permissions=PermissionSettings(
                mode=Mode.TRUSTED, allow=[Rule(tool="edit", path="src/**", command="git push")]
            ),
            sandbox=SandboxSettings(read=["/opt/sdk"], write=["~/cache"], environment=["LANG"]),
            limits_of_process=WorkerLimits(memory_mb=1024, cpu_s=60.0, processes=64, files=512),
            crumbs="/run/crumbs",
            hidden=["/run/punie"],
            variables={"LANG": "C"},
        ),
        to_worker.OpenProject(
            project_id="p1",
            root="/src/a",
            isolation=common.Isolation.PROCESS,
            client_id="c0ffee",
            trusted="abc",
            slot=3,
            unconfined=True,
        ),
        to_worker.SetUnconfined(project_id="p1", unconfined=True),
        to_worker.TrustProject(project_id="p1", trusted="abc"),
        to_worker.CloseProject(project_id="p1", reason="idle"),
        to_worker.OpenSession(
            session_id="s1",
            project_id="p1",
            deltas=[b"[]"],
            mode=Mode.ASK,
            grants=[Grant(key="edit", allow=False)],
            effects=[
                to_worker.Effect(
                    effect_id="e1", tool="edit_file", arguments=b"{}", ok=None, summary=""
                )
            ],
        ),
        to_worker.SetMode(session_id="s1", mode=Mode.READ_ONLY),
        to_worker.DescribePrompt(
            request_id=1,
            project_id="p1",
            backend=Backend(url="http://127.0.0.1:1/v1", name="m", key="k"),
        ),
        to_worker.AskCommands(request_id=2, project_id="p1", stop=True),
        to_worker.SessionHistory(session_id="s1", deltas=[b"[]"]),
        to_worker.CloseSession(session_id="s1", reason="deleted"),
        to_worker.ClientMessage(session_id="s1", body=b"{}"),
        to_worker.Stored(request_id=1, error=errors.Internal(message="disk full")),
        to_worker.Ping(nonce=5),
        to_worker.Stop(reason="shutdown", deadline_s=2.0),
    ],
    "control_to_model_host": [
        to_model_host.Welcome(protocol=1, version="0.1.0", limits=LIMITS),
        to_model_host.LoadModel(request_id=4, model="embedded"),
        to_model_host.LoadModel(
            request_id=5,
            model="qwen",
            settings=engine.EngineSettings(
                speculation=engine.Speculation.DRAFT, num_draft_tokens=4, draft_model="qwen-small"
            ),
        ),
        to_model_host.OpenDoor(request_id=6, port=0, key="k"),
        to_model_host.CloseDoor(request_id=7),
        to_model_host.Ping(nonce=5),
        to_model_host.Stop(reason="shutdown", deadline_s=2.0),
    ],
    "client_to_model_host": [
        to_model_host.ClientHello(
            protocol=1, version="0.1.0", role=common.Role.WORKER, pid=7, limits=LIMITS
        ),
        to_model_host.Generate(
            request_id=9,
            client_id="c0ffee",
            conversation_id="s1",
            priority=common.Priority.INTERACTIVE,
            messages=[
                to_model_host.SystemMessage(text="be brief"),
                to_model_host.UserMessage(text="hi"),
                to_model_host.AssistantMessage(
                    text="",
                    tool_calls=[
                        to_model_host.ToolCallPart(
                            call_id="t1", name="read_file", arguments='{"a": 1}'
                        )
                    ],
                ),
                to_model_host.ToolMessage(call_id="t1", name="read_file", text="ok"),
            ],
            tools=[
                to_model_host.ToolSchema(name="read_file", description="Read.", parameters="{}")
            ],
            sampling=to_model_host.Sampling(
                temperature=0.5, stop=["\n\n"], logit_bias={7: -1.5}, xtc_probability=0.1
            ),
        ),
        to_model_host.Generate(
            request_id=10,
            client_id="http",
            conversation_id="c",
            priority=common.Priority.BACKGROUND,
            messages=[],
            prompt=[1, 2, 3],
        ),
        to_model_host.Generate(
            request_id=11,
            client_id="http",
            conversation_id="c",
            priority=common.Priority.INTERACTIVE,
            messages=[to_model_host.UserMessage(text="hi")],
            must_call="read_file",
            one_call=True,
        ),
        to_model_host.CancelGenerate(request_id=9),
        to_model_host.CountTokens(request_id=10, messages=[to_model_host.UserMessage(text="hi")]),
    ],
    "to_model_client": [
        to_model_client.ModelWelcome(protocol=1, version="0.1.0", limits=LIMITS, model=MODEL),
        to_model_client.ModelChanged(model=MODEL),
        to_model_client.Refused(
            error=errors.VersionSkew(message="protocol 2 met protocol 1", ours=1, theirs=2)
        ),
        to_model_client.PrefillProgress(request_id=9, done=5, total=10),
        to_model_client.TextDelta(request_id=9, text="häl"),
        to_model_client.ThinkingDelta(request_id=9, text="hm"),
        to_model_client.ToolCall(request_id=9, call_id="t1", name="read_file", arguments="{}"),
        to_model_client.Finished(
            request_id=9,
            stop_reason=to_model_client.StopReason.STOP,
            usage=USAGE,
            timings=to_model_client.StepTimings(queue=0.5, prefill=10.0, decode=20.0),
        ),
        to_model_client.Failed(
            request_id=9, error=errors.Cancelled(message="cancelled"), usage=USAGE
        ),
        to_model_client.TokenCount(request_id=10, tokens=7),
    ],
}
