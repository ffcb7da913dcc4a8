"""What each command of `slipstream` does; `orchestrator.cli` names them."""
