//! The entries of one directory, without a look at them.

use crate::disk::directory_stack::names;
use crate::disk::error::{DiskError, During};
use crate::disk::root::Root;
use crate::tree::path::TreePath;

/// The entries of a directory that a tree can hold, in no order; `None` is the root.
///
/// # Errors
/// It cannot be opened or listed.
pub fn contents(root: &Root, path: Option<&TreePath>) -> Result<Vec<TreePath>, DiskError> {
    let directory = root.open_directory(path)?;
    let names = names(&directory).during("list", path.map_or(b".", |path| path.as_bytes()))?;
    let join = |name: &[u8]| path.map_or_else(|| TreePath::new(name), |path| path.join(name)).ok();
    Ok(names.iter().filter_map(|name| join(name.name.as_bytes())).collect())
}
