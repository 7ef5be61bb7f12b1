//! The calls of the API, their routes, and what their handlers learn of a request.

use hyper::Method;
use hyper::header::HeaderMap;
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
    PoolPatch,
    PoolDelete,
    PoolFlush,
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
    WatchStart,
    WatchEvents,
    WatchStop,
    LogStream,
    Curl,
    CurlRaw,
    Batch,
    ClickMouse,
    MoveMouse,
    DragMouse,
    TypeText,
    PressKey,
    Scroll,
    SetCursor,
    MousePosition,
    Screenshot,
    ReadClipboard,
    WriteClipboard,
    /// The WebSockets of `cdp_ws_url` and `webdriver_ws_url`.
    Cdp,
    /// `/json/version`: the HTTP side of CDP.
    CdpVersion,
    /// A connection to a VM's SSH port.
    Bridge,
}

/// The routes that are served. An asterisk stands for any method, and for an id or a name.
const ROUTES: &[(&str, &str, Call)] = &[
    ("GET", "browser/cdp", Call::Cdp),
    ("GET", "browser/webdriver", Call::Cdp),
    ("GET", "json/version", Call::CdpVersion),
    ("POST", "browsers", Call::Create),
    ("GET", "browsers", Call::List),
    ("GET", "browsers/*", Call::Get),
    ("DELETE", "browsers/*", Call::Delete),
    ("PATCH", "browsers/*", Call::Patch),
    ("POST", "browser_pools", Call::PoolCreate),
    ("GET", "browser_pools", Call::PoolList),
    ("GET", "browser_pools/*", Call::PoolGet),
    ("PATCH", "browser_pools/*", Call::PoolPatch),
    ("DELETE", "browser_pools/*", Call::PoolDelete),
    ("POST", "browser_pools/*/flush", Call::PoolFlush),
    ("POST", "browser_pools/*/acquire", Call::Acquire),
    ("POST", "browser_pools/*/release", Call::Release),
    ("POST", "browsers/*/process/exec", Call::Exec),
    ("POST", "browsers/*/process/spawn", Call::Spawn),
    ("GET", "browsers/*/process/*/status", Call::Status),
    ("POST", "browsers/*/process/*/stdin", Call::Stdin),
    ("POST", "browsers/*/process/*/kill", Call::Kill),
    ("POST", "browsers/*/process/*/resize", Call::Resize),
    ("GET", "browsers/*/process/*/stdout/stream", Call::Stream),
    ("PUT", "browsers/*/fs/write_file", Call::WriteFile),
    ("GET", "browsers/*/fs/read_file", Call::ReadFile),
    ("GET", "browsers/*/fs/list_files", Call::ListFiles),
    ("GET", "browsers/*/fs/file_info", Call::FileInfo),
    ("PUT", "browsers/*/fs/create_directory", Call::CreateDirectory),
    ("PUT", "browsers/*/fs/delete_file", Call::DeleteFile),
    ("PUT", "browsers/*/fs/delete_directory", Call::DeleteDirectory),
    ("PUT", "browsers/*/fs/move", Call::Move),
    ("PUT", "browsers/*/fs/set_file_permissions", Call::SetFilePermissions),
    ("POST", "browsers/*/fs/upload", Call::Upload),
    ("POST", "browsers/*/fs/upload_zip", Call::UploadZip),
    ("GET", "browsers/*/fs/download_dir_zip", Call::DownloadDirZip),
    ("POST", "browsers/*/fs/watch", Call::WatchStart),
    ("GET", "browsers/*/fs/watch/*/events", Call::WatchEvents),
    ("DELETE", "browsers/*/fs/watch/*", Call::WatchStop),
    ("GET", "browsers/*/logs/stream", Call::LogStream),
    ("POST", "browsers/*/curl", Call::Curl),
    ("*", "browsers/*/curl/raw", Call::CurlRaw),
    ("POST", "browsers/*/computer/batch", Call::Batch),
    ("POST", "browsers/*/computer/click_mouse", Call::ClickMouse),
    ("POST", "browsers/*/computer/move_mouse", Call::MoveMouse),
    ("POST", "browsers/*/computer/drag_mouse", Call::DragMouse),
    ("POST", "browsers/*/computer/type", Call::TypeText),
    ("POST", "browsers/*/computer/press_key", Call::PressKey),
    ("POST", "browsers/*/computer/scroll", Call::Scroll),
    ("POST", "browsers/*/computer/cursor", Call::SetCursor),
    ("POST", "browsers/*/computer/get_mouse_position", Call::MousePosition),
    ("POST", "browsers/*/computer/screenshot", Call::Screenshot),
    ("POST", "browsers/*/computer/clipboard/read", Call::ReadClipboard),
    ("POST", "browsers/*/computer/clipboard/write", Call::WriteClipboard),
];

/// Parts of the platform's API that are not served, with everything below them.
const UNSERVED: &[&str] = &[
    "apps",
    "audit-logs",
    "auth",
    "browsers/*/extensions",
    "browsers/*/playwright",
    "browsers/*/repl",
    "browsers/*/replays",
    "browsers/*/telemetry",
    "browsers/*/webmcp",
    "config-registry",
    "credentials",
    "deployments",
    "extensions",
    "invocations",
    "org",
    "profiles",
    "proxies",
    "search",
    "telemetry",
    "vault-provider-configs",
    "vaults",
];

/// Subresources that a VM serves itself, below its `base_url`.
const IN_VM: &[&str] =
    &["computer", "curl", "fs", "logs", "playwright", "process", "repl", "telemetry", "webmcp"];

impl Call {
    /// Finds the call of a path, and the ids in the path.
    pub(super) fn of<'a>(method: &str, path: &[&'a str]) -> Option<(Call, Vec<&'a str>)> {
        let mut routes = ROUTES.iter().filter(|(name, ..)| [method, "*"].contains(name));
        routes.find_map(|(_, route, call)| {
            let ids = matched(route, path).filter(|_| route.split('/').count() == path.len())?;
            Some((*call, ids))
        })
    }

    /// Reports if the call is a request to the API, and not another kind of connection.
    pub(super) const fn is_request(self) -> bool {
        !matches!(self, Self::Cdp | Self::CdpVersion | Self::Bridge)
    }
}

/// Reports if the platform has the path, and the emulator does not serve it.
pub(super) fn is_unserved(path: &[&str]) -> bool {
    UNSERVED.iter().any(|part| matched(part, path).is_some())
}

/// Reports if a VM serves this path below its `base_url`.
pub(super) fn is_in_vm(path: &[&str]) -> bool {
    path.first().is_some_and(|first| IN_VM.contains(first))
}

/// The ids in a path that begins as `route` does.
fn matched<'a>(route: &str, path: &[&'a str]) -> Option<Vec<&'a str>> {
    let mut ids = Vec::new();
    let mut segments = path.iter();
    for expected in route.split('/') {
        match *segments.next()? {
            id if expected == "*" => ids.push(id),
            segment if segment == expected => {}
            _ => return None,
        }
    }
    Some(ids)
}

/// A request without its body.
pub(super) struct Asked<'a> {
    /// The id or name in the path, or an empty string.
    pub(super) id: &'a str,
    /// Id of a process or a watch in the session.
    pub(super) inner_id: &'a str,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) query: Option<&'a str>,
    pub(super) content_type: &'a str,
}

impl Asked<'_> {
    /// A value of the query.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        query::value(self.query, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_call_and_a_longer_one_has_none() {
        let call = |method, path: &str| {
            let path: Vec<&str> = path.split('/').collect();
            Call::of(method, &path).map(|(call, ids)| (call, ids.join(" ")))
        };
        let found = |call, ids: &str| Some((call, ids.to_owned()));
        assert_eq!(call("GET", "browsers"), found(Call::List, ""));
        assert_eq!(call("POST", "browsers/a/fs/watch"), found(Call::WatchStart, "a"));
        assert_eq!(call("GET", "browsers/a/fs/watch/b/events"), found(Call::WatchEvents, "a b"));
        assert_eq!(call("GET", "browsers/a/fs/watch/b/events/c"), None);
        assert_eq!(call("PUT", "browsers"), None);
        for (path, expected) in [("vaults/a/items", true), ("browsers/a/repl", true), ("vault", false)] {
            assert_eq!(is_unserved(&path.split('/').collect::<Vec<_>>()), expected, "{path}");
        }
    }
}
