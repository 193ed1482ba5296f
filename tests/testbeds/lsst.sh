#!/usr/bin/env bash
# The real `bps` command and its Butler, from PyPI, in virtual environments beside ours:
#
#   lsst.sh BEDS          make what is missing or out of date in the folder BEDS
#     BEDS/lsst-current   the current release, if there is a Python 3.12 or 3.13 (LSST_PYTHON names one)
#     BEDS/lsst-3.11      the last release for Python 3.11, if there is a Python 3.11
#
# At least one of the two must come out. bpsd itself is not installed there: whoever uses them sets PYTHONPATH, so that
# one bed serves every working tree.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
beds=$1
mkdir -p "$beds"

# usable COMMAND VERSION: prints the path of that Python if it has that version and can make a virtual environment.
usable() {
    "$1" -c 'import ensurepip, sys, venv
if "%d.%d" % sys.version_info[:2] != sys.argv[1]: sys.exit(1)
print(sys.executable)' "$2" 2>/dev/null
}

# find_python VERSION...: the first Python of one of these versions; in Debian and Ubuntu it may have to be installed.
find_python() {
    local version candidate
    for version in "$@"; do
        for candidate in ${LSST_PYTHON:-} "python$version" ~/.pyenv/versions/"$version".*/bin/python; do
            usable "$candidate" "$version" && return
        done
    done
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
    for version in "$@"; do
        if apt-cache show "python$version-venv" >/dev/null 2>&1; then
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "python$version-venv" >/dev/null 2>&1
            usable "/usr/bin/python$version" "$version" && return
        fi
    done
    return 1
}

# make_bed NAME VERSION...: the packages of NAME.txt for one of these versions of Python, in BEDS/NAME.
make_bed() {
    local name=$1 folder="$beds/$1" list="$here/$1.txt" python
    shift
    if [ -x "$folder/bin/bps" ] && cmp -s "$list" "$folder/made-from.txt" && [ -d "$folder/upstream-tests" ]; then
        return 0
    fi
    python=$(find_python "$@") || return 1
    echo "installing the LSST middleware ($name) for $python in $folder"
    rm -rf "$folder"
    "$python" -m venv "$folder" || return 1
    # The list is complete, so nothing is resolved; and what is never imported need not be compiled.
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-compile --requirement "$list" || return 1
    upstream_tests "$folder" || return 1
    cp "$list" "$folder/made-from.txt"
}

# upstream_tests FOLDER: ctrl_bps's own unit tests, which only its source distribution has, in FOLDER/upstream-tests.
upstream_tests() {
    local folder=$1 version
    version=$("$folder/bin/python" -c 'import importlib.metadata; print(importlib.metadata.version("lsst-ctrl-bps"))')
    "$folder/bin/python" -m pip download -qq --disable-pip-version-check --no-deps --no-binary lsst-ctrl-bps \
        --dest "$folder" "lsst-ctrl-bps==$version" || return 1
    mkdir "$folder/upstream-tests"
    tar --extract --gzip --file "$folder"/lsst_ctrl_bps-*.tar.gz --directory "$folder/upstream-tests" \
        --strip-components 2 --wildcards '*/tests/test_*.py' --exclude '*/lsst/*'
}

(
    flock 9 # two working trees may want them at once
    made=0
    for bed in "lsst-current 3.13 3.12" "lsst-3.11 3.11"; do
        read -ra words <<<"$bed"
        if make_bed "${words[@]}"; then
            made=$((made + 1))
        else
            echo "no LSST middleware ($bed): no Python of these versions, or the packages cannot be installed" >&2
        fi
    done
    [ "$made" -gt 0 ]
) 9>"$beds/lsst.lock"
