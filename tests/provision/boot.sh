# Turns this machine into one like a VM, and becomes its first process. It runs in its own
# namespaces for mounts, processes and the network, as:
#   bash -c 'this' boot EMPTY_DIRECTORY WEBSOCAT PACKAGES VARIANT
# Writes to / go to a tmpfs, which vanishes with the last process. Exit code 77: such a machine is
# impossible here.

set -eu
dir=$1 websocat=$2 packages=$3 variant=$4
root=$dir/root
cannot() { echo "cannot $1 here"; exit 77; }

ip link set lo up || cannot "bring loopback up"
# If / itself is an overlay, as in a container, the upper layer must be on another filesystem.
mount -t tmpfs none "$dir" || cannot "mount a tmpfs"
mkdir "$dir/upper" "$dir/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root" || {
  dmesg 2>/dev/null | grep -i overlay | tail -n 3 || true
  cannot "mount an overlay over / of type $(stat -f -c %T /)"
}
mount -t proc proc "$root/proc" || cannot "mount /proc"
mount --bind /dev "$root/dev" || cannot "bind /dev"
mount -t tmpfs -o mode=1777 none "$root/dev/shm"
mount -t tmpfs -o mode=755 none "$root/run"
mount -t tmpfs -o mode=1777 none "$root/tmp"

# As in a container's image, installed packages start no services.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/var/cache/apt/archives"

# Remove the machine's own keys and state from the VM, and what its root's shells start.
rm -rf "$root"/root/{.ssh,.bashrc,.bash_profile,.profile} "$root/var/log/supervisord"* "$root"/etc/ssh/sshd_config.d/*
rm -f "$root"/etc/ssh/ssh_host_* "$root"/{usr/local/sbin,usr/local/bin,usr/sbin,usr/bin}/websocat
# websocat for clients, in a directory where the script does not look for a bridge.
install -D -m 755 "$websocat" "$root/opt/client/websocat-of-a-client"
[ "$variant" = no-websocat ] || [ "$variant" = bare ] || install -m 755 "$websocat" "$root/usr/local/bin/websocat"
if [ "$variant" = old ] || [ "$variant" = bare ]; then
  rm -f "$root"/var/cache/apt/archives/*.deb
  [ "$variant" = bare ] || cp "$packages"/*.deb "$root/var/cache/apt/archives/"
  chroot "$root" dpkg --purge --force-all openssh-server openssh-sftp-server
  rm -rf "$root/etc/ssh/sshd_config.d" "$root"/etc/ssh/ssh_host_*
fi

# The VM's own supervisor configuration, not that of the package.
mkdir -p "$root/etc/supervisor/conf.d/services"
cat >"$root/etc/supervisor/supervisord.conf" <<'END'
[unix_http_server]
file=/var/run/supervisor.sock

[supervisord]
logfile=/var/log/supervisord.log
pidfile=/var/run/supervisord.pid
childlogdir=/var/log

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix:///var/run/supervisor.sock

[include]
files = /etc/supervisor/conf.d/services/*.conf
END
touch "$root/run/vm-of-a-test"
exec chroot "$root" /usr/bin/supervisord -n -c /etc/supervisor/supervisord.conf
