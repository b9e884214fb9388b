#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Installs soupjax from this checkout, in editable mode, with the given extras.
#
#   . launch/setup.sh EXTRAS        (to be sourced, from the repository root)
#
# Installs into the active virtual environment; without one, into .venv, which
# is created and activated, since most system Pythons refuse pip. Index settings
# of pip (PIP_INDEX_URL, pip.conf, ...) are respected.
#
#   PYTHON   interpreter that creates .venv, 3.11 or newer (default: python3)

PYTHON="${PYTHON:-python3}"

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
  if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "soupjax needs Python 3.11 or newer, but $PYTHON is:" >&2
      "$PYTHON" --version >&2
      echo "Choose another one: PYTHON=python3.13 $0" >&2
      exit 1
    fi
    # Debian and Ubuntu leave out ensurepip; the system's pip can install pip.
    "$PYTHON" -m venv .venv > /dev/null || {
      "$PYTHON" -m venv --without-pip .venv
      "$PYTHON" -m pip --python .venv/bin/python install --quiet pip
    }
  fi
  # shellcheck source=/dev/null
  . .venv/bin/activate
fi

# Installs only if the requirements have changed, so that a second start needs
# no network.
stamp="$VIRTUAL_ENV/.soupjax-$1"
wanted="$PWD $(cat setup.cfg pyproject.toml | cksum)"
if [[ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]]; then
  echo "Installing into $VIRTUAL_ENV"
  python -m pip install --quiet --editable ".[$1]"
  echo "$wanted" > "$stamp"
fi
