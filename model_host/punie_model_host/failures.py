"""The one way a model folder fails."""

from pathlib import Path

from punie_protocol.errors import ModelLoadFailed, PunieError

_COPY_AGAIN = "copy or download the folder again"


def load_failed(folder: Path, file: str, reason: str, hint: str = _COPY_AGAIN) -> PunieError:
    """Return the error to raise; `file` is relative to `folder`, empty for the folder itself."""
    at = folder / file if file else folder
    return PunieError(
        ModelLoadFailed(message=f"{at}: {reason}", hint=hint, folder=str(folder), file=file)
    )
