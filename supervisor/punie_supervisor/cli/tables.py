"""Tables and quantities for a person. Pure."""

from collections.abc import Iterator, Sequence, Set


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: Set[int]) -> Iterator[str]:
    """Yield a table's lines; the columns in `words` begin left, numbers end right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = enumerate(zip(row, widths, strict=True))
        yield "  ".join(c.ljust(w) if i in words else c.rjust(w) for i, (c, w) in cells).rstrip()


def size(count: int) -> str:
    """Return a number of bytes."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """Return a length of time, to the second in the first hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
