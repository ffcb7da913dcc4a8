"""The prompt stream, the leases, the staleness-bounded buffer and the ledger.

    sources ─▶ render ─▶ stream ─▶ buffer (workers, checks, selection, choosing)
                                     │ facts
                                     ├─▶ state (shelf, ledger, tally)    rollback: to a commit
                                     └─▶ keeper ─▶ journal ─▶ audit: was the promise kept?

`buffer` and all above it is pure (injected clock, no I/O); `actor` is its Ray shell.
"""
