"""Writes a journal, and says on its output what was acknowledged. To be killed meanwhile.

python -m tests.helpers.journal_workload FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from replay.journal import Journal, JournalError
from tests.helpers.groups import accepted, leased


def main(path: Path) -> None:
    journal = Journal(path, job="test", durability="commit")
    for lease_id in range(8):
        facts = [leased(lease_id, lease_id), accepted(lease_id, lease_id)]
        print(journal.append(facts), flush=True)
        if lease_id % 3 == 2:
            seq = journal.snapshot("commit", version=lease_id, timeline=0, state={"x": lease_id})
            print(seq, flush=True)
            journal.prune(seq, [lease_id])
    journal.close()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except JournalError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
