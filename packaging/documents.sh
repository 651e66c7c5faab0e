#!/usr/bin/env bash
# Lists the files of the documentation, one a line: what "make install" and the packages bring, and what the book is
# made from. Each keeps its path, so that every link among them leads to the same file in all three.
set -euo pipefail
cd "$(dirname "$0")/.."

printf '%s\n' README.md ARCHITECTURE.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE fluent-bit.conf.example \
    docs/*.md tests/README.md
# Only tracked files: a build or a run may leave others there.
git ls-files examples dashboards 2>/dev/null || find examples dashboards -type f
