"""Conversations as text: the same rendering as ``chat_template.jinja``, in Python.

A message is a dict as chat templates take it: ``role``, ``content``, perhaps ``tool_calls``.
"""

from __future__ import annotations

MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
"""Special tokens; ``<|im_end|>`` ends every turn."""
TOOL_MARKERS = [
    "<tool_call>", "</tool_call>", "<function=execute_code>", "</function>", "<parameter=code>",
    "</parameter>", "<tool_response>", "</tool_response>",
]  # fmt: skip
"""Tokens of the Qwen3-Coder tool format; ordinary text to a decoder."""


def call(code: str) -> dict:
    """An assistant message that runs a program."""
    function = {"name": "execute_code", "arguments": {"code": code}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def call_text(code: str) -> str:
    """What the model writes to run a program."""
    return (
        "<tool_call>\n<function=execute_code>\n<parameter=code>\n"
        f"{code}\n</parameter>\n</function>\n</tool_call>"
    )


def render(messages: list[dict], generation_prompt: bool = False) -> str:
    """The text of a conversation without system message and tools."""
    out = []
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "tool":
            if messages[i - 1]["role"] != "tool":
                out.append("<|im_start|>user\n")
            out.append(f"<tool_response>\n{content}\n</tool_response>\n")
            if i + 1 == len(messages) or messages[i + 1]["role"] != "tool":
                out.append("<|im_end|>\n")
        elif calls := message.get("tool_calls"):
            text = f"{content.strip()}\n" if content.strip() else ""
            text += "\n".join(call_text(c["function"]["arguments"]["code"]) for c in calls)
            out.append(f"<|im_start|>{role}\n{text}<|im_end|>\n")
        else:
            out.append(f"<|im_start|>{role}\n{content}<|im_end|>\n")
    return "".join(out) + ("<|im_start|>assistant\n" if generation_prompt else "")
