"""What is known of the loaded model outside the engine's thread: plain data, nothing of MLX."""

from dataclasses import dataclass
from pathlib import Path

from punie_model_host.profile import Profile
from punie_protocol.messages.common import ModelInfo


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that answers. Its tokenizer is in `path`; `named` is the folder that was asked for,
    an adapter's it may be. `vocabulary` is the number of its logits, `eos` its configuration's
    end-of-sequence ids."""

    path: Path
    named: Path
    profile: Profile
    vocabulary: int
    eos: int | list[int] | None

    @property
    def info(self) -> ModelInfo:
        """What clients need to know."""
        return ModelInfo(
            name=self.profile.name,
            folder=str(self.named),
            context_window=self.profile.context_window,
            prompt_style=self.profile.prompt_style,
            tool_call_format=self.profile.tool_call_format,
            max_output_tokens=self.profile.sampling.max_tokens,
            check_fences=self.profile.check_fences,
        )
