# Starts an agent that is known to be there, or asks for the whole script. The server runs it as:
# sh -c 'this' ksync SHA256 BLOCKS MARKER ARGUMENT
#
# The rules of bootstrap.sh hold: one line without comments, single quotes, exclamation marks and
# doubled backslashes. The checks are those of bootstrap.sh, in the first of its directories.

trap "" 25;
LC_ALL=C; h=$1; a=$4; c=${XDG_CACHE_HOME:-${HOME:-.}/.cache}/ksync; f=$c/agent-$h;

there() {
  [ -h "$c" ] && return 1; [ -h "$f" ] && return 1;
  [ -d "$c" ] && [ -O "$c" ] && [ -f "$f" ] && [ -O "$f" ] || return 1;
  case $(ls -ld "$c" 2>/dev/null) in drwx--[-S]---" "*|drwx--[-S]---[.@]*) ;; *) return 1;; esac;
  case $a in lane:*) [ -x "$f" ]; return;; esac;
  case $(sha256sum <"$f" 2>/dev/null) in *"$h"*) ;; *) return 1;; esac;
  "$f" --version </dev/null >/dev/null 2>&1;
};

there && exec "$f" "$a";
printf "\000KSYNC-LOAD\n";
while IFS= read -r l; do [ "$l" = "$3" ] && break; done;
IFS= read -r l && eval "$l";
exit 1;
