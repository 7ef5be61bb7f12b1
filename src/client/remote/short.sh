# Starts an agent that is known to be there, or asks for the whole script. The server runs it as:
# sh -c 'this' ksync SHA256 BLOCKS MARKER ARGUMENT
#
# The rules of bootstrap.sh hold: one line without comments, single quotes, exclamation marks and
# doubled backslashes. So do its checks, in the first of its directories: a private one, and an
# agent that has the right hash and runs. A lane skips the hash. Each byte of this is sent with each
# connection.

trap "" 25;
LC_ALL=C; c=${XDG_CACHE_HOME:-${HOME:-.}/.cache}/ksync; f=$c/agent-$1; s=$1;
case $4 in lane:*) ;; *) s=$(sha256sum 2>&1 <"$f");; esac;
[ -O "$c" ] && case $(ls -ld "$c" 2>&1) in drwx--[-S]---[" ".@]*)
  case $s in "$1"*) "$f" --version </dev/null >/dev/null 2>&1 && exec "$f" "$4";; esac;;
esac;
printf "\000KSYNC-LOAD\n";
until [ "$l" = "$3" ]; do read -r l || exit; done;
read -r l; eval "$l";
