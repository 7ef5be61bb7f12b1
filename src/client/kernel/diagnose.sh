# Diagnoses a VM if SSH fails: the states of sshd and its bridge, and the answer on the bridge's
# port. It changes nothing. The platform runs it on the VM as:
#   bash -c 'this'

status() { supervisorctl status "$1" 2>&1 </dev/null | head -n 1 | awk '{ $1 = ""; sub(/^ /, ""); print }'; }

# Requests a WebSocket like any client; the first line of the answer is enough.
answer() {
  exec 3<>/dev/tcp/127.0.0.1/2222 || return
  printf '%s\r\n' 'GET / HTTP/1.1' 'Host: localhost' 'Connection: Upgrade' 'Upgrade: websocket' \
    'Sec-WebSocket-Version: 13' 'Sec-WebSocket-Key: a3N5bmMga3N5bmMga3N5bg==' '' >&3
  IFS= read -r -t 5 line <&3 && echo "${line%$'\r'}"
}

echo "KSYNC sshd $(status sshd)"
echo "KSYNC bridge $(status websocat-ssh)"
# sshd's own view of its settings, with those for root.
echo "KSYNC root $(
  { sshd -T -C user=root || /usr/sbin/sshd -T -C user=root; } 2>/dev/null </dev/null |
    awk 'tolower($1) == "permitrootlogin" { print $2 }'
)"
# An emulated VM has its own address, and shares 127.0.0.1 with the machine that it runs on.
[ -n "${KSYNC_SANDBOX_ROOT-}" ] || echo "KSYNC answer $(answer 2>/dev/null)"
exit 0
