# Removes ksync's traces from a VM: its key, caches and bridge. The platform runs it as root on the
# VM, as:
#   bash -c 'this' ksync PUBLIC_KEY
# The services stay, because others may use them. ksync's own bridge goes with the last key that
# ksync made.

key=$1; r=${KSYNC_SANDBOX_ROOT-}; keys=$r/root/.ssh/authorized_keys
own=$r/usr/local/lib/ksync; service=$r/etc/supervisor/conf.d/services/websocat-ssh.conf
if [ -f "$keys" ]; then
  umask 077
  grep -vxF "$key" "$keys" >"$keys.new"
  # Write into the existing file, to keep its owner and mode.
  cat "$keys.new" >"$keys" && rm -f "$keys.new"
fi
if [ -d "$own" ] && ! grep -qs ' ksync$' "$keys"; then
  if grep -qsF "command=$own/" "$service"; then
    rm -f "$service"
    supervisorctl update websocat-ssh
    # If another client has described the service, its description is in force again.
    grep -qsrF "[program:websocat-ssh]" "${service%/*}" && supervisorctl start websocat-ssh
  fi </dev/null >/dev/null 2>&1
  rm -rf "$own"
fi
rm -rf "$r/root/.cache/ksync" "$r/root/.local/state/ksync" \
  "$r/var/tmp/ksync-0" "$r/tmp/ksync-0" "$r/dev/shm/ksync-0"
exit 0
