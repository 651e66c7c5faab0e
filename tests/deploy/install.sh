#!/usr/bin/env bash
# Installs what the checks of deployments need, from requirements.txt, into the folder given; nothing if it is up to date.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=$1
command -v python3 >/dev/null || { echo "error: python3 is not installed; remedy: apt install python3 python3-venv" >&2; exit 1; }
wanted="$(sha256sum <"$here/requirements.txt") $(python3 --version)"
[ "$(cat "$destination.stamp" 2>/dev/null)" = "$wanted" ] && exit 0
rm -rf "$destination" "$destination.stamp"
python3 -m venv "$destination"
"$destination/bin/python" -m pip install --quiet --disable-pip-version-check \
    --require-hashes --no-deps --only-binary :all: -r "$here/requirements.txt"
echo "$wanted" >"$destination.stamp"
