//! `fs/…`: files of the VM.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::answer::{Answer, PlatformError, empty, json_answer, read_json, set, streamed};
use super::call::{Asked, Call};
use super::rfc3339;
use super::session::Session;

/// Bytes read of a file at once.
const READ_SIZE: usize = 64 * 1024;

#[derive(Debug, Deserialize)]
struct Target {
    #[serde(default)]
    path: String,
    mode: Option<String>,
    owner: Option<String>,
    group: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Move {
    #[serde(default)]
    src_path: String,
    #[serde(default)]
    dest_path: String,
}

/// Answers a call about files.
pub(super) async fn answer(
    session: &Session,
    call: Call,
    asked: &Asked<'_>,
    body: Incoming,
) -> Result<Answer, PlatformError> {
    match call {
        Call::WriteFile => write(session, asked, body).await,
        Call::ReadFile => read(session, &path_of(asked)?).await,
        Call::ListFiles => list(session, &path_of(asked)?),
        Call::FileInfo => info(session, &path_of(asked)?),
        Call::CreateDirectory => create_directory(session, &target(body).await?),
        Call::DeleteFile => {
            let target = target(body).await?;
            // As in Go, this also deletes an empty directory.
            let removed = session
                .root()
                .place(&target.path)
                .and_then(|place| fs::remove_file(place.path()).or_else(|_| fs::remove_dir(place.path())));
            done(removed, "file not found", "failed to delete file")
        }
        Call::DeleteDirectory => delete_directory(session, &target(body).await?),
        Call::Move => {
            let Move { src_path, dest_path } = read_json(body).await?;
            if src_path.is_empty() || dest_path.is_empty() {
                return Err(in_vm(StatusCode::BAD_REQUEST, "src_path and dest_path required"));
            }
            let (src_path, dest_path) = (absolute(src_path)?, absolute(dest_path)?);
            let root = session.root();
            let moved = root.place(&src_path).and_then(|from| {
                let to = root.place(&dest_path)?;
                fs::rename(from.path(), to.path())
            });
            done(moved, "source not found", "failed to move path")
        }
        Call::SetFilePermissions => {
            let target = target(body).await?;
            let mode = mode_of(target.mode.as_deref())
                .ok_or_else(|| in_vm(StatusCode::BAD_REQUEST, "invalid mode"))?;
            let set = session.root().find(&target.path).and_then(|entry| {
                if session.machine.is_world() {
                    // In a user namespace there is one user, so this may fail. A mode outlives no
                    // change of the owner.
                    let _ =
                        chown(entry.path(), id_of(target.owner.as_deref()), id_of(target.group.as_deref()));
                }
                fs::set_permissions(entry.path(), Permissions::from_mode(mode))
            });
            done(set, "path not found", "failed to chmod")
        }
        _ => Err(PlatformError::not_found("route")),
    }
}

/// Creates the parents and writes the file in place, so a concurrent reader sees it grow.
async fn write(session: &Session, asked: &Asked<'_>, mut body: Incoming) -> Result<Answer, PlatformError> {
    let path = path_of(asked)?;
    let mode = mode_of(asked.value("mode").as_deref()).unwrap_or(0o644);
    let root = session.root();
    root.make_parents(&path).map_err(|_| in_vm(StatusCode::BAD_REQUEST, "unable to create directories"))?;
    // Opening fails for the program of a running process, with the system's own error.
    let opened = root.open(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC, mode);
    let file = opened.map_err(|_| in_vm(StatusCode::INTERNAL_SERVER_ERROR, "unable to create file"))?;
    let mut file = tokio::fs::File::from_std(file);
    let failed = |_| in_vm(StatusCode::INTERNAL_SERVER_ERROR, "failed to write data");
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| in_vm(StatusCode::BAD_REQUEST, error.to_string()))?;
        if let Ok(bytes) = frame.into_data() {
            file.write_all(&bytes).await.map_err(failed)?;
        }
    }
    file.flush().await.map_err(failed)?;
    Ok(empty(StatusCode::CREATED))
}

async fn read(session: &Session, path: &str) -> Result<Answer, PlatformError> {
    let file = session.root().open(path, OFlags::RDONLY, 0);
    let file = file
        .map_err(|error| fault(&error, "file not found", StatusCode::BAD_REQUEST, "unable to open file"))?;
    let file = tokio::fs::File::from_std(file);
    let metadata = file.metadata().await.map_err(PlatformError::internal)?;
    if metadata.is_dir() {
        return Err(in_vm(StatusCode::BAD_REQUEST, "unable to open file"));
    }
    let pieces = futures_util::stream::unfold(file, |mut file| async {
        let mut buffer = bytes::BytesMut::with_capacity(READ_SIZE);
        match file.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((io::Result::<Bytes>::Ok(buffer.freeze()), file)),
            Err(error) => Some((Err(error), file)),
        }
    });
    let mut answer = streamed("application/octet-stream", pieces);
    set(&mut answer, CONTENT_LENGTH, &metadata.len().to_string());
    Ok(answer)
}

/// Lists the entries by name; the answer is `null`, not `[]`, for an empty directory.
fn list(session: &Session, path: &str) -> Result<Answer, PlatformError> {
    let failed = |error: io::Error| {
        fault(&error, "directory not found", StatusCode::INTERNAL_SERVER_ERROR, "failed to read directory")
    };
    let mut entries = Vec::new();
    for (name, metadata) in session.root().list(path).map_err(failed)? {
        let name = name.to_string_lossy().into_owned();
        let path = format!("{}/{name}", path.trim_end_matches('/'));
        entries.push(describe(&name, &path, &metadata));
    }
    let value = if entries.is_empty() { Value::Null } else { Value::Array(entries) };
    Ok(json_answer(StatusCode::OK, &value))
}

fn info(session: &Session, path: &str) -> Result<Answer, PlatformError> {
    let metadata = session.root().find(path).and_then(|entry| entry.metadata()).map_err(|error| {
        fault(&error, "path not found", StatusCode::INTERNAL_SERVER_ERROR, "failed to stat path")
    })?;
    let name = Path::new(path).file_name().map_or("/".into(), |name| name.to_string_lossy());
    Ok(json_answer(StatusCode::OK, &describe(&name, path, &metadata)))
}

fn create_directory(session: &Session, target: &Target) -> Result<Answer, PlatformError> {
    let mode = mode_of(target.mode.as_deref()).unwrap_or(0o755);
    session
        .root()
        .make_directory(&target.path, mode)
        .map_err(|_| in_vm(StatusCode::INTERNAL_SERVER_ERROR, "failed to create directory"))?;
    Ok(empty(StatusCode::CREATED))
}

/// Deletes the directory with its content. A missing directory counts as deleted, and a file as a
/// directory.
fn delete_directory(session: &Session, target: &Target) -> Result<Answer, PlatformError> {
    // The root has no place in a directory, so it is not deleted.
    let removed = session.root().place(&target.path).and_then(|place| {
        if fs::symlink_metadata(place.path())?.is_dir() {
            fs::remove_dir_all(place.path())
        } else {
            fs::remove_file(place.path())
        }
    });
    let removed = match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    done(removed, "directory not found", "failed to delete directory")
}

/// The API's description of an entry.
fn describe(name: &str, path: &str, metadata: &Metadata) -> Value {
    json!({
        "name": name,
        "path": path,
        "is_dir": metadata.is_dir(),
        "size_bytes": metadata.len(),
        "mod_time": rfc3339::format(metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)),
        "mode": letters(metadata),
    })
}

/// Formats a mode as Go does: the letters of the kinds and special bits, or a dash, then nine
/// letters.
fn letters(metadata: &Metadata) -> String {
    let (kind, mode) = (metadata.file_type(), metadata.permissions().mode());
    let is_device = kind.is_block_device() || kind.is_char_device();
    let marks = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'L'),
        (is_device, 'D'),
        (kind.is_fifo(), 'p'),
        (kind.is_socket(), 'S'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (kind.is_char_device(), 'c'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = marks.iter().filter(|(is_set, _)| *is_set).map(|(_, letter)| *letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    let bits = "rwxrwxrwx".chars().enumerate();
    text.extend(bits.map(|(index, letter)| if mode & (0o400 >> index) != 0 { letter } else { '-' }));
    text
}

async fn target(body: Incoming) -> Result<Target, PlatformError> {
    let target: Target = read_json(body).await?;
    Ok(Target { path: absolute(target.path)?, ..target })
}

/// The path parameter of a call.
pub(super) fn path_of(asked: &Asked<'_>) -> Result<String, PlatformError> {
    absolute(asked.value("path").unwrap_or_default())
}

/// Checks that a path is absolute.
///
/// # Errors
/// 400 if it is empty or relative.
pub(super) fn absolute(path: String) -> Result<String, PlatformError> {
    match path.chars().next() {
        None => Err(in_vm(StatusCode::BAD_REQUEST, "path cannot be empty")),
        Some('/') => Ok(path),
        Some(_) => Err(in_vm(StatusCode::BAD_REQUEST, "path must be absolute")),
    }
}

/// Number of a user or group of a VM.
fn id_of(name: Option<&str>) -> Option<u32> {
    match name? {
        "root" => Some(0),
        "kernel" => Some(1000),
        other => other.parse().ok(),
    }
}

fn mode_of(text: Option<&str>) -> Option<u32> {
    u32::from_str_radix(text?, 8).ok().map(|mode| mode & 0o7777)
}

fn done(result: io::Result<()>, missing: &str, otherwise: &str) -> Result<Answer, PlatformError> {
    match result {
        Ok(()) => Ok(empty(StatusCode::OK)),
        Err(error) => Err(fault(&error, missing, StatusCode::INTERNAL_SERVER_ERROR, otherwise)),
    }
}

/// 404 for a missing entry, and `status` for all other errors.
fn fault(error: &io::Error, missing: &str, status: StatusCode, otherwise: &str) -> PlatformError {
    if error.kind() == io::ErrorKind::NotFound {
        in_vm(StatusCode::NOT_FOUND, missing)
    } else {
        in_vm(status, otherwise)
    }
}

fn in_vm(status: StatusCode, message: impl Into<String>) -> PlatformError {
    PlatformError::in_vm(status, message)
}
