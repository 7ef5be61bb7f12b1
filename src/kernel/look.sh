# Tells what a VM says of itself when nobody gets in: whether sshd and its bridge run, and what answers on the bridge's
# port there. Changes nothing. Run on the VM as:
#   bash -c 'this'

status() { supervisorctl status "$1" 2>&1 </dev/null | head -n 1 | awk '{ $1 = ""; sub(/^ /, ""); print }'; }

# Asks for a WebSocket as any client does; the answer's first line is enough.
answer() {
  exec 3<>/dev/tcp/127.0.0.1/2222 || return
  printf '%s\r\n' 'GET / HTTP/1.1' 'Host: localhost' 'Connection: Upgrade' 'Upgrade: websocket' \
    'Sec-WebSocket-Version: 13' 'Sec-WebSocket-Key: a3N5bmMga3N5bmMga3N5bg==' '' >&3
  IFS= read -r -t 5 line <&3 && echo "${line%$'\r'}"
}

echo "KSYNC sshd $(status sshd)"
echo "KSYNC bridge $(status websocat-ssh)"
# The stand-in VM has an address of its own, and shares 127.0.0.1 with the machine that it runs on.
[ -n "${KSYNC_SANDBOX_ROOT-}" ] || echo "KSYNC answer $(answer 2>/dev/null)"
exit 0
