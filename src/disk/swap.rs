//! Replacing and removing: only what was seen in a place goes, and nothing else.
//!
//! Between a look at a name and a rename onto it somebody may save the file that stands there, and
//! the rename would take his version away. So the two are exchanged, where the filesystem can, and
//! what came out is looked at: if it is not what was seen, it goes back. What remains: programs
//! that have the old version open and write to it later; a kill between the exchange and the way
//! back; filesystems without exchange, where look and rename are two steps.
//!
//! A removal renames the entry into the state directory, looks at it there, and puts back what is
//! not what was seen. That is one rename more, 9 to 14 µs: 30 to 50 % of a mass deletion. So only
//! the first [`ASIDE_MAX`] removals of a run do it, 0.1 % of 100,000: an edit races with the few
//! deletions of a watch's round or of a sync beside somebody's work. Of the rest an edit within the
//! microseconds between look and removal is lost.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

use crate::disk::error::{DiskError, During, Fault};
use crate::disk::root::{Place, check_unchanged};
use crate::disk::stat::{Identity, Stat};
use crate::tree::path::TreePath;

/// How often what came out is put back: each time somebody may have put another file there
/// meanwhile.
const WAYS_BACK: usize = 8;

/// How many removals of a run move the entry aside first.
pub(crate) const ASIDE_MAX: u32 = 200;

/// Removes what was `seen` in a place by way of the directory `aside`, where it is called `name`.
/// Answers `false`, and has changed nothing, where it cannot be moved there.
///
/// # Errors
/// It is not what was seen ([`DiskError::is_conflict`]), and still there.
pub(crate) fn remove_aside(
    aside: impl AsFd,
    name: &str,
    place: &Place<'_>,
    path: &TreePath,
    seen: &Identity,
) -> Result<bool, DiskError> {
    if renameat_with(place, place.name, &aside, name, RenameFlags::NOREPLACE).is_err() {
        return Ok(false);
    }
    let remove = || unlinkat(&aside, name, AtFlags::empty());
    if identity_in(&aside, name.as_bytes()).is_some_and(|out| is_same(&out, seen)) {
        // Should this fail, the end of a run that succeeds clears it away.
        let _ = remove();
        return Ok(true);
    }
    match renameat_with(&aside, name, place, place.name, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Whoever saved it has saved once more, in its place.
        Err(Errno::EXIST) => {
            let _ = remove();
        }
        // Nobody clears that away.
        Err(_) => {
            let _ = renameat(&aside, name, &aside, format!("{name}.saved"));
        }
    }
    Err(DiskError::new("remove", path.as_bytes(), Fault::Conflict))
}

/// An entry of the state directory that is ready for its place.
pub(crate) struct Ready<'a> {
    pub(crate) name: &'a [u8],
    /// Looked up where a place is replaced, if it is not known.
    pub(crate) identity: Option<Identity>,
}

/// Renames an entry of the directory `from` to a place, if that still holds what was `seen` there.
pub(crate) fn rename_into(
    from: impl AsFd,
    staged: Ready<'_>,
    place: &Place<'_>,
    path: &TreePath,
    verb: &'static str,
    seen: Option<&Identity>,
) -> Result<(), DiskError> {
    let name = staged.name;
    let Some(seen) = seen else {
        return match rename_to_nothing(from, name, place, place.name) {
            Err(Errno::EXIST) => Err(DiskError::new(verb, path.as_bytes(), Fault::Conflict)),
            result => result.during(verb, path.as_bytes()),
        };
    };
    check_unchanged(place, path, verb, Some(seen))?;
    let staged = staged.identity.or_else(|| identity_in(&from, name));
    match renameat_with(&from, name, place, place.name, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            return renameat(from, name, place, place.name).during(verb, path.as_bytes());
        }
        Err(Errno::NOENT) => return Err(DiskError::new(verb, path.as_bytes(), Fault::Conflict)),
        Err(error) => return Err(error).during(verb, path.as_bytes()),
    }
    let mut held = identity_in(&from, name);
    if held.is_some_and(|out| is_same(&out, seen)) {
        // Should this fail, the end of a run that succeeds clears it away.
        let _ = unlinkat(&from, name, AtFlags::empty());
        return Ok(());
    }
    // Each exchange puts back what is held. If it takes out what the one before put in, that was
    // the end of it. Else somebody saved meanwhile, and his version, which is held now, goes back
    // next.
    let mut put = staged;
    for _ in 0..WAYS_BACK {
        let back = renameat_with(&from, name, place, place.name, RenameFlags::EXCHANGE);
        let out = identity_in(&from, name);
        let is_back = out.zip(put).is_some_and(|(out, put)| is_same(&out, &put));
        if back.is_err() || is_back {
            break;
        }
        (put, held) = (held, out);
    }
    Err(DiskError::new(verb, path.as_bytes(), Fault::Conflict))
}

/// Renames `name` in the directory `from` to `new` in the directory `to`, if nothing is there.
pub(crate) fn rename_to_nothing(
    from: impl AsFd,
    name: &[u8],
    to: impl AsFd,
    new: &[u8],
) -> rustix::io::Result<()> {
    // The kernel checks and renames in one step, where the filesystem can.
    match renameat_with(&from, name, &to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        result => return result,
    }
    match statat(&to, new, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => renameat(from, name, to, new),
        Err(error) => Err(error),
    }
}

fn identity_in(directory: impl AsFd, name: &[u8]) -> Option<Identity> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Stat::of(&stat).map(|stat| stat.identity)
}

/// Whether it is the same file with the same content: a new name gives it a new ctime.
fn is_same(one: &Identity, other: &Identity) -> bool {
    Identity { ctime: other.ctime, ..*one } == *other
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::{ASIDE_MAX, remove_aside};
    use crate::disk::root::Root;
    use crate::disk::stage::{Durability, Staging};
    use crate::disk::state::StateDir;
    use crate::disk::testing::{Place, metadata, path};

    /// Looks for a second at most.
    fn comes_true(is_so: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(1);
        is_so() || std::iter::repeat_with(is_so).take_while(|_| Instant::now() < deadline).any(|is_so| is_so)
    }

    /// An editor that saves as fast as it can, by a new file in the place of the old one.
    #[test]
    fn no_save_of_an_editor_is_lost() {
        const ROUNDS: usize = 4000;
        let place = Place::new();
        fs::create_dir(place.at("d")).unwrap();
        fs::write(place.at("d/f"), "0").unwrap();
        let stop = AtomicBool::new(false);
        let (mut replaced, mut conflicts, mut lost) = (0, 0, Vec::new());
        thread::scope(|scope| {
            let (at, new) = (place.at("d/f"), place.at("d/new"));
            let stop = &stop;
            // Saves that neither stay nor are named by what replaced them.
            let editor = scope.spawn(move || {
                let (mut count, mut lost) = (0_u32, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    // Of one length, so that no size tells one save from another.
                    let text = format!("{count:09}");
                    fs::write(&new, &text).unwrap();
                    fs::rename(&new, &at).unwrap();
                    for _ in 0..200 {
                        std::hint::spin_loop();
                    }
                    // Ours may be there for a moment, until it is known what it replaced.
                    let is_kept = || {
                        let there = fs::read_to_string(&at).unwrap();
                        there.trim_start_matches("ours over ").starts_with(&text)
                    };
                    if !comes_true(is_kept) {
                        lost.push((text, fs::read_to_string(&at).unwrap()));
                    }
                }
                lost
            });
            for round in 0..ROUNDS {
                let Some(seen) = place.root.stat(&path("d/f")).unwrap() else { continue };
                let saved = place.root.open_file(&path("d/f"));
                let Ok((file, stat)) = saved else { continue };
                if stat.identity != seen.identity {
                    continue;
                }
                let text = std::io::read_to_string(file).unwrap();
                let (mut staging, _) = Staging::open(&place.root, &path("d/f")).unwrap();
                staging.keep(0).unwrap();
                staging.append(format!("ours over {text} {round}").as_bytes()).unwrap();
                match staging.finish(&place.root, &metadata(), Some(&seen.identity), Durability::Eventually) {
                    Ok(()) => replaced += 1,
                    Err(error) => {
                        assert!(error.is_conflict(), "{error}");
                        conflicts += 1;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            lost = editor.join().unwrap();
        });
        assert!(replaced > 10 && conflicts > 10, "{replaced} replaced, {conflicts} conflicts");
        assert_eq!(lost, [], "{replaced} replaced, {conflicts} conflicts");
    }

    /// An editor that saves as fast as it can a file that is deleted as often.
    #[test]
    fn no_save_of_an_editor_is_removed_unseen() {
        const RUNS: usize = 2000;
        // A single core sees few races.
        const PATIENCE: Duration = Duration::from_secs(10);
        let place = Place::new();
        place.root.lock().unwrap();
        fs::write(place.at("f"), "000000000").unwrap();
        let (stop, doomed) = (AtomicBool::new(false), Mutex::new(HashSet::new()));
        let (mut removed, mut conflicts, mut lost) = (0, 0, Vec::new());
        thread::scope(|scope| {
            let (at, new) = (place.at("f"), place.at("new"));
            let (stop, doomed) = (&stop, &doomed);
            let editor = scope.spawn(move || {
                let (mut count, mut lost) = (0_u32, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    let text = format!("{count:09}");
                    fs::write(&new, &text).unwrap();
                    fs::rename(&new, &at).unwrap();
                    let is_there = || fs::read_to_string(&at).is_ok_and(|there| there == text);
                    let is_kept = || is_there() || doomed.lock().unwrap().contains(&text);
                    if !comes_true(is_kept) {
                        lost.push(text);
                    }
                }
                lost
            });
            let start = Instant::now();
            while removed + conflicts < RUNS && start.elapsed() < PATIENCE {
                // Each run has its own.
                let root = Root::open(place.root.path()).unwrap();
                let Ok((file, stat)) = root.open_file(&path("f")) else { continue };
                let text = std::io::read_to_string(file).unwrap();
                doomed.lock().unwrap().insert(text);
                match root.remove_file(&path("f"), Some(&stat.identity)) {
                    Ok(()) => removed += 1,
                    Err(error) => {
                        assert!(error.is_conflict() || error.is_not_found(), "{error}");
                        conflicts += 1;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            lost = editor.join().unwrap();
        });
        assert_eq!(lost, [""; 0], "{removed} removed, {conflicts} conflicts");
        assert!(removed > 10, "{removed} removed, {conflicts} conflicts");
        let left = fs::read_dir(place.at(".ksync")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["lock"]);
    }

    #[test]
    fn after_many_removals_the_rest_goes_without_a_detour() {
        let place = Place::new();
        place.root.lock().unwrap();
        for number in 0..ASIDE_MAX + 50 {
            fs::write(place.at("f"), format!("{number}")).unwrap();
            let seen = place.root.stat(&path("f")).unwrap().unwrap().identity;
            place.root.remove_file(&path("f"), Some(&seen)).unwrap();
            assert!(!place.at("f").exists());
        }
    }

    #[test]
    fn what_is_no_longer_what_was_seen_is_put_back_whatever_it_is() {
        let place = Place::new();
        place.root.lock().unwrap();
        fs::write(place.at("f"), "seen").unwrap();
        let seen = place.root.stat(&path("f")).unwrap().unwrap().identity;
        fs::remove_file(place.at("f")).unwrap();
        let state = StateDir::create(&place.root).unwrap();
        let remove = || {
            let at = path("f");
            let there = place.root.place(&at).unwrap();
            remove_aside(&state, "aside", &there, &at, &seen)
        };
        assert!(!remove().unwrap(), "nothing is there");
        fs::create_dir_all(place.at("f/below")).unwrap();
        assert!(remove().unwrap_err().is_conflict() && place.at("f/below").is_dir());
        fs::remove_dir_all(place.at("f")).unwrap();
        symlink("nowhere", place.at("f")).unwrap();
        assert!(remove().unwrap_err().is_conflict() && place.at("f").is_symlink());
        assert!(!place.at(".ksync/aside").exists());
    }

    #[test]
    fn nothing_stays_behind_of_what_was_replaced() {
        let place = Place::new();
        fs::write(place.at("f"), "old").unwrap();
        let seen = place.root.stat(&path("f")).unwrap().unwrap().identity;
        let (mut staging, _) = Staging::open(&place.root, &path("f")).unwrap();
        staging.append(b"new").unwrap();
        staging.finish(&place.root, &metadata(), Some(&seen), Durability::Eventually).unwrap();
        assert_eq!(fs::read(place.at("f")).unwrap(), b"new");
        assert_eq!(fs::read_dir(place.at(".ksync")).unwrap().count(), 0);
    }
}
