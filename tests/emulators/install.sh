#!/usr/bin/env bash
# Installs the emulators of the tests into target/emulators (or $FERRY_EMULATORS):
#   azurite/  Azure Blob, from package-lock.json
#   moto/     Firehose and S3, from requirements.txt
#   analytics/  the dependencies of examples/analytics, from its requirements.txt
#   readers/  readers of Parquet, from tests/readers/requirements.txt
# Each has a stamp with the hash of its lock file and its interpreter, and is reinstalled only if
# that changes. "install.sh check" only checks for the required tools.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
destination=${FERRY_EMULATORS:-$root/target/emulators}

missing() {
    echo "error: $1" >&2
    echo "  remedy: $2" >&2
    exit 1
}

check() {
    command -v node >/dev/null || missing "node is not installed; Azurite needs it" "apt install nodejs"
    command -v npm >/dev/null || missing "npm is not installed; it installs Azurite" "apt install npm"
    local major
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 18 ] || missing "node is version $major, Azurite needs 18 or later" "install Debian 12's nodejs or a newer one"
    command -v python3 >/dev/null || missing "python3 is not installed; moto needs it" "apt install python3 python3-venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        missing "$(python3 --version) is too old, the pinned packages need 3.11 or later" "install Debian 12's python3 or a newer one"
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        missing "python3 cannot create a virtual environment (no ensurepip)" "apt install python3-venv"
}

# An upgrade of node or python3 breaks an installation, so their versions are in the stamp.
stamp() { # LOCK_FILE INTERPRETER
    echo "$(sha256sum <"$1" | cut -d' ' -f1) $("$2" --version)"
}

installed() { # NAME STAMP
    [ -f "$destination/$1.stamp" ] && [ "$(cat "$destination/$1.stamp")" = "$2" ]
}

install_azurite() {
    local wanted
    wanted=$(stamp "$here/package-lock.json" node)
    if installed azurite "$wanted"; then
        echo "azurite: up to date"
        return
    fi
    echo "azurite: installing (about 190 MB)"
    rm -rf "$destination/azurite" "$destination/azurite.stamp"
    mkdir -p "$destination/azurite"
    cp "$here/package.json" "$here/package-lock.json" "$destination/azurite/"
    (cd "$destination/azurite" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    echo "$wanted" >"$destination/azurite.stamp"
}

install_python() { # NAME LOCK_FILE
    local wanted
    wanted=$(stamp "$2" python3)
    if installed "$1" "$wanted"; then
        echo "$1: up to date"
        return
    fi
    echo "$1: installing"
    rm -rf "${destination:?}/$1" "$destination/$1.stamp"
    python3 -m venv "$destination/$1"
    "$destination/$1/bin/python" -m pip install --quiet --disable-pip-version-check \
        --require-hashes --no-deps --only-binary :all: -r "$2"
    echo "$wanted" >"$destination/$1.stamp"
}

check
[ "${1:-}" = check ] && exit 0

mkdir -p "$destination"
# Serialise concurrent runs.
exec 9>"$destination/.lock"
flock 9
install_azurite
install_python moto "$here/requirements.txt"
install_python analytics "$root/examples/analytics/requirements.txt"
install_python readers "$root/tests/readers/requirements.txt"
