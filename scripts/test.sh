#!/usr/bin/env bash
# Installs what is missing, then runs every check: format, lint, types, tests.
# Usage: scripts/test.sh [pytest arguments], e.g. scripts/test.sh -m dist tests/vcr
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
use_python requirements-dev.txt

# The tests' tensors are tiny: threads would only wait for each other.
export OMP_NUM_THREADS=1

ruff format --check --quiet .
ruff check --quiet .
python scripts/architecture.py
mypy
python -m pytest "$@"
