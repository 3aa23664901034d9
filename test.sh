#!/usr/bin/env bash
# Checks everything on a machine with Python >= 3.11 and no GPU: makes .venv, then ruff, then pytest.
#   ./test.sh                    all tests
#   ./test.sh tests/test_model.py -k rope      arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")"
source env.sh
make_env -r requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # small tensors: threads only wait for each other
ruff check .
ruff format --check .
python -m pytest "$@"
