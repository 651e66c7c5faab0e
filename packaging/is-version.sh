#!/usr/bin/env bash
# Fails unless TAG is "v" and the version in Cargo.toml, and CHANGELOG.md has a section for it.
#
#   packaging/is-version.sh TAG
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "(.*)"/\1/p' Cargo.toml)
[ "$1" = "v$version" ] || {
    echo "error: the tag is $1, and Cargo.toml has $version; remedy: tag v$version" >&2
    exit 1
}
grep -qE "^## \[?$version(\]|$| )" CHANGELOG.md || {
    echo "error: CHANGELOG.md has no section for $version; remedy: give what is below Unreleased its version and date" >&2
    exit 1
}
