#!/usr/bin/env bash
# Lists the files of the documentation, one per line, for "make install", the packages and the book. Each keeps its
# path, so that links between them work in all three.
set -euo pipefail
cd "$(dirname "$0")/.."

printf '%s\n' README.md ARCHITECTURE.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE fluent-bit.conf.example \
    docs/*.md tests/README.md
# Only tracked files, since a build or a run may create others.
git ls-files examples dashboards 2>/dev/null || find examples dashboards -type f
