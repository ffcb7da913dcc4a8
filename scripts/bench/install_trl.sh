#!/usr/bin/env bash
# An environment of its own for TRL, in .venv-trl: its dependencies are not ours.
set -euo pipefail
cd "$(dirname "$0")/../.."
wanted=$(sha256sum <scripts/bench/trl_requirements.txt)
if [ -f .venv-trl/.installed ] && [ "$(cat .venv-trl/.installed)" = "$wanted" ]; then exit 0; fi
[ -x .venv-trl/bin/python ] || .venv/bin/python -m venv .venv-trl
if [ -n "${PIP_FIND_LINKS:-}" ]; then where=(--find-links "$PIP_FIND_LINKS"); else where=(--torch-backend cpu); fi
VIRTUAL_ENV=$PWD/.venv-trl .venv/bin/uv pip install --quiet "${where[@]}" -r scripts/bench/trl_requirements.txt
echo "$wanted" >.venv-trl/.installed
