"""A turn that is ended from inside, for a reason that the user is told."""


class TurnStopped(Exception):
    """The turn may not go on. `stop_reason` is ACP's word, `detail` says why, for a person."""

    def __init__(self, stop_reason: str, detail: str) -> None:
        super().__init__(detail)
        self.stop_reason = stop_reason
        self.detail = detail
