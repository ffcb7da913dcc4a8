"""The launch of a submitted job on the cluster's head: `python -m orchestrator.submitted launch`.

Its exit code is the last line of its log, because Ray keeps none of a job that it has stopped.
"""

from __future__ import annotations

from orchestrator.cli import app
from orchestrator.frames import end


def main() -> None:
    code = 1  # of a traceback
    try:
        app()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        print(end(code), end="", flush=True)


if __name__ == "__main__":
    main()
