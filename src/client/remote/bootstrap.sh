# Starts the agent, or asks for it. The server runs it as: sh -c 'this' ksync SHA256 BLOCKS MARKER
# ARGUMENT
#
# The client removes comments and line ends before it sends the script, because some login shells
# reject line ends in quotes. Each line therefore ends where a blank may follow. The script contains
# no single quote, no exclamation mark (csh) and no doubled backslash (fish), for the sake of login
# shells. Only the four arguments vary.

# SIGXFSZ: a file longer than the limit (ulimit -f) must not kill the agent, which inherits ignored
# signals.
trap "" 25;
LC_ALL=C; h=$1; n=$2; m=$3; a=$4; e=;

# Records the reason against a directory, for the final FAIL.
no() { e="$e$d: $1; "; };

# Checks for a private directory: no link, owned by this user, closed to others. Others cannot
# replace its files then.
private() {
  [ -h "$1" ] && return 1;
  [ -d "$1" ] && [ -O "$1" ] || return 1;
  case $(ls -ld "$1" 2>/dev/null) in drwx--[-S]---" "*|drwx--[-S]---[.@]*) return 0;; esac;
  return 1;
};

# Checks that a file has the hash of its name. Without any of the three tools the check fails.
sound() {
  [ -h "$1" ] && return 1;
  [ -f "$1" ] && [ -O "$1" ] || return 1;
  if command -v sha256sum >/dev/null 2>&1; then s=$(sha256sum <"$1");
  elif command -v shasum >/dev/null 2>&1; then s=$(shasum -a 256 <"$1");
  else s=$(openssl dgst -sha256 <"$1"); fi;
  case $s in *"$h"*) return 0;; esac;
  return 1;
};

# Test run before exec, because a shell whose exec fails is gone. It detects a noexec mount and a
# foreign machine.
runs() { "$1" --version </dev/null >/dev/null 2>&1; };

# Execs the agent, if it is there. A lane skips the check of the hash: the exchange's agent has just
# passed it, and nobody else can change a file in a private directory.
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

# Files of the installation are private. The agent keeps the umask of the login.
k=$(umask); umask 077;
command -v gzip >/dev/null 2>&1 || { printf "\000KSYNC-FAIL there is no gzip\n"; exit 1; };

for d in "$@"; do
  case $d in /*) ;; *) continue;; esac;
  mkdir -p "$d" 2>/dev/null;
  private "$d" || { no "not a private directory that can be made"; continue; };
  f=$d/agent-$h; t=$d/.new-$m;
  rm -f "$t" 2>/dev/null;

# With -C the shell creates a file and never opens an existing one.
  (set -C; printf "#%s/bin/sh\nexit 0\n" "$(printf "\041")" >"$t") 2>/dev/null
    && chmod 700 "$t" || { rm -f "$t"; no "not writable"; continue; };
  runs "$t" || { rm -f "$t"; no "programs may not run there"; continue; };

# The input begins with bytes that the client already sent to the agent, up to the marker line. read
# takes single bytes, so everything after the marker is still there for dd.
  printf "\000KSYNC-NEED\n";
  l=; while IFS= read -r l; do [ "$l" = "$m" ] && break; done;
  [ "$l" = "$m" ] || { rm -f "$t"; exit 1; };
  rm -f "$t"; (set -C; : >"$t") 2>/dev/null || { no "not writable"; continue; };
  dd bs=4096 count="$n" iflag=fullblock 2>/dev/null | gzip -dc 2>/dev/null >"$t";
  if sound "$t"; then
    chmod 700 "$t" && mv -f "$t" "$f" && runs "$f" && {
      find "$d" -type f "(" -name "agent-*" -mtime +30 -o -name ".new-*" -mtime +1 ")"
        -exec rm -f "{}" ";" </dev/null >/dev/null 2>&1;
      umask "$k"; exec "$f" "$a";
    };
    rm -f "$f"; no "the agent does not run there";
  else
    no "it arrived damaged (no space, or no sha256sum)";
  fi;
  rm -f "$t";
done;
printf "\000KSYNC-FAIL %s\n" "$e";
exit 1;
