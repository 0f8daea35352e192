#!/bin/sh
# Finds a Python that is new enough and hands over to setup.py. $PYTHON chooses one.
set -eu
cd "$(dirname "$0")/.."

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
    if ! command -v "$PYTHON" >/dev/null 2>&1; then
        echo "PYTHON=$PYTHON: no such program." >&2
        exit 1
    fi
    if ! new_enough "$PYTHON"; then
        echo "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1). MeshAG needs Python 3.11 or newer." >&2
        exit 1
    fi
    exec "$PYTHON" scripts/setup.py --chosen
fi

for python in .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11 python; do
    if command -v "$python" >/dev/null 2>&1 && new_enough "$python"; then
        exec "$python" scripts/setup.py
    fi
done

found=$(python3 --version 2>&1) || found="none"
echo "MeshAG needs Python 3.11 or newer. Found: $found." >&2
echo "Install one, or name it: make ${MAKECMDGOALS:-setup} PYTHON=/path/to/python3" >&2
exit 1
