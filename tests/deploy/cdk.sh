#!/usr/bin/env bash
# Synthesises the CDK application of examples/ecs-fargate from its lock file, and compares what it makes with what the
# example's JSON makes (cdk.py).
#
#   tests/deploy/cdk.sh TOOLS EMULATORS
#
# TOOLS       the folder for its packages and for those of install.sh
# EMULATORS   the folder with moto
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
example=$(cd "$here/../../examples/ecs-fargate" && pwd)
tools=$1
emulators=$2
for tool in node npm; do
    command -v "$tool" >/dev/null || { echo "error: $tool is not installed; remedy: apt install nodejs npm" >&2; exit 1; }
done
"$here/install.sh" "$tools/deploy"

# A copy, because packages and results would lie among the example's files. Only packages stay from run to run.
copy=$tools/ecs-fargate
mkdir -p "$copy/cdk"
cp "$example"/*.json "$copy/"
cp "$example"/cdk/{app.ts,package.json,package-lock.json,tsconfig.json} "$copy/cdk/"
wanted="$(sha256sum <"$copy/cdk/package-lock.json") $(node --version)"
if [ "$(cat "$copy/stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "cdk: installing (about 200 MB)"
    rm -f "$copy/stamp"
    (cd "$copy/cdk" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    echo "$wanted" >"$copy/stamp"
fi
rm -rf "$copy/cdk/build" "$copy/terraform" "$copy/cdk.out"
(cd "$copy/cdk" && npx --no-install tsc && CDK_OUTDIR="$copy/cdk.out" node build/app.js)
mkdir "$copy/terraform"
for file in "$example"/terraform/*.tf; do
    "$tools/deploy/bin/hcl2tojson" "$file" >"$copy/terraform/$(basename "$file").json"
done
"$emulators/moto/bin/python" "$here/cdk.py" "$copy/cdk.out/FerryLogs.template.json" "$copy/terraform" "$example"
