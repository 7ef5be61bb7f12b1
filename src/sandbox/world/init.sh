# The first process of a world: mounts its files, makes them the root, and waits for the end of its
# input. It runs in namespaces of its own for mounts and processes, as:
#   sh -c 'this' world DIRECTORY TMPFS_OR_EMPTY LEADER_MAKER
# The directory has `fs`, which becomes the root, `layers` for the overlays with the directories in
# `skeleton`, and `mounts`, an fstab.
# It is mounted at /tmp first, so that no path in that table needs quotes.

set -e
cd "$1"
read -r pid rest </proc/self/stat
mount -n --rbind . /tmp
cd /tmp
if [ -n "$2" ]; then
  mount -n -t tmpfs -o mode=755 tmpfs layers
  (cd layers && xargs mkdir -p <../skeleton)
fi
is_empty() { for entry in "$1"/*; do [ ! -e "$entry" ]; return; done; }
# A mount that fails is seen to below, or leaves out what the world can do without.
mount -n -a -T mounts || true
while read -r name; do
  is_empty "fs/$name" && ! is_empty "/$name" || continue
  case $name in
    etc) cp -a /etc/. fs/etc/ 2>/dev/null || true ;;
    *) mount -n --rbind -o ro "/$name" "fs/$name" 2>/dev/null || true ;;
  esac
done <overlays
for needed in bin/sh etc/passwd proc/self/stat dev/null "${3#/}"; do
  [ -e "fs/$needed" ] || { echo "a world would have no /$needed" >&2; exit 1; }
done
cd fs
pivot_root . .
umount -l .
cd /
# A shell of the new root holds nothing of the old one. It reaps orphans while it waits for `cat`,
# which a program of the world may kill.
exec /bin/sh -c 'echo "$1"; exec >/dev/null 2>&1; until cat; do :; done' world "$pid"
