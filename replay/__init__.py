"""The prompt stream, the leases, the staleness-bounded buffer and the ledger.

    sources ─▶ render ─▶ stream ─▶ buffer (leases, checks, selection, choosing, ledger, tally)

`buffer` is the pure state machine (injected clock, no I/O); `actor` is its Ray shell.
"""
