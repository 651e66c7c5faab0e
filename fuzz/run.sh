#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (10), beginning with its seeds; fails if one finds something.
#
#   fuzz/run.sh [SECONDS [TARGET ...]]
#
# FUZZ_TARGET_DIR  where it is built and where corpora lie (fuzz/target)
# FUZZ_SEED        the seed of the runs' randomness (1); another one tries other inputs
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
seconds=${1:-10}
shift || true
build=${FUZZ_TARGET_DIR:-$here/target}
cargo_fuzz=0.13.2

case $seconds in
'' | *[!0-9]*)
    echo "error: '$seconds' is no number of seconds; usage: fuzz/run.sh [SECONDS [TARGET ...]]" >&2
    exit 2
    ;;
esac
mkdir -p "$build"
build=$(cd "$build" && pwd)

# No target opens a connection; neither do the machine's own AWS files say anything here.
export AWS_ACCESS_KEY_ID=TESTKEY AWS_SECRET_ACCESS_KEY=test-secret AWS_EC2_METADATA_DISABLED=true
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null

cd "$root"
export PATH="$build/tools/bin:$PATH"
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: installing cargo-fuzz $cargo_fuzz into $build/tools"
    cargo install --locked --quiet --version "$cargo_fuzz" --root "$build/tools" cargo-fuzz
fi
mapfile -t targets < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else cargo fuzz list; fi)

echo "fuzz: building ${targets[*]} into $build (the first time takes minutes)"
started=$SECONDS
# What the lock file says is fetched, or this fails: cargo fuzz itself would change it.
cargo fetch --quiet --locked --manifest-path fuzz/Cargo.toml
# No sanitizer, so that any stable toolchain will do, and the runs are faster. Of the unsafe code the targets
# reach src/codec/json/simd.rs alone, which checks every write by itself in a build with debug assertions, as this is.
cargo fuzz build --sanitizer none --codegen-units 16 --target-dir "$build"
echo "fuzz: built in $((SECONDS - started)) seconds"
triple=$(rustc -vV | sed -n 's/^host: //p')

# The decoder's seeds are the chunks of the tests behind two kinds of options.
chunks() { # FOLDER
    local chunk name
    for chunk in tests/chunks/*.msgpack; do
        name=$(basename "$chunk" .msgpack)
        { printf '\0' && cat "$chunk"; } >"$1/$name.plain"
        { printf '\374\0\1\0\2\1\2\0\0\2\1\5' && cat "$chunk"; } >"$1/$name.options"
    done
}

for target in "${targets[@]}"; do
    corpus=$build/corpus/$target
    log=$build/$target.log
    artifacts=$here/artifacts/$target/
    rm -rf "$corpus"
    mkdir -p "$corpus" "$artifacts"
    [ -d "fuzz/seeds/$target" ] && cp fuzz/seeds/"$target"/* "$corpus"
    [ "$target" = decoder ] && chunks "$corpus"
    options=(-max_total_time="$seconds" -seed="${FUZZ_SEED:-1}" -max_len=16384 -timeout=20 -rss_limit_mb=1024)
    if ! "$build/$triple/release/$target" "${options[@]}" -print_final_stats=1 \
        -artifact_prefix="$artifacts" "$corpus" >"$log" 2>&1; then
        grep -E 'panicked at|ERROR: ' -A 3 "$log" | cut -c 1-2000 >&2 || tail -n 20 "$log" >&2
        artifact=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        echo "error: fuzz target $target found: ${artifact:-nothing that it could write; see $log}" >&2
        echo "  to see it again: $build/$triple/release/$target $artifact" >&2
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    echo "fuzz: $target: $runs runs in $seconds seconds, coverage $coverage, nothing found"
done
