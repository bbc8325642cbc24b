"""How many tool calls that models wrote badly are handled as documented.

``python -m benchmarks.toolcall_repair``: the corpus of ``tests/data/toolcalls``, each answer whole,
character by character, and cut at random.
"""

import json

from tests.support import toolcall_corpus


def main() -> None:
    """Measure and print."""
    share = toolcall_corpus.share()
    print(
        json.dumps(
            {
                "share": round(share.share, 4),
                "handled": share.handled,
                "total": share.total,
                "by_kind": share.by_kind,
                "failed": share.failed,
            }
        )
    )


if __name__ == "__main__":
    main()
