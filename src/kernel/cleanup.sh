# Takes back what ksync left on a VM: its key, and what it put there to work. Run as root on the VM, as:
#   bash -c 'this' ksync PUBLIC_KEY
# The services stay: others may use them. But for a bridge of ksync's own: that goes with the last key that ksync made.

key=$1; r=${KSYNC_SANDBOX_ROOT-}; keys=$r/root/.ssh/authorized_keys
own=$r/usr/local/lib/ksync; service=$r/etc/supervisor/conf.d/services/websocat-ssh.conf
if [ -f "$keys" ]; then
  umask 077
  grep -vxF "$key" "$keys" >"$keys.new"
  # Written through the file that is there, whose owner and mode stay.
  cat "$keys.new" >"$keys" && rm -f "$keys.new"
fi
if [ -d "$own" ] && ! grep -qs ' ksync$' "$keys"; then
  if grep -qsF "command=$own/" "$service"; then
    rm -f "$service"
    supervisorctl update websocat-ssh
    # What somebody else has made of the service is in force again.
    grep -qsrF "[program:websocat-ssh]" "${service%/*}" && supervisorctl start websocat-ssh
  fi </dev/null >/dev/null 2>&1
  rm -rf "$own"
fi
rm -rf "$r/root/.cache/ksync" "$r/root/.local/state/ksync" \
  "$r/var/tmp/ksync-0" "$r/tmp/ksync-0" "$r/dev/shm/ksync-0"
exit 0
