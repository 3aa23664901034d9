# Sourced by the other scripts. `make_env WHAT...` gives an up-to-date .venv with the packages WHAT
# (arguments of pip install) and puts it first in PATH. PYTHON=/path/to/python3.11 chooses another.

find_python() {
  local python
  for python in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2
  return 1
}

make_env() {
  local python stamp wanted
  stamp=.venv/installed-$(echo "$*" | cksum | cut -d' ' -f1) # one for each set of packages
  wanted="$* $(cat requirements*.txt)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    python=$(find_python)
    echo "== installing into .venv (once) with $($python --version)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
    echo "$wanted" >"$stamp"
  fi
  PATH="$PWD/.venv/bin:$PATH"
  export PATH TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
}

# Serves the sample world's judge on a free port until the script ends; its address in $judge_url.
start_judge() {
  local url judge
  url=$(mktemp)
  python sample/judge_server.py --port 0 >"$url" &
  judge=$!
  trap "kill $judge 2>/dev/null || true; rm -f $url" EXIT
  until [ -s "$url" ]; do
    kill -0 $judge || exit 1
    sleep 0.2
  done
  judge_url=$(head -n 1 "$url")/v1
}
