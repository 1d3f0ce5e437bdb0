# Sourced by the other scripts: strict mode, the repository root as working directory, argument checks,
# and `use_python`.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { # MESSAGE [STATUS]
  echo "${0##*/}: $1" >&2
  exit "${2:-1}"
}

check_number() { # NAME VALUE MIN [MAX]
  local range="at least $3"
  [[ $# -lt 4 ]] || range="between $3 and $4"
  if ! [[ $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3 || 10#$2 > ${4:-999999})); then
    die "$1 is '$2'; it must be an integer, $range" 2
  fi
}

check_files() { # FILE..., relative to the repository root or absolute
  local file
  for file in "$@"; do
    [[ -f $file ]] || die "no such file: $file (paths are relative to $PWD)" 2
  done
}

# Returns whether the active environment contains this checkout and everything in requirements file $1, offline.
active_environment_has() {
  [[ -n ${VIRTUAL_ENV:-${CONDA_PREFIX:-}} && ${VIRTUAL_ENV:-} != "$PWD/.venv" ]] || return 1
  python -m pip --isolated install --quiet --dry-run --no-index --requirement "$1" &>/dev/null || return 1
  local is_here='import common, sys; sys.exit(common.__path__[0] != sys.argv[1])'
  (here=$PWD && cd / && python -c "$is_here" "$here/common") &>/dev/null
}

# Makes `python` an interpreter that satisfies requirements file $1: the active environment if it does, otherwise
# .venv in this checkout, which is reinstalled whenever requirements or packages have changed.
use_python() {
  active_environment_has "$1" && return
  local sum
  sum=$(cat requirements*.txt constraints.txt pyproject.toml | cksum | cut -d ' ' -f 1)
  if [[ ! -f .venv/.has-$1-$sum ]]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      die "Python 3.10 or newer is required; python3 is $(python3 --version 2>&1)"
    echo "Installing $1 into .venv (once; PyTorch takes a few minutes) ..."
    rm -f .venv/.has-*
    python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --requirement "$1" --constraint constraints.txt
    .venv/bin/python -m pip install --quiet --no-deps --editable .
    touch ".venv/.has-requirements.txt-$sum" ".venv/.has-$1-$sum" # every requirements file includes requirements.txt
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}
