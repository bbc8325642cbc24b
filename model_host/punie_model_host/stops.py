"""Stop strings in a text stream."""

from collections.abc import Sequence


class StopStrings:
    """Passes text through until one of `stops` appears; that string and all after it is dropped.

    A suffix that may become a stop string is held back, never more than the longest one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what may go on."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(partial_suffix(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back: the stream ended inside a would-be stop string."""
        held, self._held = self._held, ""
        return held


def partial_suffix(text: str, marker: str) -> int:
    """Return the length of the longest end of `text` that is a proper start of `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
