"""``python -m validation run | sbc | peers``: is the posterior right, and at what price?"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

USAGE = """usage: python -m validation COMMAND [options]

  run    compare methods with posteriors whose truth is known
  sbc    simulation-based calibration
  peers  simulator calls that each method needs for a good posterior

python -m validation COMMAND --help shows the options of a command."""


def main(argv: Sequence[str]) -> int:
    """Hand over to a command; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    command, *rest = argv
    # Imported when asked for: each takes seconds.
    if command == "run":
        from validation.runner import main as run
    elif command == "sbc":
        from validation.sbc import main as run
    elif command == "peers":
        from validation.peers import main as run
    else:
        close = difflib.get_close_matches(command, ("run", "sbc", "peers"), 1)
        hint = f"did you mean '{close[0]}'?" if close else "there are run, sbc and peers"
        print(f"validation has no command '{command}'; {hint}", file=sys.stderr)
        return 2
    return run(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
