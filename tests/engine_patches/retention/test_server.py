"""`--kv-retention` in a real server: agent loops and intercepts over HTTP, as clients send them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32
NUM_BLOCKS = 24
SETTINGS = {
    "policy": "pin",
    "max_pinned_fraction": 0.7,
    "min_pin_tokens": 128,
    "session_fallback": "prefix",
}
CALL = '{"name": "search", "arguments": {"q": "cats"}}'
STORY = "The lighthouse keeper wrote every morning what the sea had brought. " * 16
AGAIN = " what. The lighthouse keeper wrote every"
PROMPT = STORY.rstrip()  # the model goes on with the next sentence of the same


class Server:
    """A client of the server, with the counts of its scheduler."""

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        # trust_env: a proxy of the environment must not see requests to loopback.
        self.http = httpx.Client(base_url=url, timeout=120, trust_env=False)

    def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json={"model": self.model, **body}, headers=headers)
        return {"status": answer.status_code, **answer.json()}

    def complete(
        self, prompt: object, headers: dict[str, str] | None = None, **body: Any
    ) -> dict[str, Any]:
        body = {"max_tokens": 12, "temperature": 0, "return_token_ids": True, **body}
        answer = self.post("/v1/completions", headers, prompt=prompt, **body)
        assert answer["status"] == 200, answer
        return answer

    def intercept(self, **body: Any) -> dict[str, Any]:
        body = {"temperature": 0, "max_tokens": 60, **body}
        answer = self.post("/v1/intercepts", **body)
        assert answer["status"] == 200, answer
        return answer

    def resume(self, intercept: dict[str, Any], **body: Any) -> dict[str, Any]:
        answer = self.http.post(f"/v1/intercepts/{intercept['id']}/resume", json=body)
        return {"status": answer.status_code, **answer.json()}

    def retention(self) -> dict[str, Any]:
        answer = self.http.get("/v1/kv_retention").raise_for_status().json()
        (engine,) = answer["engines"]
        return {**answer, **engine, **engine["counts"]}

    def crowd(self) -> None:
        """One-shot requests, too short to be held, that together want more memory than there is."""
        for index in range(10):
            prompt = [1000 + 300 * index + position for position in range(100)]
            self.complete(prompt, max_tokens=1)

    def forget(self) -> None:
        """Lets everything go that earlier tests have left."""
        self.http.post("/reset_prefix_cache").raise_for_status()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    from adaseek.testing.local_engine import local_engine

    flags = ["--kv-retention", json.dumps(SETTINGS), "--enable-prompt-tokens-details"]
    flags += ["--dtype", "float32", "--num-gpu-blocks-override", str(NUM_BLOCKS)]
    with local_engine(
        "SmolLM2-135M-Instruct",
        flags=flags,
        max_model_len=512,
        progress=False,
        env={"VLLM_SERVER_DEV_MODE": "1"},  # for /reset_prefix_cache
    ) as engine:
        client = Server(engine.base_url.removesuffix("/v1"), engine.model)
        with client.http:
            yield client


@pytest.fixture
def server(running: Server) -> Server:
    running.forget()
    return running


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"] or 0)


def written(answer: dict[str, Any]) -> list[int]:
    return list(answer["choices"][0]["token_ids"])


def context(answer: dict[str, Any]) -> list[int]:
    return [*answer["choices"][0]["prompt_token_ids"], *written(answer)]


@pytest.mark.parametrize("door", ["field", "header", "xargs", "prefix"])
def test_follow_up_hits_after_a_crowd_by_every_name_of_a_session(server: Server, door: str) -> None:
    named: dict[str, Any] = {
        "field": {"session_id": "by-field"},
        "header": {"headers": {"X-Session-ID": "by-header"}},
        "xargs": {"vllm_xargs": {"session_id": "by-xargs"}},
        "prefix": {},  # a client that knows nothing of sessions
    }[door]
    first = server.complete(f"{door}. {STORY}", **named)
    report = first["kv_transfer_params"]["kv_retention"]
    assert report["decision"] == "pin"
    server.crowd()
    follow_up = server.complete([*context(first), 9, 10, 11], **named)
    assert cached(follow_up) == report["held_tokens"] > 128


def test_without_a_hold_the_crowd_takes_it_all(server: Server) -> None:
    first = server.complete(f"lost. {STORY}", vllm_xargs={"kvret_final": 1})
    server.crowd()
    assert cached(server.complete(context(first))) == 0


def test_metrics_tell_of_resumes_and_what_they_saved(server: Server) -> None:
    first = server.complete(f"metrics. {STORY}", session_id="metrics")
    server.complete(context(first), session_id="metrics")
    until(lambda: metric(server, "resumes_total") > 0)
    assert metric(server, "saved_tokens_total") > 128


def test_chat_turns_are_a_session_and_a_crowd_costs_nothing(server: Server) -> None:
    messages = [{"role": "user", "content": STORY}]
    body: dict[str, Any] = {"session_id": "chat", "temperature": 0, "max_tokens": 12}
    first = server.post("/v1/chat/completions", messages=messages, **body)
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    server.crowd()
    follow_up = server.post("/v1/chat/completions", messages=messages, **body)
    assert cached(follow_up) >= first["usage"]["prompt_tokens"] - BLOCK


@pytest.mark.parametrize(
    "text", [CALL, f"<tool_call>\n{CALL}\n</tool_call>", "The sea was calm today."]
)
def test_tool_call_at_the_end_of_a_turn_is_reported(server: Server, text: str) -> None:
    answer = server.complete(
        f"call. {STORY}",
        session_id="call",
        max_tokens=60,
        structured_outputs={"choice": [text]},
    )
    assert answer["choices"][0]["text"] == text
    report = answer["kv_transfer_params"]["kv_retention"]
    is_call = CALL in text
    assert (report["calls_tool"], report["tool"]) == (is_call, "search" if is_call else "")


def test_final_turn_and_release_let_go_at_once(server: Server) -> None:
    def held(name: str, **body: Any) -> int:
        before = server.retention()["num_held_blocks"]
        server.complete(f"{name}. {STORY}", session_id=name, **body)
        return int(server.retention()["num_held_blocks"]) - before

    assert held("going", vllm_xargs={"kvret_final": 1}) <= 0
    server.complete(f"staying. {STORY}", session_id="staying")
    before = server.retention()["num_held_blocks"]
    release = {"session_id": "staying", "cache_salt": "of another tenant"}
    assert server.http.post("/v1/kv_retention/release", json=release).json() == {
        "num_released_blocks": 0
    }
    release = {"session_id": "staying"}
    answer = server.http.post("/v1/kv_retention/release", json=release).json()
    assert answer["num_released_blocks"] > 0
    assert server.retention()["num_held_blocks"] == before - answer["num_released_blocks"]


def test_diverged_history_releases_what_it_no_longer_shares(server: Server) -> None:
    server.complete(f"diverged. {STORY}", session_id="diverged")
    before = server.retention()["num_diverged_blocks"]
    server.complete("Something else altogether.", session_id="diverged")
    assert server.retention()["num_diverged_blocks"] > before


def test_turn_that_ends_at_a_stop_text_is_held(server: Server) -> None:
    first = server.complete(PROMPT, stop=["morning"])
    assert first["choices"][0]["finish_reason"] == "stop"
    until(lambda: server.retention()["num_sessions_holding"] > 0)
    server.crowd()
    assert cached(server.complete([*context(first), 9, 10])) > 128


@pytest.mark.parametrize(
    "hints",
    [
        {"kvret_tool": "x" * 100_000, "kvret_expect_s": 1e300, "kvret_ttl_s": -1.0},
        {"kvret_final": "perhaps", "kvret_tool": 3, "kvret_pause_at": "all"},
        {"session_id": "s" * 100_000},
    ],
)
def test_impossible_hints_are_left_out(server: Server, hints: dict[str, Any]) -> None:
    plain = server.complete("Hints.")
    assert written(server.complete("Hints.", vllm_xargs=hints)) == written(plain)


def test_intercepts_write_what_one_plain_request_writes(server: Server) -> None:
    first = server.intercept(prompt=PROMPT, **trigger())
    assert first["state"] == "paused"
    assert first["trigger"] == {"type": "stop", "text": " morning"}
    server.crowd()
    until(lambda: server.retention()["num_sessions_holding"] > 0)
    second = server.resume(first, text=AGAIN)
    third = server.resume(second, token_ids=[300, 301, 302])
    assert cached(second) > 128
    # The same, in plain requests: the context of each, as the server counts it.
    tokens = tokenized(server, PROMPT)
    for segment, tool in (
        (first, tokenized(server, AGAIN)),
        (second, [300, 301, 302]),
        (third, []),
    ):
        plain = server.complete(tokens, max_tokens=len(segment["token_ids"]), ignore_eos=True)
        assert written(plain) == segment["token_ids"]
        tokens += [*segment["token_ids"], *tool]


def test_stop_token_pauses_and_the_stream_goes_on(server: Server) -> None:
    (morning,) = tokenized(server, " morning")
    first = server.intercept(prompt=PROMPT, triggers={"stop_token_ids": [morning]})
    assert first["trigger"] == {"type": "stop_token", "token_id": morning}
    assert first["token_ids"][-1] == morning
    assert first["kv_retention"]["calls_tool"]
    tool = " what. The lighthouse"
    chunks = list(stream(server, first, text=tool))
    assert len(chunks) > 1
    last = chunks[-1]
    assert last["state"] in ("paused", "finished")
    text = [token for chunk in chunks for token in chunk["token_ids"]]
    plain = server.complete(
        [*tokenized(server, PROMPT), *first["token_ids"], *tokenized(server, tool)],
        max_tokens=len(text),
        ignore_eos=True,
    )
    assert written(plain) == text


def test_turn_that_ends_in_a_call_pauses(server: Server) -> None:
    shot = f"<|im_start|>user\nfind cats<|im_end|>\n<|im_start|>assistant\n{CALL}<|im_end|>\n"
    prompt = shot * 6 + "<|im_start|>user\nfind cats<|im_end|>\n<|im_start|>assistant\n"
    first = server.intercept(prompt=prompt, triggers={"tool_call": True})
    assert first["trigger"] == {"type": "tool_call", "tool": "search"}, first["text"]
    assert first["kv_retention"]["tool"] == "search"
    answer = "\n<|im_start|>user\nfound: Tom<|im_end|>\n<|im_start|>assistant\n"
    assert server.resume(first, text=answer)["status"] == 200


def test_intercept_in_chat_form(server: Server) -> None:
    messages = [{"role": "user", "content": STORY}]
    first = server.intercept(messages=messages, max_tokens=4, triggers={"tool_call": True})
    assert (first["state"], first["finish_reason"]) == ("finished", "length")
    # It was a session of its own: its end is final, nothing of it is held.
    assert first["kv_retention"]["decision"] == "drop"


def test_cancelled_intercept_holds_nothing(server: Server) -> None:
    first = server.intercept(prompt=PROMPT, **trigger())
    until(lambda: server.retention()["num_sessions_holding"] > 0)
    before = server.retention()
    deleted = server.http.delete(f"/v1/intercepts/{first['id']}").json()
    assert deleted["state"] == "cancelled"
    after = server.retention()
    assert after["num_paused"] == before["num_paused"] - 1
    assert after["num_sessions"] < before["num_sessions"]
    gone = server.resume(first, text="x")
    assert gone["status"] == 410
    assert "open a new one" in gone["error"]["message"]


def test_client_that_goes_while_the_model_writes_can_resume_again(server: Server) -> None:
    first = server.intercept(prompt=PROMPT, max_tokens=200, **trigger())
    path = f"/v1/intercepts/{first['id']}/resume"
    body = {"text": " A long tale:", "stream": True, "max_tokens": 200}
    with server.http.stream("POST", path, json=body) as answer:
        next(answer.iter_lines())
    until(lambda: server.http.get(f"/v1/intercepts/{first['id']}").json()["state"] == "paused")
    again = server.resume(first, text=" A long tale:", max_tokens=5)
    assert again["status"] == 200
    assert again["usage"]["completion_tokens"] <= 5


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "x"}, 400, "`triggers`"),
        ({"prompt": "x", "triggers": {"stop": "."}, "temperature": -1}, 400, "temperature"),
        ({"prompt": 3, "triggers": {"stop": "."}}, 400, "no valid CompletionRequest"),
        ({"prompt": "x", "triggers": {"stop": "."}, "model": "other"}, 404, "`other`"),
        ({"prompt": STORY * 4, "triggers": {"stop": "."}}, 400, "512"),
        ({"prompt": ["x", "y"], "triggers": {"stop": "."}}, 400, "one text"),
    ],
)
def test_bad_intercepts_are_refused(
    server: Server, body: dict[str, Any], status: int, message: str
) -> None:
    answer = server.http.post("/v1/intercepts", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_too_long_tool_answer_is_refused_and_a_shorter_one_taken(server: Server) -> None:
    first = server.intercept(prompt=PROMPT, **trigger())
    for text in (STORY * 2, STORY * 20):
        refused = server.resume(first, text=text)
        assert refused["status"] == 400
        assert "512" in refused["error"]["message"]
    assert server.resume(first, text=" short")["status"] == 200


def trigger() -> dict[str, Any]:
    return {"triggers": {"stop": " morning"}}


def metric(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").raise_for_status().text.splitlines()
    found = [line for line in lines if line.startswith(f"vllm:kv_retention_{name}")]
    assert found, name
    return sum(float(line.split()[-1]) for line in found)


def tokenized(server: Server, text: str) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False}
    return list(server.post("/tokenize", **body)["tokens"])


def stream(server: Server, intercept: dict[str, Any], **body: Any) -> Iterator[dict[str, Any]]:
    path = f"/v1/intercepts/{intercept['id']}/resume"
    with server.http.stream("POST", path, json={"stream": True, **body}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def until(condition: Any) -> None:
    """Waits for what the engine does after its answer is out."""
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.05)
