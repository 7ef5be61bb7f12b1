//! The calls of the API, and what their handlers learn of a request.

use serde::{Deserialize, Serialize};

use super::query;

/// The calls, with their names in `/_sandbox/faults` and `/_sandbox/calls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Call {
    Create,
    List,
    Get,
    Delete,
    Patch,
    PoolCreate,
    PoolList,
    PoolGet,
    PoolDelete,
    Acquire,
    Release,
    Exec,
    Spawn,
    Status,
    Stdin,
    Kill,
    Resize,
    Stream,
    WriteFile,
    ReadFile,
    ListFiles,
    FileInfo,
    CreateDirectory,
    DeleteFile,
    DeleteDirectory,
    Move,
    SetFilePermissions,
    Upload,
    UploadZip,
    DownloadDirZip,
    Batch,
    /// The WebSocket of `cdp_ws_url`.
    Cdp,
    /// A connection to a VM's SSH port.
    Bridge,
}

impl Call {
    /// Reports if the call is a request to the API, and not another kind of connection.
    pub(super) const fn is_request(self) -> bool {
        !matches!(self, Self::Cdp | Self::Bridge)
    }
}

/// A request without its body.
pub(super) struct Asked<'a> {
    /// The id in the path, or an empty string.
    pub(super) id: &'a str,
    /// Id of a process.
    pub(super) process_id: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) content_type: &'a str,
}

impl Asked<'_> {
    /// A value of the query.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        query::value(self.query, name)
    }
}
