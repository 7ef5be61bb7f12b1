//! Differences between a VM's files and this machine's: users, host keys, programs.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::chown;
use std::path::Path;

use rustix::fs::OFlags;

use crate::process::PATH;
use crate::rooted::Root;

/// Programs that no VM has.
pub(crate) const ABSENT: [&str; 6] = ["rsync", "zstd", "zstdcat", "zstdmt", "unzstd", "rclone"];

/// User and group id of `kernel`.
pub(super) const KERNEL_ID: &str = "1000";

/// Directories of every VM, with their modes.
const DIRECTORIES: [(&str, u32); 2] = [("root/.ssh", 0o700), ("home/kernel/Downloads", 0o755)];

/// Changes the files of a new world to those of a VM.
pub(super) fn furnish(root: &Path, has_users: bool) -> io::Result<()> {
    let root = Root::new(root.to_owned());
    for (path, mode) in DIRECTORIES {
        root.make_directory(path, mode)?;
    }
    if has_users {
        for path in ["home/kernel", "home/kernel/Downloads"] {
            chown(root.find(path)?.path(), Some(1000), Some(1000))?;
        }
    }
    let bash = if root.find("bin/bash").is_ok() { "/bin/bash" } else { "/bin/sh" };
    let users = [
        format!("root:x:0:0:root:/root:{bash}"),
        format!("kernel:x:{KERNEL_ID}:{KERNEL_ID}::/home/kernel:{bash}"),
    ];
    change(&root, "etc/passwd", &users)?;
    change(&root, "etc/group", &["root:x:0:".to_owned(), format!("kernel:x:{KERNEL_ID}:")])?;
    // This machine's own keys are no keys of the VM.
    for (name, _) in root.list("etc/ssh").unwrap_or_default() {
        if name.to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(root.place(Path::new("etc/ssh").join(name))?.path())?;
        }
    }
    for directory in std::env::split_paths(PATH).filter(|directory| !directory.is_symlink()) {
        for name in ABSENT {
            let removed = root.place(directory.join(name)).and_then(|place| fs::remove_file(place.path()));
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Replaces the lines of a file that have the name or the number of one of `lines`.
fn change(root: &Root, path: &str, lines: &[String]) -> io::Result<()> {
    let mut text = String::new();
    root.open(path, OFlags::RDONLY, 0)?.read_to_string(&mut text)?;
    let wanted = changed(&text, lines);
    if wanted != text {
        // In a user namespace, only a new file can be written.
        fs::remove_file(root.place(path)?.path())?;
        root.write(path, wanted.as_bytes(), 0o644)?;
    }
    Ok(())
}

fn changed(text: &str, lines: &[String]) -> String {
    let key = |line: &str, at: usize| line.split(':').nth(at).map(str::to_owned);
    let is_replaced =
        |line: &str| lines.iter().any(|new| [0, 2].iter().any(|at| key(line, *at) == key(new, *at)));
    let others = text.lines().filter(|line| !is_replaced(line));
    lines.iter().map(String::as_str).chain(others).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_of_this_machine_gives_way_to_one_of_the_vm() {
        let lines = ["root:x:0:0:root:/root:/bin/bash", "kernel:x:1000:1000::/home/kernel:/bin/bash"];
        let lines = lines.map(str::to_owned);
        let text = "root:x:0:0:Root:/root:/bin/zsh\nme:x:1000:1000::/home/me:/bin/zsh\nbin:x:1:1::/:\n";
        let wanted = format!("{}\n{}\nbin:x:1:1::/:\n", lines[0], lines[1]);
        assert_eq!(changed(text, &lines), wanted);
        assert_eq!(changed(&wanted, &lines), wanted);
    }
}
