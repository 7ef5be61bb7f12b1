#!/usr/bin/env bash
# Fills a directory with rsync's own test suite, built and ready to run: fetch.sh DIRECTORY
#
# The suite is under the GPL, so it is no part of this repository. It comes from Debian's mirror, in
# one version with a known hash. A few small programs of rsync's source are built for it. The tools
# for ACLs and attributes, and the headers, come from packages that are unpacked beside it: nothing
# is installed.
set -euo pipefail

directory=$(realpath -m "$1")
version=3.5.0
hash=d5de0c8a95b00e0f50038ba04526bcbd5fe4f3ff97b4035bb97b084398bfbb60
archives=(
    "http://deb.debian.org/debian/pool/main/r/rsync/rsync_$version%2bds1.orig.tar.xz"
    "http://deb.debian.org/debian-security/pool/updates/main/r/rsync/rsync_$version%2bds1.orig.tar.xz"
)
packages=(libpopt-dev libacl1-dev acl attr)
programs=(tls trimslash t_unsafe t_chmod_secure t_secure_relpath wildtest getgroups getfsdev)

# The marker names all that the result depends on.
marker="$version $hash ${packages[*]} ${programs[*]}"
[ "$(cat "$directory/ready" 2>/dev/null)" != "$marker" ] || exit 0

new=$directory.new
rm -rf "$new"
mkdir -p "$new"/{debs,tools,source}
trap 'rm -rf "$new"' EXIT

for archive in "${archives[@]}"; do
    curl --fail --silent --show-error --location --max-time 120 --output "$new/rsync.tar.xz" "$archive" || continue
    if echo "$hash  $new/rsync.tar.xz" | sha256sum --check --status; then break; fi
    printf '!! %s has another content\n' "$archive" >&2
    rm -f "$new/rsync.tar.xz"
done
tar -xf "$new/rsync.tar.xz" -C "$new/source" --strip-components 1

(
    cd "$new/debs"
    set -- apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}"
    "$@" 2>/dev/null || { apt-get -qq update && "$@"; }
    for package in *.deb; do dpkg-deb --extract "$package" "$new/tools"; done
)

(
    cd "$new/source"
    # Debian's archive lacks the bundled zlib and popt; configure asks for their directories.
    mkdir -p zlib popt
    touch zlib/dummy.in popt/dummy.in
    export CPPFLAGS="-I$new/tools/usr/include" LDFLAGS="-L$new/tools/usr/lib/$(uname -m)-linux-gnu"
    {
        ./configure --disable-openssl --disable-xxhash --disable-zstd --disable-lz4 --disable-md2man
        make "${programs[@]}"
    } >"$new/build.log" 2>&1 || { tail -n 20 "$new/build.log" >&2; exit 1; }
)
printf '%s\n' "$marker" >"$new/ready"
rm -rf "$directory"
mv "$new" "$directory"
