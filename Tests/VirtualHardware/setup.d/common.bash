# The cache, and how a finished thing gets into it.
#
# A thing is made in a folder of its own under $cache/unfinished and renamed into place when
# it is whole, so that an interrupted set-up leaves nothing that is taken for good.

cache="${XDG_CACHE_HOME:-${HOME:?is not set, and neither is XDG_CACHE_HOME}/.cache}/swift-iommu"
unfinished="$cache/unfinished"
quiet=${quiet:-}

say() { [ -n "$quiet" ] || printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
usage() { printf 'setup: %s\n' "$*" >&2; exit 2; }

# One set-up at a time: runs a function with the cache to itself. What another set-up made
# while this one waited is found by the function, which looks again.
locked() {
  exec 9> "$cache/lock"
  if ! flock --nonblock 9; then
    say "waiting for another set-up to finish"
    flock 9
  fi
  # Whatever lies there was left by a set-up that was killed: nobody else holds the lock.
  rm -rf "$unfinished"
  mkdir -p "$unfinished"
  trap 'abandon' EXIT
  local started=$SECONDS
  "$@"
  rm -rf "$unfinished"
  trap - EXIT
  exec 9>&-
  say "$* took $((SECONDS - started)) s"
}

# Also on SIGTERM, which must not leave a compiler running in a folder that is gone.
abandon() {
  [ -z "${step:-}" ] || { kill "$step" && wait "$step"; } 2> /dev/null || true
  rm -rf "$unfinished"
}

# publish FOLDER ENTRY: puts a whole thing under its name, to be seen at once or not at all.
publish() {
  mv --no-target-directory "$1" "$2"
}

# logged WHAT COMMAND…: runs a long command; its output is shown only when it fails.
logged() {
  local what=$1 log="$unfinished/log"
  shift
  say "$what"
  # In the background, for only then does a signal interrupt the wait.
  "$@" > "$log" 2>&1 < /dev/null &
  step=$!
  if ! wait "$step"; then
    step=
    tail -n 40 "$log" >&2
    die "$what: failed"
  fi
  step=
}

# as_root COMMAND…: for the system's packages only. Nothing else here needs root.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo > /dev/null; then
    sudo "$@"
  else
    die "only root may do this, and there is no sudo: $*"
  fi
}

# digest FILE…: a short name for the contents of files, in that order.
digest() { cat "$@" | sha256sum | cut -c 1-12; }
