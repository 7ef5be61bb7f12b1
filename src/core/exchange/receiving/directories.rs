//! `MadeDirectories`: the directory made for each entry, so that no other directory gets its mode.

use std::sync::{Mutex, PoisonError};

use crate::disk::stat::Inode;

/// The directories that this run made, by id. They are made in path order, so ids ascend.
#[derive(Debug, Default)]
pub(super) struct MadeDirectories(Mutex<Vec<(u32, Inode)>>);

impl MadeDirectories {
    pub(super) fn add(&self, id: u32, inode: Inode) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((id, inode));
    }

    pub(super) fn get(&self, id: u32) -> Option<Inode> {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = made.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        made.get(index).map(|(_, inode)| *inode)
    }
}
