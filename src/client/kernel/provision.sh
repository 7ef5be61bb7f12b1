# Makes a VM reachable over SSH behind a WebSocket bridge, and authorises one key. The platform runs
# it as root, as:
#   flock -o -w 60 LOCK bash -c 'this' ksync PUBLIC_KEY [BRIDGE_SHA256 BRIDGE_FILE]
#
# It makes the same packages, files, services and port as `kernel browsers ssh`, so that each can
# continue the other's work. Existing ones stay. The script may run again at any time, and several
# times at once, because flock admits one run. Every process started here writes to a file and reads
# nothing: an exec ends only when no process holds its output any more.
#
# Exit code 73: no websocat runs, and none can be downloaded. The caller then writes ksync's own
# bridge, compressed, to BRIDGE_FILE, and runs this again with its name and hash. The bridge
# replaces websocat in the same service on the same port. Exit code 74: there is no sshd, and no
# network to install it from, so a bridge would lead nowhere.
#
# An emulated VM shares the machine, so its root is not /.

key=$1; bridge_sha256=${2-}; r=${KSYNC_SANDBOX_ROOT-}; log=$(mktemp) || exit 1
bridge_file=${3:+$r$3}
config=$r/etc/ssh/sshd_config.d/kernel.conf
services=$r/etc/supervisor/conf.d/services
host_key=$r/etc/ssh/ssh_host_ed25519_key
websocat=$r/usr/local/bin/websocat
websocat_url=https://github.com/vi/websocat/releases/download/v1.13.0/websocat.x86_64-unknown-linux-musl
own_bridge=$r/usr/local/lib/ksync/ksync-bridge
# This removes a partial download too.
trap 'rm -f "$log" "$log.made" "$websocat.new" "$own_bridge.new" ${bridge_file:+"$bridge_file"}' EXIT

has_sshd() { command -v sshd >/dev/null || [ -x "$r/usr/sbin/sshd" ]; }
# A program for another machine, or without its libraries, exists but does not run.
works() { "$1" --version </dev/null >/dev/null 2>&1; }
# supervisorctl takes a tenth of a second to start, so one call asks for all services.
run() { [ "$(supervisorctl status "$@" | grep -c RUNNING)" = $# ]; }

# The log names each step before its start, so the last name is that of the failed step.
step() { echo "== $*"; }

install_sshd() {
  step install openssh-server
  export DEBIAN_FRONTEND=noninteractive
  set -- apt-get -q -y -o DPkg::Lock::Timeout=30 -o Acquire::Retries=2 --no-install-recommends
  # Old package lists may name versions that no longer exist.
  # The timeouts together stay within that of the call.
  timeout 50 "$@" install openssh-server || { timeout 20 "$@" update && timeout 50 "$@" install openssh-server; }
}

# apt-get reports it, or ran out of time; then curl decides.
is_offline() {
  grep -qE 'Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable' "$log" ||
    ! curl -sS --connect-timeout 5 --max-time 10 -o /dev/null "$websocat_url"
}

# Without an answer this fails soon, because ksync's own bridge is the alternative.
install_websocat() {
  step download websocat
  curl -fsSL --retry 1 --connect-timeout 5 --max-time 60 -o "$websocat.new" "$websocat_url" &&
    chmod 755 "$websocat.new" && "$websocat.new" --version && mv -f "$websocat.new" "$websocat"
}

# Only root can write BRIDGE_FILE, and the hash proves that ksync sent the program.
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

# Chooses the program of the service, and its user: websocat as in the official CLI, or else ksync's
# bridge, which needs no privileges.
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

# Describes a service. An existing description stays, unless it is ksync's own and names a bridge
# other than the chosen one.
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
  supervisorctl start "$1" || run "$1" || {
    tail -n 2 "$r/var/log/supervisord/$1"
    return 1
  }
}

# Start both at once, because a service counts as started only after 2 s.
start() {
  step start sshd and its bridge
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
  # The key may be there with another comment. A line with options before the key does not count.
  cut -d ' ' -f 1,2 "$r/root/.ssh/authorized_keys" | grep -qxF "$(echo "$key" | cut -d ' ' -f 1,2)" && return
  # A last line without a line end would swallow the key.
  [ -z "$(tail -c 1 "$r/root/.ssh/authorized_keys")" ] || echo >>"$r/root/.ssh/authorized_keys"
  echo "$key" >>"$r/root/.ssh/authorized_keys"
}

# websocat leaves Nagle's algorithm on, so small packets wait for acknowledgements. Over TCP with a
# round trip of 100 ms that takes 0.32 s of each connection. An accepted socket inherits
# TCP_NODELAY from its listener, so setting it there serves all later connections, and cuts none.
# It lasts until the bridge is started again; the next run of this script sets it again.
# Prints the path of the bridge's program. Needs Linux 5.6, for pidfd_getfd.
set_nodelay() {
  perl -e '
    my ($pidfd_open, $pidfd_getfd, $tcp, $nodelay) = (434, 438, 6, 1);
    my (%listeners, $socket);
    for my $table ("/proc/net/tcp", "/proc/net/tcp6") {
      open my $lines, "<", $table or next;
      while (<$lines>) {
        my ($address, $state, $inode) = (split)[1, 3, 9];
        $listeners{"socket:[$inode]"} = 1 if $address =~ /:08AE$/ && $state eq "0A";
      }
    }
    for my $link (glob "/proc/[0-9]*/fd/*") {
      next if !$listeners{readlink($link) // ""};
      my ($process, $number) = $link =~ /(\d+)/g;
      my $handle = syscall $pidfd_open, $process + 0, 0;
      my $fd = $handle < 0 ? -1 : syscall $pidfd_getfd, $handle, $number + 0, 0;
      next if $fd < 0 || !open $socket, "+<&=", $fd;
      next if !setsockopt $socket, $tcp, $nodelay, pack "i", 1;
      print readlink "/proc/$process/exe";
      last;
    }' 2>/dev/null </dev/null
}

# The first line that sshd sends. It ends in CR LF.
server_id() {
  exec 3<>"/dev/tcp/127.0.0.1/${KSYNC_SANDBOX_SSHD:-22}" || return
  IFS= read -r -t 2 line <&3 && echo "${line%$'\r'}"
}

(
  set -e
  let_in
  if ! run sshd websocat-ssh; then
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
  # If the last step printed more than this, print its name first.
  tail -c 4096 "$log" | grep -q '^== ' || grep '^== ' "$log" | tail -n 1 >&2
  tail -c 4096 "$log" >&2
  case $status in 73 | 74) exit $status ;; *) exit 1 ;; esac
fi
echo "KSYNC host-key $(cut -d ' ' -f 1,2 "$host_key.pub")"
echo "KSYNC sshd $({ sshd -V || /usr/sbin/sshd -V; } 2>&1 </dev/null | grep -o 'OpenSSH_[^ ,]*' | head -n 1)"
bridge=websocat
# An emulated VM has no process of its own on the port.
if [ -z "$r" ]; then
  running=$(set_nodelay)
  if [ -n "$running" ]; then echo "KSYNC nodelay yes"; else echo "KSYNC nodelay no"; fi
  [ "$running" != "$own_bridge" ] || bridge=$own_bridge
fi
# Most emulated VMs have no sshd.
if [ -z "$r" ] || [ -n "$KSYNC_SANDBOX_SSHD" ]; then
  # What ksync's first connection would learn from the server, which saves it round trips.
  echo "KSYNC server-id $(server_id 2>/dev/null)"
  echo "KSYNC key-exchanges $(
    of_root="-T -C user=root,host=localhost,addr=127.0.0.1"
    { sshd $of_root || /usr/sbin/sshd $of_root; } 2>/dev/null </dev/null | sed -n 's/^kexalgorithms //p'
  )"
fi
echo "KSYNC websocat $(
  { "$bridge" --version || "$websocat" --version || "$own_bridge" --version; } 2>/dev/null </dev/null | head -n 1
)"
[ ! -s "$log.made" ] || echo "KSYNC installed $(tr '\n' ' ' <"$log.made")"
exit 0
