#!/usr/bin/env bash
# "make demo": delivers an application's log with fluent-bit.conf.example to local objects, and checks that
# every line arrived once. HOST and FLUENT_BIT choose the host; see "make help".
set -euo pipefail
cd "$(dirname "$0")/.."

records=200000
patience=120 # seconds; the demo itself takes a few
config=fluent-bit.conf.example
demo=target/demo
objects=$demo/objects
harness=${HARNESS:-target/ferry-harness}
library=$(realpath "${LIBRARY:-target/out_ferry.so}")

fail() {
    echo "error: $1" >&2
    exit 1
}

case ${HOST:-harness} in
harness)
    host=("$harness" run -c "$demo/fluent-bit.conf")
    ;;
fluent-bit)
    fluent_bit=${FLUENT_BIT:-$(command -v fluent-bit || true)}
    [ -n "$fluent_bit" ] || fail "fluent-bit is not on the PATH; remedy: make demo HOST=fluent-bit FLUENT_BIT=/path/to/fluent-bit, or omit HOST to run the bundled harness"
    [ -x "$fluent_bit" ] || fail "FLUENT_BIT is $fluent_bit, which cannot be executed; remedy: the full path of a fluent-bit executable"
    host=("$fluent_bit" -c "$demo/fluent-bit.conf")
    ;;
*)
    fail "HOST is $HOST; it must be harness or fluent-bit"
    ;;
esac

# The folder may not exist yet, and an object may be incomplete.
list() { { find "$objects" -type f -name '*.gz' 2>/dev/null || true; } | sort; }
arrivals() { { list | xargs -r zcat 2>/dev/null || true; } | wc -l; }

rm -rf "$demo"
mkdir -p "$demo/app"
# The unchanged configuration, with the library of this build.
printf '[PLUGINS]\n    Path %s\n' "$library" >"$demo/plugins.conf"
sed -e "s|Plugins_File .*|Plugins_File $PWD/$demo/plugins.conf|" -e "s|Parsers_File .*|Parsers_File $PWD/parsers.conf|" \
    "$config" >"$demo/fluent-bit.conf"
"$harness" generate --shape nestjs -n "$records" -o "$demo/app/access.log"
echo "generated $records lines in $demo/app/access.log"

echo "running ${host[*]}"
timeout --kill-after=15 "$((2 * patience))" "${host[@]}" >"$demo/host.log" 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null || true' EXIT
before=0
# A host that tails files does not end by itself: it is stopped once everything has arrived.
for ((second = 0; second < patience; second++)); do
    kill -0 "$pid" 2>/dev/null || break
    arrived=$(arrivals)
    echo "  $arrived of $records records in $(list | wc -l) objects, $((arrived - before)) a second"
    before=$arrived
    [ "$arrived" -lt "$records" ] || break
    sleep 1
done
kill -TERM "$pid" 2>/dev/null || true
status=0
wait "$pid" || status=$?
trap - EXIT

echo
echo "exit status of the host: $status (its log: $demo/host.log)"
# The harness ends its log with a report.
sed -n '/^records in /,$p' "$demo/host.log"
verdict=0
"$harness" verify --expect "$records" "$objects" || verdict=$?
echo "objects: $(list | wc -l) in $objects, $(du -sh "$objects" | cut -f1)"
first=$(list | head -n 1)
if [ -n "$first" ]; then
    echo "the first lines of $first:"
    zcat "$first" 2>/dev/null | head -n 3 | cut -c 1-200 || true
fi
if [ "$status" -ne 0 ] || [ "$verdict" -ne 0 ]; then
    echo
    echo "the last lines of $demo/host.log:"
    tail -n 20 "$demo/host.log"
    fail "the demo did not deliver every record once"
fi

cat <<'NEXT'

What next:
  docs/quick-start.md          install it, and configure your own Fluent Bit
  fluent-bit.conf.example      the configuration of this demo, and others to copy
  make build                   the full build, with Firehose, S3 and Google Cloud Storage
  target/ferry check FILE      tests your configuration before the start
NEXT
