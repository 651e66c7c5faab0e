#!/usr/bin/env bash
# Fails where a library or a program needs a newer glibc than a package promises, or a library that not every
# machine has.
#
#   packaging/glibc.sh FILE...
#
# FERRY_GLIBC  the newest glibc that may be needed (2.28)
set -euo pipefail

limit=${FERRY_GLIBC:-2.28}
# libdl, libpthread and librt are parts of glibc, which became one file with 2.34.
allowed='^(libc\.so\.6|libm\.so\.6|libgcc_s\.so\.1|libdl\.so\.2|libpthread\.so\.0|librt\.so\.1|ld-linux-[a-z0-9_-]+\.so\.[0-9]+)$'

[ $# -gt 0 ] || {
    echo "usage: packaging/glibc.sh FILE..." >&2
    exit 2
}
command -v readelf >/dev/null || {
    echo "error: readelf is not installed; remedy: apt install binutils" >&2
    exit 1
}

failed=0
for file in "$@"; do
    dynamic=$(readelf --wide --dynamic "$file")
    needed=$(sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p' <<<"$dynamic")
    if [ -z "$needed" ]; then
        echo "error: $file needs no library at all; is it a dynamic library or program?" >&2
        failed=1
        continue
    fi
    if others=$(grep -vE "$allowed" <<<"$needed"); then
        echo "error: $file needs $(tr '\n' ' ' <<<"$others")which not every machine has" >&2
        failed=1
    fi
    if grep -qE '\((RPATH|RUNPATH)\)' <<<"$dynamic"; then
        echo "error: $file looks for libraries in folders of the machine that built it" >&2
        failed=1
    fi
    # Weak symbols count as well: a version that is asked for is asked for.
    symbols=$(readelf --wide --dyn-syms "$file" | sed -nE 's/.* UND ([A-Za-z0-9_]+)@+(GLIBC_[0-9.]+).*/\2 \1/p')
    newest=$(readelf --wide --version-info "$file" | grep -oE 'GLIBC_[0-9]+(\.[0-9]+)+' | sort -uV | tail -n 1)
    newest=${newest#GLIBC_}
    if [ "$(printf '%s\n' "$limit" "$newest" | sort -V | tail -n 1)" != "$limit" ]; then
        echo "error: $file needs glibc $newest, newer than $limit:" >&2
        while read -r version symbol; do
            version=${version#GLIBC_}
            if [ "$(printf '%s\n' "$limit" "$version" | sort -V | tail -n 1)" != "$limit" ]; then
                echo "  $symbol ($version)" >&2
            fi
        done <<<"$symbols"
        failed=1
    else
        echo "ok: $file needs glibc ${newest:-of any version}: $(tr '\n' ' ' <<<"$needed")"
    fi
done
[ "$failed" -eq 0 ] || {
    echo "remedy: build with \"make package\", which links against glibc $limit, or on a system as old as that (packaging/Dockerfile.build)" >&2
    exit 1
}
