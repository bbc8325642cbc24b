"""How many tokens a model is told before the first prompt, counted as Qwen3-Coder counts them.

Nothing is downloaded and no model is needed: see `benchmarks.code_tokens`; the chat template is
that of Qwen3-Coder, which the embedded model has too.
"""

import argparse
import json
from importlib import resources

import regex
from jinja2.sandbox import ImmutableSandboxedEnvironment

from benchmarks.code_tokens import tokens
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_protocol.messages.to_model_host import ToolSchema
from punie_workers.prompts import CORE, Instructions, ProjectParts, instructions, stub_part

PROJECT = ProjectParts("some-project")
QWEN3_CODER = ModelInfo(
    name="Qwen3-Coder-30B-A3B-Instruct",
    folder="",
    context_window=262_144,
    prompt_style=PromptStyle.TOOLS,
    tool_call_format="qwen3-coder",
    max_output_tokens=65_536,
)
_CONTROLS = regex.compile(r"<\|im_(?:start|end)\|>|</?tool_(?:call|response)>")
"""Tokens of the template that the vocabulary file lacks: added ones, one each."""


def prompt_tokens_full() -> int:
    """Return the tokens of all that Qwen3-Coder is told with the full tool set: rules, stubs, tools
    in the template's wrapping, the project's name."""
    return count(_render(instructions(QWEN3_CODER, PROJECT)))


def parts() -> dict[str, int]:
    """Return what each part adds; the sum is `prompt_tokens_full`."""
    told = instructions(QWEN3_CODER, PROJECT)
    growing = {
        "core": Instructions(CORE, (), ""),
        "stubs": Instructions(CORE + stub_part(), (), ""),
        "tools": Instructions(told.system, told.tools, ""),
        "project": told,
    }
    sizes = [0, *(count(_render(one)) for one in growing.values())]
    return {name: sizes[at + 1] - sizes[at] for at, name in enumerate(growing)}


def count(text: str) -> int:
    """Return the tokens of `text`, those of the template recognised."""
    plain = sum(1 for part in _CONTROLS.split(text) for _ in tokens(part))
    return plain + len(_CONTROLS.findall(text))


def _render(told: Instructions) -> str:
    messages = [{"role": "system", "content": told.system}]
    if told.context:
        messages.append({"role": "user", "content": told.context})
    tools = [_tool(tool) for tool in told.tools]
    folder = resources.files("punie_model_host") / "embedded"
    source = folder.joinpath("chat_template.jinja").read_text("utf-8")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(messages=messages, tools=tools)


def _tool(tool: ToolSchema) -> dict[str, object]:
    parameters = json.loads(tool.parameters)
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def main() -> None:
    """Print the size of the prompt and of its parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompt_tokens")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    if parser.parse_args().json:
        print(json.dumps({"prompt_tokens_full": prompt_tokens_full(), "parts": parts()}))
        return
    for name, size in parts().items():
        print(f"{name:10}{size:6}")
    print(f"{'all':10}{prompt_tokens_full():6}")


if __name__ == "__main__":
    main()
