//! Hosts that the configuration names literally.

use std::iter;
use std::path::{Path, PathBuf};

use super::words::{arguments, included, take_word};
use super::{INCLUDE_DEPTH_MAX, anchored};

/// Reports if a Host or Match line names `host` literally, whatever else that line demands.
/// Unreadable files name nothing.
#[must_use]
pub fn names(host: &str, home: &Path, files: &[PathBuf]) -> bool {
    let (mut by_host, mut by_match) = (Vec::new(), Vec::new());
    files.iter().for_each(|file| read(home, file, 0, &mut by_host, &mut by_match));
    by_host.iter().chain(&by_match).any(|name| name == host)
}

/// All hosts that Host lines name literally, in their order.
#[must_use]
pub fn hosts(home: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut hosts = Vec::new();
    files.iter().for_each(|file| read(home, file, 0, &mut hosts, &mut Vec::new()));
    hosts.retain(|host| !host.contains(['*', '?', '!']));
    hosts
}

/// Collects the words of Host lines, and those of the `host` criteria of Match lines.
fn read(home: &Path, file: &Path, depth: usize, by_host: &mut Vec<String>, by_match: &mut Vec<String>) {
    let Ok(bytes) = std::fs::read(file) else { return };
    for line in String::from_utf8_lossy(&bytes).lines() {
        let mut rest = line.trim_start();
        let keyword = take_word(&mut rest).unwrap_or_default().to_ascii_lowercase();
        match keyword.as_str() {
            "host" => by_host.extend(arguments(rest).unwrap_or_default()),
            "match" => {
                let mut words = iter::from_fn(|| take_word(&mut rest).ok().filter(|word| !word.is_empty()));
                while let (Some(criterion), Some(list)) = (words.next(), words.next()) {
                    if matches!(criterion.to_ascii_lowercase().as_str(), "host" | "originalhost") {
                        by_match.extend(list.split(',').map(str::to_owned));
                    }
                }
            }
            "include" if depth < INCLUDE_DEPTH_MAX => {
                for value in arguments(rest).unwrap_or_default() {
                    for file in included(&anchored(&value, home, file)) {
                        read(home, &file, depth + 1, by_host, by_match);
                    }
                }
            }
            _ => {}
        }
    }
}
