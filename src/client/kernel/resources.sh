# Reports the free disk and memory of a VM, in KiB. It changes nothing. The platform runs it on the
# VM as:
#   bash -c 'this'

df -Pk "${KSYNC_SANDBOX_ROOT-}/tmp" | awk 'NR == 2 { print "KSYNC disk", $4, $2 }'
awk '/^MemTotal:/ { total = $2 } /^MemAvailable:/ { free = $2 }
  END { print "KSYNC memory", free, total }' /proc/meminfo
exit 0
