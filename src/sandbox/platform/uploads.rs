//! `fs/upload`, `fs/upload_zip`, `fs/download_dir_zip`: many files in one call.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;

use super::answer::{Answer, PlatformError, bytes_answer, empty, read_body};
use super::archive::{self, Entry};
use super::call::Asked;
use super::files::path_of;
use super::multipart::{self, Field};
use super::session::Session;
use crate::rooted::Root;

/// Largest body in bytes: enough for tests, and bounded.
const UPLOAD_MAX: usize = 256 << 20;

/// Most bytes of an unpacked archive.
const UNPACKED_MAX: u64 = 256 << 20;

/// Default mode of a file.
const MODE: u32 = 0o644;

/// `POST fs/upload`: pairs of `files[N][file]` and `files[N][dest_path]`.
pub(super) async fn upload(
    session: &Session,
    asked: &Asked<'_>,
    body: Incoming,
) -> Result<Answer, PlatformError> {
    let body = read_body(body, UPLOAD_MAX).await?;
    let mut pairs: BTreeMap<&str, [Option<&[u8]>; 2]> = BTreeMap::new();
    let fields = form(asked, body).await?;
    for Field { name, content } in &fields {
        let (number, what) = element(name).ok_or_else(|| bad_request("invalid form field"))?;
        let [file, dest_path] = pairs.entry(number).or_default();
        match what {
            "file" => *file = Some(content),
            "dest_path" => *dest_path = Some(content),
            _ => return Err(bad_request("invalid form field")),
        }
    }
    // Check all pairs before the first write.
    let pairs = pairs.into_values().map(|pair| match pair {
        [Some(content), Some(dest_path)] => Ok((absolute(dest_path)?, content)),
        _ => Err(bad_request("each file needs a file and a dest_path")),
    });
    for (dest_path, content) in pairs.collect::<Result<Vec<_>, _>>()? {
        write(session.root(), Path::new(dest_path), content, MODE)?;
    }
    Ok(empty(StatusCode::CREATED))
}

/// `POST fs/upload_zip`: unpacks `zip_file` into `dest_path`.
pub(super) async fn upload_zip(
    session: &Session,
    asked: &Asked<'_>,
    body: Incoming,
) -> Result<Answer, PlatformError> {
    let body = read_body(body, UPLOAD_MAX).await?;
    let fields = form(asked, body).await?;
    let field = |name: &str| fields.iter().find(|field| field.name == name).map(|field| &*field.content);
    let (Some(packed), Some(dest_path)) = (field("zip_file"), field("dest_path")) else {
        return Err(bad_request("zip_file and dest_path required"));
    };
    let (root, dest_path) = (session.root(), Path::new(absolute(dest_path)?));
    let entries =
        archive::unpack(packed, UNPACKED_MAX).map_err(|error| bad_request(archive::message(&error)))?;
    let leads_out = |entry: &&Entry| {
        !Path::new(&entry.name).components().all(|component| matches!(component, Component::Normal(_)))
    };
    if let Some(entry) = entries.iter().find(leads_out) {
        return Err(bad_request(format!("invalid path in zip: {}", entry.name)));
    }
    make_directory(root, dest_path)?;
    for Entry { name, mode, content } in &entries {
        if name.ends_with('/') {
            make_directory(root, &dest_path.join(name))?;
        } else {
            write(root, &dest_path.join(name), content, mode.unwrap_or(MODE))?;
        }
    }
    Ok(empty(StatusCode::CREATED))
}

/// `GET fs/download_dir_zip`: packs a directory with its files and directories.
pub(super) fn download_dir_zip(session: &Session, asked: &Asked<'_>) -> Result<Answer, PlatformError> {
    let directory = session.root().find(path_of(asked)?);
    let directory =
        directory.map_err(|_| PlatformError::in_vm(StatusCode::NOT_FOUND, "directory not found"))?;
    if !directory.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(bad_request("path is not a directory"));
    }
    let mut entries = Vec::new();
    collect(directory.path(), "", &mut entries).map_err(PlatformError::internal)?;
    let packed = archive::pack(&entries).map_err(PlatformError::internal)?;
    Ok(bytes_answer("application/zip", packed))
}

fn collect(directory: &Path, name: &str, entries: &mut Vec<Entry>) -> io::Result<()> {
    let mut there = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    there.sort_by_key(fs::DirEntry::file_name);
    for entry in there {
        let metadata = entry.metadata()?;
        let name = format!("{name}{}", entry.file_name().to_string_lossy());
        let mode = Some(metadata.permissions().mode() & 0o777);
        if metadata.is_dir() {
            entries.push(Entry { name: format!("{name}/"), mode, content: Vec::new() });
            collect(&entry.path(), &format!("{name}/"), entries)?;
        } else if metadata.is_file() {
            entries.push(Entry { name, mode, content: fs::read(entry.path())? });
        }
    }
    Ok(())
}

async fn form(asked: &Asked<'_>, body: Bytes) -> Result<Vec<Field>, PlatformError> {
    let fields = multipart::fields(asked.content_type, body).await;
    fields.ok_or_else(|| bad_request("invalid multipart form"))
}

/// The number and the field of `files[0][file]`.
fn element(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("files[")?.strip_suffix(']')?.split_once("][")
}

/// Parses an absolute path.
fn absolute(path: &[u8]) -> Result<&str, PlatformError> {
    let path = std::str::from_utf8(path).ok().filter(|path| path.starts_with('/'));
    path.ok_or_else(|| bad_request("dest_path must be absolute"))
}

/// Writes a file in place, as `write_file` does.
fn write(root: &Root, path: &Path, content: &[u8], mode: u32) -> Result<(), PlatformError> {
    root.make_parents(path).map_err(|_| bad_request("unable to create directories"))?;
    let failed = |_| PlatformError::in_vm(StatusCode::INTERNAL_SERVER_ERROR, "unable to create file");
    root.write(path, content, mode).map_err(failed)
}

fn make_directory(root: &Root, path: &Path) -> Result<(), PlatformError> {
    root.make_directory(path, 0o755).map_err(|_| bad_request("unable to create directories"))
}

fn bad_request(message: impl Into<String>) -> PlatformError {
    PlatformError::in_vm(StatusCode::BAD_REQUEST, message)
}
