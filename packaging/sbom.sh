#!/usr/bin/env bash
# Writes the bill of materials of what is shipped: the library with its tools, without what only tests need.
#
#   packaging/sbom.sh CARGO_CYCLONEDX TARGET FILE
#
# The serial number and the time in it are fixed, so that the same Cargo.lock makes the same file.
set -euo pipefail

[ $# -eq 3 ] || {
    echo "usage: packaging/sbom.sh CARGO_CYCLONEDX TARGET FILE" >&2
    exit 2
}
root=$(cd "$(dirname "$0")/.." && pwd)
tool=$(realpath "$1")
mkdir -p "$(dirname "$3")"
file=$(realpath "$3")
: "${SOURCE_DATE_EPOCH:=$(git -C "$root" log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH

# It writes beside each Cargo.toml of the workspace, so it gets a copy of what cargo needs to know.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$root" && git ls-files -z '*.toml' '*.lock' '*.rs' '*.c' | xargs -0 cp --parents -t "$work")
(cd "$work" && "$tool" cyclonedx --quiet --format json --spec-version 1.5 --target "$2" --no-build-deps --override-filename ferry.cdx >/dev/null)
python3 - "$work/ferry.cdx.json" "$file" "$work" <<'PYTHON'
import hashlib, json, sys, uuid
made, file, work = sys.argv[1:]
text = open(made).read().replace("file://" + work, "file:///ferry").replace(work, "/ferry")
bill = json.loads(text)
bill.pop("serialNumber", None)
bill["serialNumber"] = "urn:uuid:" + str(uuid.UUID(hashlib.sha256(json.dumps(bill["components"], sort_keys=True).encode()).hexdigest()[:32]))
with open(file, "w") as out:
    json.dump(bill, out, indent=1, sort_keys=True)
    out.write("\n")
print(f"{len(bill['components'])} components in {file}")
PYTHON
