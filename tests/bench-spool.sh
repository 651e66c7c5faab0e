#!/usr/bin/env bash
# "make bench-spool": the cost of a flush with 500 tags, a small chunk per tag and second, and one worker.
# Spooled and direct, on the same machine, to the bundled fake Firehose. SECONDS_EACH sets the duration.
set -euo pipefail
cd "$(dirname "$0")/.."

export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench AWS_EC2_METADATA_DISABLED=true
harness=target/ferry-harness
each=${SECONDS_EACH:-30}
dir=$(mktemp -d)
trap 'kill "${fake:-}" 2>/dev/null || true; rm -rf "$dir"' EXIT

# run NAME RECORDS FAULTS OUTPUT-KEYS…: one row of the table.
run() {
    local name=$1 records=$2 faults=$3
    shift 3
    # Do not read the address of the previous fake.
    rm -f "$dir/fake"
    "$harness" firehose --faults "$faults" --expect "$records" --ledger "$dir/ledger.json" >"$dir/fake" 2>&1 &
    fake=$!
    local url=
    while [ -z "$url" ]; do
        kill -0 "$fake" || { cat "$dir/fake" >&2; exit 1; }
        url=$(grep -o 'http://[0-9.:]*' "$dir/fake" 2>/dev/null | head -n 1 || true)
    done
    {
        printf '[SERVICE]\n    Flush 1\n    Grace 60\n    scheduler.base 1\n    scheduler.cap 2\n'
        printf '[INPUT]\n    Name http_sample\n    Tag app.{n}\n    Tags 500\n    Rate 500\n    Samples %s\n' "$records"
        printf '[OUTPUT]\n    Name ferry\n    Match *\n    Workers 1\n    Retry_Limit no_limits\n'
        printf '    delivery_stream app\n    region us-east-1\n    endpoint %s\n    dead_letter_dir %s\n' "$url" "$dir/letters"
        printf '    %s\n' "$@"
    } >"$dir/bench.conf"
    "$harness" run --quiet -c "$dir/bench.conf" -e target/out_ferry.so --report "$dir/report.json" >"$dir/log" 2>&1 ||
        { cat "$dir/log" >&2; exit 1; }
    kill -INT "$fake"
    wait "$fake" || { cat "$dir/fake" >&2; exit 1; }
    fake=
    echo
    echo "$name"
    grep -E '^(throughput|flush|CPU|peak memory)' "$dir/log" | sed 's/^/  /'
}

all=$((500 * each))
echo "500 tags, a chunk each a second, one worker, $each s each; every record counted at the end"
run "spooled" "$all" "" "spool on" "spool_dir $dir/spool"
run "spooled, the service answers after 20 ms" "$all" "delay 20ms" "spool on" "spool_dir $dir/spool"
run "direct" "$all" "" "spool off"
# This delivers about 45 records a second, so a tenth of the records.
run "direct, the service answers after 20 ms" $((all / 10)) "delay 20ms" "spool off"
