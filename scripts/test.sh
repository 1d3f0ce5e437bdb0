#!/usr/bin/env bash
# Installs what is missing, then runs all checks: format, lint, structure, types, tests.
# Usage: scripts/test.sh [pytest arguments], e.g. scripts/test.sh -m dist tests/vcr
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
use_python requirements-dev.txt

# The tensors of the tests are tiny: several threads only add overhead.
export OMP_NUM_THREADS=1

ruff format --check --quiet .
ruff check --quiet .
python scripts/architecture.py
mypy
python -m pytest "$@"
