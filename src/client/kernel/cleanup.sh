# Removes ksync's traces from a VM: its keys, caches and bridge. The platform runs it as root on the
# VM, as:
#   bash -c 'this' ksync PUBLIC_KEY...
# Only the very lines that ksync added go: a line with the same key and another comment is somebody
# else's. The services stay, because others may use them. ksync's own bridge goes with the last key
# that ksync made.

r=${KSYNC_SANDBOX_ROOT-}; keys=$r/root/.ssh/authorized_keys
own=$r/usr/local/lib/ksync; service=$r/etc/supervisor/conf.d/services/websocat-ssh.conf
if [ $# -gt 0 ] && [ -f "$keys" ] && printf '%s\n' "$@" | grep -qxF -f - "$keys"; then
  umask 077
  printf '%s\n' "$@" | grep -vxF -f - "$keys" >"$keys.new"
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
