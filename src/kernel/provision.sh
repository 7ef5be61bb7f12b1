# Makes a VM reachable over SSH behind a WebSocket bridge, and lets one key in. Run as root on the VM, as:
#   flock -o -w 60 LOCK bash -c 'this' ksync PUBLIC_KEY [BRIDGE_SHA256 BRIDGE_FILE]
#
# The same packages, files, services and port as `kernel browsers ssh` makes, so that either can go on from what the
# other one did; what is there already stays. It may be run again at any time, and by several at once: flock lets
# one in at a time. Everything that is started here writes to a file and reads nothing, since an exec whose output
# somebody still holds never ends.
#
# Exit code 73: there is no websocat that runs, and none to be had. Then whoever called writes a bridge of ksync's own,
# compressed, to BRIDGE_FILE, and runs this again with its name and hash. It takes the place of websocat in the same
# service on the same port. Exit code 74: there is no sshd, and no network to install it from, so a bridge would lead
# nowhere.
#
# In the stand-in VM, which is no machine of its own, / lies elsewhere.

key=$1; bridge_sha256=${2-}; r=${KSYNC_SANDBOX_ROOT-}; log=$(mktemp) || exit 1
bridge_file=${3:+$r$3}
config=$r/etc/ssh/sshd_config.d/kernel.conf
services=$r/etc/supervisor/conf.d/services
host_key=$r/etc/ssh/ssh_host_ed25519_key
websocat=$r/usr/local/bin/websocat
websocat_url=https://github.com/vi/websocat/releases/download/v1.13.0/websocat.x86_64-unknown-linux-musl
own_bridge=$r/usr/local/lib/ksync/ksync-bridge
# A download that broke off may not stay either.
trap 'rm -f "$log" "$log.made" "$websocat.new" "$own_bridge.new" ${bridge_file:+"$bridge_file"}' EXIT

has_sshd() { command -v sshd >/dev/null || [ -x "$r/usr/sbin/sshd" ]; }
# A program for another machine, or without its libraries, is there and of no use.
works() { "$1" --version </dev/null >/dev/null 2>&1; }
runs() { supervisorctl status "$1" | grep -q RUNNING; }

# Each step is named before it is tried: the last name tells what failed.
step() { echo "== $*"; }

install_sshd() {
  step install openssh-server
  export DEBIAN_FRONTEND=noninteractive
  set -- apt-get -q -y -o DPkg::Lock::Timeout=30 -o Acquire::Retries=2 --no-install-recommends
  # Lists of packages that are old name versions that are gone.
  # Together no longer than the call may take.
  timeout 50 "$@" install openssh-server || { timeout 20 "$@" update && timeout 50 "$@" install openssh-server; }
}

# apt-get says so, or had no time to.
is_offline() {
  grep -qE 'Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable' "$log" ||
    ! curl -sS --connect-timeout 5 --max-time 10 -o /dev/null "$websocat_url"
}

# Where nothing answers it is known soon, since there is another way.
install_websocat() {
  step download websocat
  curl -fsSL --retry 1 --connect-timeout 5 --max-time 60 -o "$websocat.new" "$websocat_url" &&
    chmod 755 "$websocat.new" && "$websocat.new" --version && mv -f "$websocat.new" "$websocat"
}

# Nobody but root could have put it there, and what runs is what ksync has sent.
install_own_bridge() {
  step install the bridge of ksync
  mkdir -p "${own_bridge%/*}"
  gzip -dc "$bridge_file" >"$own_bridge.new"
  echo "$bridge_sha256  $own_bridge.new" | sha256sum -c
  chmod 755 "${own_bridge%/*}" "$own_bridge.new"
  "$own_bridge.new" --version
  mv -f "$own_bridge.new" "$own_bridge"
  echo ksync-bridge >>"$log.made"
}

# What is to run as the service, and as whom: websocat as the official CLI does, else what ksync has put here, which
# needs no rights.
choose_bridge() {
  bridge="/usr/local/bin/websocat --binary ws-l:0.0.0.0:2222 tcp:127.0.0.1:22" bridge_user=
  if [ -n "$bridge_sha256" ]; then
    install_own_bridge
  elif works websocat || works "$websocat"; then
    return
  elif ! works "$own_bridge"; then
    if command -v websocat || [ -e "$websocat" ]; then
      step run websocat
      websocat --version || "$websocat" --version || exit 73
    fi
    install_websocat || exit 73
    echo websocat >>"$log.made"
    return
  fi
  bridge="$own_bridge 0.0.0.0:2222 127.0.0.1:22" bridge_user=user=nobody
}

# A service that somebody has described already is left as it is, but for one of ours that names a bridge which is not
# the one to run.
describe() {
  if grep -qsrF "[program:$1]" "$services"; then
    [ -n "$3" ] && [ -f "$services/$1.conf" ] && ! grep -qxF "command=$2" "$services/$1.conf" || return 0
  fi
  step describe the service "$1"
  mkdir -p "$services" "$r/var/log/supervisord"
  printf '%s\n' "[program:$1]" "command=$2" autostart=false autorestart=true startsecs=2 \
    "stdout_logfile=/var/log/supervisord/$1" redirect_stderr=true ${3:+"$3"} >"$services/$1.conf.new"
  mv -f "$services/$1.conf.new" "$services/$1.conf"
}

start_service() {
  runs "$1" || supervisorctl start "$1" || runs "$1" || {
    tail -n 2 "$r/var/log/supervisord/$1"
    return 1
  }
}

# Both at once: a service counts as started when it has run for 2 s.
start() {
  step start sshd and its bridge
  supervisorctl reread
  supervisorctl update
  start_service sshd &
  start_service websocat-ssh || { wait; return 1; }
  wait $!
}

let_in() {
  step let the key in
  mkdir -p "$r/root/.ssh"
  chmod 700 "$r/root/.ssh"
  [ -f "$r/root/.ssh/authorized_keys" ] || touch "$r/root/.ssh/authorized_keys"
  chmod 600 "$r/root/.ssh/authorized_keys"
  grep -qxF "$key" "$r/root/.ssh/authorized_keys" && return
  # A last line without its end would swallow the key.
  [ -z "$(tail -c 1 "$r/root/.ssh/authorized_keys")" ] || echo >>"$r/root/.ssh/authorized_keys"
  echo "$key" >>"$r/root/.ssh/authorized_keys"
}

(
  set -e
  let_in
  if ! { runs sshd && runs websocat-ssh; }; then
    if ! has_sshd; then
      install_sshd || { is_offline && exit 74; exit 1; }
      echo openssh-server >>"$log.made"
    fi
    choose_bridge
    step configure sshd
    mkdir -p "$r/run/sshd" "${config%/*}"
    [ -s "$config" ] || printf '%s\n' "GatewayPorts yes" "TCPKeepAlive yes" "PermitRootLogin prohibit-password" \
      "PasswordAuthentication no" "PubkeyAuthentication yes" >"$config"
    [ -s "$host_key" ] || ssh-keygen -A
    describe sshd "/usr/sbin/sshd -D -e" ""
    describe websocat-ssh "$bridge" "$bridge_user"
    start
  fi
  step read the host key
  [ -s "$host_key.pub" ]
) >"$log" 2>&1 </dev/null
status=$?

if [ $status -ne 0 ]; then
  # A step that said more than this is named before its end.
  tail -c 4096 "$log" | grep -q '^== ' || grep '^== ' "$log" | tail -n 1 >&2
  tail -c 4096 "$log" >&2
  case $status in 73 | 74) exit $status ;; *) exit 1 ;; esac
fi
echo "KSYNC host-key $(cut -d ' ' -f 1,2 "$host_key.pub")"
echo "KSYNC sshd $({ sshd -V || /usr/sbin/sshd -V; } 2>&1 </dev/null | grep -o 'OpenSSH_[^ ,]*' | head -n 1)"
echo "KSYNC websocat $(
  { websocat --version || "$websocat" --version || "$own_bridge" --version; } 2>/dev/null </dev/null | head -n 1
)"
[ ! -s "$log.made" ] || echo "KSYNC installed $(tr '\n' ' ' <"$log.made")"
exit 0
