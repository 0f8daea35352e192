#!/bin/sh
# Style, format, types, direction of imports. Stops at the first that fails.
# Programs are run as modules: a console script does not start from a path with spaces in it.
set -eu
cd "$(dirname "$0")/.."
py=.venv/bin/python

echo "ruff check";   $py -m ruff check .
echo "ruff format";  $py -m ruff format --check .
echo "mypy";         $py -m mypy
echo "lint-imports"; $py -c "from importlinter.cli import lint_imports_command as run; run()"
