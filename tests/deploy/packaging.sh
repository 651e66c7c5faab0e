#!/usr/bin/env bash
# Packages stand-ins for the library and the tool, twice and under different circumstances, and compares the bytes: the
# same files in make the same packages out. Needs a C compiler and binutils; nothing of Ferry is built.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "error: $*" >&2
    exit 1
}

mkdir "$work/built"
printf 'int ferry_stands_in(void) { return 0; }\n' | cc -shared -fPIC -Wl,--no-as-needed -x c - -o "$work/built/libferry.so"
printf 'int main(void) { return 0; }\n' | cc -x c - -o "$work/built/ferry"
cat >"$work/tool" <<'TOOL'
#!/bin/sh
case $1 in
man) mkdir -p "$2" && echo '.TH ferry 1' >"$2/ferry.1" && echo '.TH ferry-check 1' >"$2/ferry-check.1" ;;
completions) echo "# $2" ;;
esac
TOOL
chmod +x "$work/tool"
echo '{}' >"$work/sbom"

package() { # OUT, with further settings before it
    env TOOL="$work/tool" SBOM="$work/sbom" FERRY_GLIBC=9.99 SOURCE_DATE_EPOCH=1751457787 \
        "$@" "$root/packaging/package.sh" "$work/built" "$out" >"$work/log" 2>&1
}

maintainer='A Person <person@example.org>'
out=$work/first
(umask 022 && package MAINTAINER="$maintainer") || fail "$(cat "$work/log")"
# Another time, another mask, another language, another zone.
find "$work/built" -type f -exec touch --date=2001-01-01 {} +
out=$work/second
(umask 077 && package MAINTAINER="$maintainer" TZ=Asia/Tokyo LANG=de_DE.UTF-8) || fail "$(cat "$work/log")"
for file in "$work/first"/*; do
    cmp "$file" "$work/second/$(basename "$file")" || fail "$(basename "$file") differs from one run to the next"
done
[ "$(ls "$work/first")" = "$(ls "$work/second")" ] || fail "the runs made different files"
(cd "$work/first" && sha256sum --quiet --check SHA256SUMS)

listed=$(tar tzf "$work/first"/ferry-*.tar.gz)
for name in out_ferry.so bin/ferry include/ferry.h ferry.cdx.json SHA256SUMS Dockerfile LICENSE; do
    grep -q "/$name\$" <<<"$listed" || fail "the tarball has no $name"
done
if command -v dpkg-deb >/dev/null; then
    [ "$(dpkg-deb --field "$work/first"/*.deb Maintainer)" = "$maintainer" ] || fail "the .deb names another maintainer"
    out=$work/third
    (unset MAINTAINER && package) || fail "$(cat "$work/log")"
    grep -q 'MAINTAINER=' "$work/log" || fail "a .deb without a maintainer is made silently: $(cat "$work/log")"
    for wrong in '' 'nobody' 'A <b>'; do
        if package MAINTAINER="$wrong"; then fail "MAINTAINER='$wrong' is accepted"; fi
        grep -q '^error: MAINTAINER' "$work/log" || fail "$(cat "$work/log")"
    done
fi

"$root/packaging/is-version.sh" v0.0.0-none 2>/dev/null && fail "a tag that is no version is accepted"
echo "packages made twice are the same bytes: $(find "$work/first" -type f | wc -l) files"
