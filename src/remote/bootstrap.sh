# Starts the agent, or asks for it. Run on the other side as: sh -c 'this' ksync SHA256 BLOCKS MARKER ARGUMENT
#
# Comments and line ends are taken out before it is sent, since some login shells take no line ends in quotes:
# so each line ends where a blank may follow. For the same reason there is no single quote, no exclamation mark
# (csh) and no doubled backslash (fish) in it. Nothing but the four arguments varies.

# A file that is longer than the limit (ulimit -f) must not end the agent, which keeps ignoring what is ignored here.
trap "" 25;
umask 077; LC_ALL=C; h=$1; n=$2; m=$3; a=$4; e=;

# Says why a directory will not do, for the one who has to find out in the end.
no() { e="$e$d: $1; "; };

# A private directory: no link, ours, nobody else may enter. Nobody else can then replace what is in it.
private() {
  [ -h "$1" ] && return 1;
  [ -d "$1" ] && [ -O "$1" ] || return 1;
  case $(ls -ld "$1" 2>/dev/null) in drwx--[-S]---" "*|drwx--[-S]---[.@]*) return 0;; esac;
  return 1;
};

# Whether a file is what its name says. No tool of the three: no.
sound() {
  [ -h "$1" ] && return 1;
  [ -f "$1" ] && [ -O "$1" ] || return 1;
  if command -v sha256sum >/dev/null 2>&1; then s=$(sha256sum <"$1");
  elif command -v shasum >/dev/null 2>&1; then s=$(shasum -a 256 <"$1");
  else s=$(openssl dgst -sha256 <"$1"); fi;
  case $s in *"$h"*) return 0;; esac;
  return 1;
};

# Tried before exec, since a shell that fails to exec is gone: no noexec mount, no other machine.
runs() { "$1" --version </dev/null >/dev/null 2>&1; };

# Becomes the agent, if it is there. A lane does so without looking at it again: somebody has just become it, and
# where nobody else may enter it is still the same.
become() {
  f=$1/agent-$h;
  private "$1" && [ -e "$f" ] || return 0;
  case $a in lane:*) [ -x "$f" ] && exec "$f" "$a"; return 0;; esac;
  if sound "$f"; then runs "$f" && exec "$f" "$a"; else rm -f "$f"; fi;
};

c=${XDG_CACHE_HOME:-${HOME:-.}/.cache}/ksync;
become "$c";
u=$(id -u);
set -- "/var/tmp/ksync-$u" "/tmp/ksync-$u" "/dev/shm/ksync-$u";
for d in "$@"; do become "$d"; done;
set -- "$c" "$@";

command -v gzip >/dev/null 2>&1 || { printf "\000KSYNC-FAIL there is no gzip\n"; exit 1; };

for d in "$@"; do
  case $d in /*) ;; *) continue;; esac;
  mkdir -p "$d" 2>/dev/null;
  private "$d" || { no "not a private directory that can be made"; continue; };
  f=$d/agent-$h; t=$d/.new-$m;
  rm -f "$t" 2>/dev/null;

# With -C the shell makes a file and never opens one.
  (set -C; printf "#%s/bin/sh\nexit 0\n" "$(printf "\041")" >"$t") 2>/dev/null
    && chmod 700 "$t" || { rm -f "$t"; no "not writable"; continue; };
  runs "$t" || { rm -f "$t"; no "programs may not run there"; continue; };

# What the client has already sent for the agent comes first: lines up to the marker. read takes single bytes,
# so what follows the marker is still there for dd.
  printf "\000KSYNC-NEED\n";
  l=; while IFS= read -r l; do [ "$l" = "$m" ] && break; done;
  [ "$l" = "$m" ] || { rm -f "$t"; exit 1; };
  rm -f "$t"; (set -C; : >"$t") 2>/dev/null || { no "not writable"; continue; };
  dd bs=4096 count="$n" iflag=fullblock 2>/dev/null | gzip -dc 2>/dev/null >"$t";
  if sound "$t"; then
    chmod 700 "$t" && mv -f "$t" "$f" && runs "$f" && {
      find "$d" -type f "(" -name "agent-*" -mtime +30 -o -name ".new-*" -mtime +1 ")"
        -exec rm -f "{}" ";" </dev/null >/dev/null 2>&1;
      exec "$f" "$a";
    };
    rm -f "$f"; no "the agent does not run there";
  else
    no "it arrived damaged (no space, or no sha256sum)";
  fi;
  rm -f "$t";
done;
printf "\000KSYNC-FAIL %s\n" "$e";
exit 1;
