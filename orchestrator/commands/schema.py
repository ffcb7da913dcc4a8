"""Commands about what can be written in a job file: schema."""

from __future__ import annotations

import json

from slipstream.config.schema import job_schema


def schema() -> None:
    """Print the JSON schema of a job file, which editors complete and check with.

    A job file names it in its first line: `# yaml-language-server: $schema=<path or address>`.
    """
    print(json.dumps(job_schema(), indent=2))
