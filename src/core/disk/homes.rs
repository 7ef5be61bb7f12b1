//! Home directories: of this process's user, and of this machine's users.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::process::geteuid;

use crate::tree::path::escape;

/// Maximum length of the list of users, in bytes.
const USERS_BYTES_MAX: u64 = 4 << 20;

/// Expands a path that was typed for this machine. `~` and `~/…` are the home directory. An empty
/// path is the working directory, which is the home where sshd starts the agent.
#[must_use]
pub fn expand_home(path: &[u8]) -> PathBuf {
    let below_home = path.strip_prefix(b"~").filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
    let home = below_home.zip(home());
    home.map_or_else(
        || PathBuf::from(OsStr::from_bytes(if path.is_empty() { b"." } else { path })),
        |(rest, home)| {
            // `join` with an absolute path would replace the home.
            let below = rest.iter().position(|&byte| byte != b'/').and_then(|at| rest.get(at..));
            home.join(OsStr::from_bytes(below.unwrap_or_default()))
        },
    )
}

/// The home of this process's user. Without `HOME` the standard library asks glibc, which adds 50
/// kB to the statically linked agent; so this function reads the list of users.
#[must_use]
pub fn home() -> Option<PathBuf> {
    let named = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    named.or_else(|| {
        let own = geteuid().as_raw();
        homes(&users()).into_iter().find_map(|(user, home)| (user == own).then_some(home))
    })
}

/// This process's user, for a message: `nobody (uid 65534)`.
pub(crate) fn user() -> String {
    let own = geteuid().as_raw();
    let users = users();
    let name = users.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next()?;
        let user: u32 = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        (user == own).then_some(name)
    });
    name.map_or_else(|| format!("uid {own}"), |name| format!("{} (uid {own})", escape(name)))
}

/// The content of this machine's list of users.
pub(crate) fn users() -> Vec<u8> {
    let mut text = Vec::new();
    let read =
        fs::File::open("/etc/passwd").and_then(|file| file.take(USERS_BYTES_MAX).read_to_end(&mut text));
    if read.is_ok() { text } else { Vec::new() }
}

/// The users of such a list with their homes.
pub(crate) fn homes(users: &[u8]) -> Vec<(u32, PathBuf)> {
    let home = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b':').skip(2);
        let user = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let home = fields.nth(2)?;
        home.starts_with(b"/").then(|| (user, PathBuf::from(OsStr::from_bytes(home))))
    };
    users.split(|&byte| byte == b'\n').filter_map(home).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_alone_or_before_a_slash_is_the_home() {
        let home = home().unwrap();
        for (path, expanded) in [("~", home.clone()), ("~/x/y", home.join("x/y")), ("~//x", home.join("x"))] {
            assert_eq!(expand_home(path.as_bytes()), expanded, "{path}");
        }
        for (path, expanded) in [("", "."), ("~me/x", "~me/x"), ("a/~", "a/~"), ("/a", "/a")] {
            assert_eq!(expand_home(path.as_bytes()), PathBuf::from(expanded), "{path}");
        }
    }

    #[test]
    fn homes_are_read_from_the_list_of_users() {
        let users = b"root:x:0:0:root:/root:/bin/sh\nbad\nme:x:1:1::/srv/me:/bin/sh\nno:x:2:2:::/bin/sh\n";
        assert_eq!(homes(users), [(0, PathBuf::from("/root")), (1, PathBuf::from("/srv/me"))]);
    }
}
