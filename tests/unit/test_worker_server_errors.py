"""What servers say when a conversation is too long, and that their client is loaded late."""

import subprocess
import sys

import pytest

from punie_protocol.backends import Backend
from punie_workers.server_errors import is_context_overflow, overflow

BACKEND = Backend(url="http://127.0.0.1:9/v1", name="coder")
WINDOW = 32_768

SAID = [
    ("This model's maximum context length is 4096 tokens. However, you requested 5000", 5000, 4096),
    ("exceeds the available context size (n_ctx 4096, n_prompt_tokens 5000)", 5000, 4096),
    ("prompt is too long: 5000 tokens", WINDOW + 1, WINDOW),
    ("prompt is too long: 50000 tokens", 50_000, WINDOW),
    ("Context window exceeded", WINDOW + 1, WINDOW),
    ("context length exceeded by 3 messages", WINDOW + 1, WINDOW),
    ("context length is 4096, and 12 tokens and a long answer do not fit", 4097, 4096),
]


@pytest.mark.parametrize(("text", "tokens", "limit"), SAID)
def test_numbers_of_a_refusal(text: str, tokens: int, limit: int) -> None:
    assert is_context_overflow(text)
    error = overflow(text, BACKEND, WINDOW)
    assert (error.tokens, error.limit) == (tokens, limit)
    assert text in error.message
    assert f"context_window = {limit}" in error.hint


@pytest.mark.parametrize("text", ["", "bad tool schema", "invalid temperature 3.0", "no model x"])
def test_other_refusals_are_none(text: str) -> None:
    assert not is_context_overflow(text)


def test_a_worker_loads_the_servers_client_only_when_it_is_used() -> None:
    code = "import sys, punie_workers.worker; sys.exit('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
