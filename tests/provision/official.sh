# Commands of the official CLI on a VM for `kernel browsers ssh`, as far as they are known. Run as:
#   bash -c 'this' official PUBLIC_KEY
# The names of its files below conf.d/services are a guess, and differ from ksync's.

set -e
let_in() {
  mkdir -p /root/.ssh && chmod 700 /root/.ssh
  echo "$1" >>/root/.ssh/authorized_keys && chmod 600 /root/.ssh/authorized_keys
}
if supervisorctl status sshd | grep -q RUNNING && supervisorctl status websocat-ssh | grep -q RUNNING; then
  let_in "$1"
  exit
fi
command -v sshd >/dev/null || { apt-get update && apt-get install -y openssh-server; }
mkdir -p /run/sshd /etc/ssh/sshd_config.d /etc/supervisor/conf.d/services /var/log/supervisord
cat >/etc/ssh/sshd_config.d/kernel.conf <<'END'
GatewayPorts yes
TCPKeepAlive yes
PermitRootLogin prohibit-password
PasswordAuthentication no
PubkeyAuthentication yes
END
command -v websocat >/dev/null
cat >/etc/supervisor/conf.d/services/kernel-ssh.conf <<'END'
[program:sshd]
command=/usr/sbin/sshd -D -e
autostart=false
autorestart=true
startsecs=2
stdout_logfile=/var/log/supervisord/sshd
redirect_stderr=true
END
cat >/etc/supervisor/conf.d/services/kernel-websocat.conf <<'END'
[program:websocat-ssh]
command=/usr/local/bin/websocat --binary ws-l:0.0.0.0:2222 tcp:127.0.0.1:22
autostart=false
autorestart=true
startsecs=2
stdout_logfile=/var/log/supervisord/websocat-ssh
redirect_stderr=true
END
let_in "$1"
[ -f /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -A
supervisorctl reread
supervisorctl update
supervisorctl start sshd websocat-ssh
