#!/usr/bin/env bash
# Fills a directory with the SSH servers of the matrix in tests/ssh/matrix: servers.sh DIRECTORY
#
# Each Debian release gets a small root directory of unpacked packages, in which the tests run its
# sshd, dropbear and tinysshd. The Python servers get a virtual environment. apt works with lists
# and settings of its own: the machine's are only read for the address of its Debian mirror.
#
# The key in it is let in everywhere. A server that cannot be had is named on stderr, and the others
# are there nevertheless: the tests decide which ones they need.
set -euo pipefail

directory=$(realpath -m "$1")
releases=(bullseye bookworm trixie sid)
packages=(openssh-server openssh-client dropbear-bin tinysshd busybox-static base-passwd)

# Packages that the servers above depend on, but do not need in order to serve.
unneeded='^(adduser|cdebconf|debconf.*|dpkg|gcc-.*|init-system-helpers|libperl.*|lsb-base|mount|openssl.*|passwd|perl.*|procps|runit-helper|sensible-utils|systemd.*|sysvinit-utils|tar|ucf|util-linux.*|xauth)$'

say() { printf '!! %s\n' "$*" >&2; }

# The address of this machine's mirror of Debian. Without package lists there is none.
mirror() {
    list_mirrors | grep -q . || apt-get -qq update >&2
    list_mirrors | head -n 1
}

list_mirrors() {
    apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(REPO_URI)' 2>/dev/null |
        sed -n 's/^Packages bookworm //p'
}

# Runs an apt command with the lists and settings of one release.
release_apt() {
    local state=$1 command=$2
    shift 2
    "$command" -qq \
        -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State="$state/state" -o Dir::State::Status="$state/status" -o Dir::Cache="$state/cache" \
        -o APT::Sandbox::User=root -o APT::Architectures=amd64 -o APT::Install-Recommends=false \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::Check-Valid-Until=false "$@"
}

# Unpacks a release's servers into a root directory.
release() {
    local name=$1 root=$directory/$1 state=$directory/.apt/$1 new=$directory/.new-$1 list
    [ ! -e "$root/etc/server" ] || return 0
    rm -rf "$new"
    mkdir -p "$state"/{state/lists/partial,cache/archives/partial} "$new"
    : >"$state/status"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
        "$(mirror)" "$name" >"$state/sources.list"
    release_apt "$state" apt-get update
    list=$(release_apt "$state" apt-get install --simulate "${packages[@]}" |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep -vE "$unneeded")
    # shellcheck disable=SC2086 # one word a package
    (cd "$state/cache/archives" && release_apt "$state" apt-get download $list)
    # The directories that are links on a release with a merged /usr.
    local part
    for part in bin lib lib64 sbin; do mkdir -p "$new/usr/$part" && ln -s "usr/$part" "$new/$part"; done
    for part in "$state"/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$part" | tar -x -C "$new" --no-same-owner --keep-directory-symlink
    done
    rm -rf "$state"
    finish "$new"
    rm -rf "$root"
    mv "$new" "$root"
}

# Gives an unpacked root what the packages' scripts would make.
finish() {
    local root=$1 applet
    mkdir -p "$root"/{dev,etc,proc,root,run/sshd,tmp,var/empty}
    printf '%s\n' root:x:0:0:root:/root:/bin/sh sshd:x:100:65534::/run/sshd:/usr/sbin/nologin \
        nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin >"$root/etc/passwd"
    printf '%s\n' root:x:0: nogroup:x:65534: >"$root/etc/group"
    printf '%s\n' 'root:*:19000:0:99999:7:::' 'sshd:!:19000::::::' >"$root/etc/shadow"
    printf 'passwd: files\ngroup: files\nshadow: files\n' >"$root/etc/nsswitch.conf"
    printf '/bin/sh\n' >"$root/etc/shells"
    for applet in sh cat wc echo head sleep true printf; do ln -sf busybox "$root/bin/$applet"; done
    mknod -m 666 "$root/dev/null" c 1 3
    mknod -m 444 "$root/dev/urandom" c 1 9
    mknod -m 444 "$root/dev/random" c 1 8
    mkdir -p -m 700 "$root/root/.ssh"
    cp "$directory/key.pub" "$root/root/.ssh/authorized_keys"
    # Its version. Older ones print it as an answer to an unknown option.
    { chroot "$root" /usr/sbin/sshd -V 2>&1 || true; } | grep '^OpenSSH_' >"$root/etc/server"
}

# Installs the servers that are written in Python.
python() {
    local venv=$directory/python
    "$venv/bin/python" -c 'import paramiko, asyncssh' 2>/dev/null && return
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check paramiko==5.1.0 asyncssh==2.24.0
}

# Builds the server that is written in Go, with Debian's compiler and x/crypto.
go_server() {
    local new=$directory/.new-go state=$directory/.apt/go part
    local source
    source=$(realpath "$(dirname "${BASH_SOURCE[0]}")/server.go")
    cmp -s "$source" "$directory/go/server.go" && return
    rm -rf "$new"
    mkdir -p "$state"/{state/lists/partial,cache/archives/partial} "$new"
    : >"$state/status"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm main\n' \
        "$(mirror)" >"$state/sources.list"
    release_apt "$state" apt-get update
    (cd "$state/cache/archives" && release_apt "$state" apt-get download golang-1.19-go golang-1.19-src \
        golang-golang-x-crypto-dev golang-golang-x-sys-dev golang-golang-x-term-dev)
    for part in "$state"/cache/archives/*.deb; do dpkg-deb --extract "$part" "$new"; done
    rm -rf "$directory/go"
    mkdir -p "$directory/go"
    GOROOT=$new/usr/lib/go-1.19 GOPATH=$new/usr/share/gocode GOCACHE=$new/cache GO111MODULE=off CGO_ENABLED=0 \
        "$new/usr/lib/go-1.19/bin/go" build -o "$directory/go/server" "$source"
    cp "$source" "$directory/go/server.go"
    rm -rf "$state" "$new"
}

# Runs a step that may fail. The step itself ends at its first error, which it would not within a
# condition.
try() {
    local status
    set +e
    (set -e && "$@")
    status=$?
    set -e
    [ $status = 0 ] || say "$* failed: its servers are not to be had, and are not tested"
}

mkdir -p "$directory"
[ -e "$directory/key.pub" ] || ssh-keygen -q -t ed25519 -N "" -C "" -f "$directory/key"
for name in "${releases[@]}"; do try release "$name"; done
try python
try go_server
