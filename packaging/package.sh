#!/usr/bin/env bash
# Makes the packages from what is built: a tarball, a .deb and their checksums.
#
#   packaging/package.sh BUILT OUT
#
# BUILT   the folder with libferry.so and ferry
# OUT     the folder for the packages (target/package)
# SBOM    the bill of materials, a file (none)
# TOOL    a ferry that runs here, which writes its manual pages and completions (BUILT/ferry)
# STRIP   the strip of the packages' machine (strip)
# SOURCE_DATE_EPOCH  the time of all files in them (that of the last commit)
# MAINTAINER         who maintains the .deb, as "Name <address>" (a placeholder, which is said)
# FERRY_GLIBC        the newest glibc that they may need (2.28)
#
# The same files in make the same packages out: names are sorted, times and owners fixed.
set -euo pipefail

[ $# -eq 2 ] || {
    echo "usage: packaging/package.sh BUILT OUT" >&2
    exit 2
}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
built=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$root"

say() {
    echo "package: $*"
}
fail() {
    echo "error: $1; remedy: $2" >&2
    exit 1
}
for tool in tar gzip readelf "${STRIP:-strip}" sha256sum; do
    command -v "$tool" >/dev/null || fail "$tool is not installed" "apt install binutils tar gzip coreutils"
done

if [ -n "${MAINTAINER+set}" ]; then
    [[ $MAINTAINER =~ ^[^\<\>]+\ \<[^\<\>@[:space:]]+@[^\<\>@[:space:]]+\>$ ]] ||
        fail "MAINTAINER is '$MAINTAINER'" 'MAINTAINER="Name <address@example.org>", or unset it'
fi

version=$(sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "(.*)"/\1/p' Cargo.toml)
[ -n "$version" ] || fail "Cargo.toml names no version" "version = \"…\" below [workspace.package]"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}"
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C
umask 022

case $(LC_ALL=C readelf --file-header "$built/libferry.so" | sed -nE 's/ *Machine: +//p') in
*X86-64) arch=x86_64 deb_arch=amd64 ;;
AArch64) arch=aarch64 deb_arch=arm64 ;;
*) fail "$built/libferry.so is for another machine" "build it for x86_64 or aarch64" ;;
esac
name=ferry-$version-linux-$arch

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top=$work/$name

put() { # MODE SOURCE DESTINATION
    install -D -m "$1" "$2" "$3"
}

for program in libferry.so ferry; do
    [ -f "$built/$program" ] || fail "$built/$program is not there" "make package builds it"
    put 0755 "$built/$program" "$work/bin/$program"
    # What is not of use to the machine's loader: names of functions, and the notes of debuggers.
    "${STRIP:-strip}" --strip-unneeded --remove-section=.comment "$work/bin/$program"
done
FERRY_GLIBC=${FERRY_GLIBC:-2.28} "$here/glibc.sh" "$work"/bin/*

# What shells and man(1) read, written by the tool itself.
tool=${TOOL:-$built/ferry}
"$tool" man "$work/man" || fail "$tool does not run here" "TOOL=a ferry for this machine, of the same version"
mkdir "$work/completions"
for shell in bash zsh fish; do
    "$tool" completions "$shell" >"$work/completions/$shell"
done
shells() { # SHARE ZSH
    for page in "$work"/man/*.1; do
        put 0644 "$page" "$1/man/man1/$(basename "$page")"
    done
    put 0644 "$work/completions/bash" "$1/bash-completion/completions/ferry"
    put 0644 "$work/completions/zsh" "$1/zsh/$2/_ferry"
    put 0644 "$work/completions/fish" "$1/fish/vendor_completions.d/ferry.fish"
}

mapfile -t documents < <("$here/documents.sh")

say "the tarball"
put 0755 "$work/bin/libferry.so" "$top/out_ferry.so"
put 0755 "$work/bin/ferry" "$top/bin/ferry"
shells "$top/share" site-functions
put 0644 include/ferry.h "$top/include/ferry.h"
put 0644 packaging/Dockerfile "$top/Dockerfile"
for file in "${documents[@]}"; do
    put "$([ -x "$file" ] && echo 0755 || echo 0644)" "$file" "$top/$file"
done
if [ -n "${SBOM:-}" ]; then
    put 0644 "$SBOM" "$top/ferry.cdx.json"
else
    say "no SBOM: \"make sbom\" makes it"
fi
(cd "$top" && find . -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >"$work/sums" && put 0644 "$work/sums" SHA256SUMS)
tar --create --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --directory "$work" "$name" | gzip --no-name -9 >"$out/$name.tar.gz"

files=("$name.tar.gz")
if command -v dpkg-deb >/dev/null; then
    say "the .deb"
    [ -n "${MAINTAINER+set}" ] || say "it names no maintainer who can be reached: MAINTAINER=\"Name <address>\" does"
    deb=$work/deb
    doc=$deb/usr/share/doc/ferry
    put 0644 "$work/bin/libferry.so" "$deb/usr/lib/fluent-bit/out_ferry.so"
    put 0755 "$work/bin/ferry" "$deb/usr/bin/ferry"
    shells "$deb/usr/share" vendor-completions
    gzip --no-name -9 "$deb"/usr/share/man/man1/*.1
    put 0644 include/ferry.h "$deb/usr/include/ferry.h"
    # The licence is in the copyright file, and the changelog under the name that Debian gives it as well.
    for file in "${documents[@]}"; do
        [ "$file" = LICENSE ] || put 0644 "$file" "$doc/$file"
    done
    [ -z "${SBOM:-}" ] || put 0644 "$SBOM" "$doc/ferry.cdx.json"
    put 0644 CHANGELOG.md "$doc/changelog"
    gzip --no-name -9 "$doc/changelog"
    {
        echo 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/'
        echo
        echo 'Files: *'
        echo 'Copyright: the authors of Ferry'
        echo 'License: Apache-2.0'
        echo ' On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.'
    } >"$work/copyright"
    put 0644 "$work/copyright" "$doc/copyright"
    mkdir "$deb/DEBIAN"
    size=$(du -sk --apparent-size "$deb" | cut -f1)
    # No conffiles, and no scripts: nothing runs at the installation, and Fluent Bit is told of the library by hand.
    cat >"$deb/DEBIAN/control" <<CONTROL
Package: ferry
Version: $version
Architecture: $deb_arch
Maintainer: ${MAINTAINER-the authors of Ferry <ferry@localhost>}
Installed-Size: $size
Depends: libc6 (>= ${FERRY_GLIBC:-2.28}), libgcc-s1 | libgcc1, ca-certificates
Enhances: fluent-bit
Section: admin
Priority: optional
Description: Fluent Bit output to Amazon Data Firehose and blob stores
 An output plugin of Fluent Bit that ships logs in batches to Amazon Data
 Firehose, Azure Blob, S3, Google Cloud Storage or a folder, without losing
 them, and without duplicating them where the destination allows that.
 .
 With it comes ferry, a tool that tries a configuration before the start, looks
 into a spool, and sends dead letters again.
CONTROL
    (cd "$deb" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    chmod 0644 "$deb"/DEBIAN/*
    find "$deb" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    package=ferry_${version}_$deb_arch.deb
    # gzip: Debian's older dpkgs know no zstd, and one thread makes the same bytes everywhere.
    dpkg-deb --root-owner-group -Zgzip -z9 --build "$deb" "$out/$package" >/dev/null
    files+=("$package")
else
    say "skipped: the .deb, since dpkg-deb is not installed"
fi
(cd "$out" && sha256sum "${files[@]}" | tee SHA256SUMS)
say "made in $out"
