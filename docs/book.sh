#!/usr/bin/env bash
# Lays out the source of the book in FOLDER, for mdbook: every page at the path that it has here, so that links among
# pages inside and outside docs/ work in the book as they do on a code host.
#
#   docs/book.sh FOLDER
set -euo pipefail

[ $# -eq 1 ] || {
    echo "usage: docs/book.sh FOLDER" >&2
    exit 2
}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$here/.."

rm -rf "$folder/src"
packaging/documents.sh | while read -r file; do
    install -D -m 0644 "$file" "$folder/src/$file"
done
cp docs/book.toml docs/book.css "$folder"
# mdbook looks for the table of contents at the top, where its links begin one folder higher.
sed -E 's#\]\(([^.])#](docs/\1#; s#\]\(\.\./#](#' docs/SUMMARY.md >"$folder/src/SUMMARY.md"
rm "$folder/src/docs/SUMMARY.md"
