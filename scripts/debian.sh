#!/usr/bin/env bash
# Debian's packages that some tests use, and those named as arguments. Does nothing where they are there, or cannot be installed:
# those tests are skipped then, and say so.
set -euo pipefail

packages=(prometheus "$@")

missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
        missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "some tests will be skipped: not installed: ${missing[*]}" >&2
    exit 0
fi
# A server that comes with a package is not started: tests start what they need.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
wait=(-o DPkg::Lock::Timeout=120)
if ! { apt-get update -qq && apt-get "${wait[@]}" install -qq -y --no-install-recommends "${missing[@]}"; } >/dev/null; then
    echo "some tests will be skipped: could not be installed: ${missing[*]}" >&2
fi
