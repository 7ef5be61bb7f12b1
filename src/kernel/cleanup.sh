# Takes back what ksync left on a VM: its key, and what it put there to work. Run as root on the VM, as:
#   bash -c 'this' ksync PUBLIC_KEY
# The services stay: others may use them.

key=$1; r=${KSYNC_SANDBOX_ROOT-}; keys=$r/root/.ssh/authorized_keys
if [ -f "$keys" ]; then
  umask 077
  grep -vxF "$key" "$keys" >"$keys.new"
  # Written through the file that is there, whose owner and mode stay.
  cat "$keys.new" >"$keys" && rm -f "$keys.new"
fi
rm -rf "$r/root/.cache/ksync" "$r/root/.local/state/ksync" \
  "$r/var/tmp/ksync-0" "$r/tmp/ksync-0" "$r/dev/shm/ksync-0"
exit 0
