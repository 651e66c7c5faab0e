#!/usr/bin/env bash
# "make bench-isolation": what nine healthy targets get while the tenth is in trouble, compared with ten healthy ones.
# Delivery streams (a fake Firehose), spooled and direct, and folders of a bucket (moto, behind a proxy with faults).
# SECONDS_EACH and RATE (lines per second in all) set the load; it should be one that the machine sustains.
set -euo pipefail
cd "$(dirname "$0")/.."

export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench AWS_EC2_METADATA_DISABLED=true
harness=target/ferry-harness
moto=target/emulators/moto/bin
each=${SECONDS_EACH:-30}
rate=${RATE:-5000}
dir=$(mktemp -d)
pids=()
# Only processes of this script.
stop_all() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    pids=()
}
trap 'stop_all; rm -rf "$dir"' EXIT

# address LOG PATTERN PID: waits for the address that a server prints.
address() {
    local url=
    while [ -z "$url" ]; do
        kill -0 "$3" 2>/dev/null || { cat "$1" >&2; exit 1; }
        url=$(grep -oE "$2" "$1" 2>/dev/null | head -n 1 || true)
    done
    echo "$url"
}

# feed OUTPUT-KEYS…: runs the harness's engine for a while with ten tags.
feed() {
    {
        printf '[SERVICE]\n    Flush 1\n    Grace 30\n    scheduler.base 1\n    scheduler.cap 2\n'
        printf '[INPUT]\n    Name http_sample\n    Tag app.{n}\n    Tags 10\n    Rate %s\n    Samples %s\n' "$rate" $((rate * each * 2))
        printf '[OUTPUT]\n    Name ferry\n    Match *\n    Workers 2\n    Retry_Limit no_limits\n'
        printf '    region us-east-1\n    dead_letter_dir %s\n' "$dir/letters"
        printf '    %s\n' "$@"
    } >"$dir/bench.conf"
    rm -rf "$dir/spool"
    "$harness" run --quiet --stop-after "${each}s" -c "$dir/bench.conf" -e target/out_ferry.so >"$dir/log" 2>&1 || true
}

# report NAME LINES: a row, compared with the first of its table.
report() {
    all=${all:-$2}
    printf '  %-34s %9d   %5.1f%%\n' "$1" "$2" "$(awk "BEGIN { print 100 * $2 / $all }")"
}

# streams NAME FAULTS OUTPUT-KEYS…
streams() {
    local name=$1 faults=$2
    shift 2
    rm -f "$dir/fake"
    "$harness" firehose --faults "$faults" --ledger "$dir/ledger.json" >"$dir/fake" 2>&1 &
    pids+=($!)
    local fake=$! url
    url=$(address "$dir/fake" 'http://[0-9.:]+' "$fake")
    feed "delivery_stream app-{tag[1]}" "endpoint $url" "$@"
    kill -INT "$fake" && wait "$fake" || true
    report "$name" "$(python3 -c '
import json, sys
streams = json.load(open(sys.argv[1]))["streams"]
print(sum(counts["lines"] for name, counts in streams.items() if name != "app-9"))' "$dir/ledger.json")"
    stop_all
}

# folders NAME FAULTS: each run has a bucket of its own.
folders() {
    local name=$1 faults=$2 proxy url
    buckets=$((${buckets:-0} + 1))
    curl -sS -o "$dir/bucket" -X PUT "$store/logs-$buckets"
    "$harness" proxy --upstream "$store" --faults "$faults" >"$dir/proxy" 2>&1 &
    proxy=$!
    url=$(address "$dir/proxy" 'http://[0-9.:]+' "$proxy")
    feed "url s3://logs-$buckets" "endpoint $url" "path {tag[1]}" "blob_max_age 5s" "spool_dir $dir/spool"
    kill -INT "$proxy" && wait "$proxy" || true
    report "$name" "$("$moto/python" -c '
import gzip, sys, boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1")
pages = s3.get_paginator("list_objects_v2").paginate(Bucket=sys.argv[2])
keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
body = lambda key: gzip.decompress(s3.get_object(Bucket=sys.argv[2], Key=key)["Body"].read())
print(sum(body(key).count(b"\n") for key in keys if not key.startswith("9/")))' "$store" "logs-$buckets")"
}

echo "lines of nine healthy targets that arrived: $rate lines a second for $each s, a tenth of them for the tenth target"
for mode in on off; do
    unset all
    echo "delivery streams, spool $mode"
    keys=("spool $mode")
    [ $mode = off ] || keys+=("spool_dir $dir/spool")
    streams "all healthy" "" "${keys[@]}"
    streams "one missing" "not-found stream app-9" "${keys[@]}"
    streams "one denied" "access-denied stream app-9" "${keys[@]}"
    streams "one throttled" "throttle stream app-9" "${keys[@]}"
    streams "one failing" "status 503 stream app-9" "${keys[@]}"
    streams "one hanging" "hang 60s stream app-9" "${keys[@]}"
done
unset all
echo "folders of a bucket"
"$moto/moto_server" -H 127.0.0.1 -p 0 >"$dir/moto" 2>&1 &
moto_pid=$!
store=$(address "$dir/moto" 'http://127.0.0.1:[0-9]+' "$moto_pid")
folders "all healthy" ""
folders "one denied" "status 403 AccessDenied path /9/"
folders "one failing" "status 503 path /9/"
folders "one hanging" "hang path /9/"
kill "$moto_pid"
