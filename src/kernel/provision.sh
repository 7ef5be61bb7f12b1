# Makes a VM reachable over SSH behind a WebSocket bridge, and lets one key in. Run as root on the VM, as:
#   flock -o -w 60 LOCK bash -c 'this' ksync PUBLIC_KEY
#
# The same packages, files, services and port as `kernel browsers ssh` makes, so that either can go on from what the
# other one did; what is there already stays. It may be run again at any time, and by several at once: flock lets
# one in at a time. Everything that is started here writes to a file and reads nothing, since an exec whose output
# somebody still holds never ends.
#
# In the stand-in VM, which is no machine of its own, / lies elsewhere.

key=$1; r=${KSYNC_SANDBOX_ROOT-}; log=$(mktemp) || exit 1
config=$r/etc/ssh/sshd_config.d/kernel.conf
services=$r/etc/supervisor/conf.d/services
host_key=$r/etc/ssh/ssh_host_ed25519_key
websocat=$r/usr/local/bin/websocat
websocat_url=https://github.com/vi/websocat/releases/download/v1.13.0/websocat.x86_64-unknown-linux-musl
# A download that broke off may not stay either.
trap 'rm -f "$log" "$log.made" "$websocat.new"' EXIT

has_sshd() { command -v sshd >/dev/null || [ -x "$r/usr/sbin/sshd" ]; }
has_websocat() { command -v websocat >/dev/null || [ -x "$websocat" ]; }
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

install_websocat() {
  step download websocat
  curl -fsSL --retry 2 --max-time 60 -o "$websocat.new" "$websocat_url"
  chmod 755 "$websocat.new"
  "$websocat.new" --version
  mv -f "$websocat.new" "$websocat"
}

# A service that somebody has described already is left as it is.
describe() {
  grep -qsrF "[program:$1]" "$services" && return
  step describe the service "$1"
  mkdir -p "$services" "$r/var/log/supervisord"
  printf '%s\n' "[program:$1]" "command=$2" autostart=false autorestart=true startsecs=2 \
    "stdout_logfile=/var/log/supervisord/$1" redirect_stderr=true >"$services/$1.conf.new"
  mv -f "$services/$1.conf.new" "$services/$1.conf"
}

start() {
  step start sshd and websocat
  supervisorctl reread
  supervisorctl update
  for service in sshd websocat-ssh; do
    runs "$service" || supervisorctl start "$service" || runs "$service"
  done
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
    has_sshd || { install_sshd; echo openssh-server >>"$log.made"; }
    has_websocat || { install_websocat; echo websocat >>"$log.made"; }
    step configure sshd
    mkdir -p "$r/run/sshd" "${config%/*}"
    [ -s "$config" ] || printf '%s\n' "GatewayPorts yes" "TCPKeepAlive yes" "PermitRootLogin prohibit-password" \
      "PasswordAuthentication no" "PubkeyAuthentication yes" >"$config"
    [ -s "$host_key" ] || ssh-keygen -A
    describe sshd "/usr/sbin/sshd -D -e"
    describe websocat-ssh "/usr/local/bin/websocat --binary ws-l:0.0.0.0:2222 tcp:127.0.0.1:22"
    start
  fi
  step read the host key
  [ -s "$host_key.pub" ]
) >"$log" 2>&1 </dev/null
status=$?

if [ $status -ne 0 ]; then
  tail -c 4096 "$log" >&2
  exit 1
fi
echo "KSYNC host-key $(cut -d ' ' -f 1,2 "$host_key.pub")"
echo "KSYNC sshd $({ sshd -V || /usr/sbin/sshd -V; } 2>&1 </dev/null | grep -o 'OpenSSH_[^ ,]*' | head -n 1)"
echo "KSYNC websocat $({ websocat --version || "$websocat" --version; } 2>/dev/null </dev/null | head -n 1)"
[ ! -s "$log.made" ] || echo "KSYNC installed $(tr '\n' ' ' <"$log.made")"
exit 0
