//! `curl` and `curl/raw`: HTTP requests of the browser. In place of a browser, this machine's
//! program `curl` makes them.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::answer::{Answer, PlatformError, bytes_answer, json_answer, read_body, read_json};
use super::call::Asked;

/// Default timeout, and the longest one.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// Most bytes of a request's body.
const BODY_MAX: usize = 64 << 20;

/// Exit code of `curl` after a timeout.
const TIMED_OUT: i32 = 28;

/// Headers that belong to one connection, or to the way to the VM.
const NOT_PASSED: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

#[derive(Debug, Deserialize)]
struct Request {
    url: String,
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    response_encoding: Option<String>,
    timeout_ms: Option<u64>,
}

/// A server's answer.
struct Fetched {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// `POST curl`.
pub(super) async fn curl(body: Incoming) -> Result<Answer, PlatformError> {
    let Request { url, method, headers, body, response_encoding, timeout_ms } = read_json(body).await?;
    let parsed = headers.iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value).ok()?))
    });
    let headers = parsed.collect::<Option<HeaderMap>>().ok_or_else(|| refused("invalid header"))?;
    let begun = Instant::now();
    let method = method.unwrap_or_else(|| "GET".to_owned());
    let fetched = fetch(&method, &url, &headers, body.map(Into::into), timeout_ms).await?;
    let mut headers: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (name, value) in &fetched.headers {
        headers.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()));
    }
    let body = match response_encoding.as_deref() {
        Some("base64") => STANDARD.encode(&fetched.body),
        _ => String::from_utf8_lossy(&fetched.body).into_owned(),
    };
    let value = json!({
        "status": fetched.status.as_u16(),
        "headers": headers,
        "body": body,
        "duration_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    Ok(json_answer(StatusCode::OK, &value))
}

/// `curl/raw?url=…`: passes a request of any method on, and answers as the server does.
pub(super) async fn raw(asked: &Asked<'_>, body: Incoming) -> Result<Answer, PlatformError> {
    let url = asked.value("url").unwrap_or_default();
    let timeout_ms = asked.value("timeout_ms").and_then(|millis| millis.parse().ok());
    let body = Some(read_body(body, BODY_MAX).await?).filter(|body| !body.is_empty());
    let fetched = fetch(asked.method.as_str(), &url, &passed(asked.headers), body, timeout_ms).await?;
    let mut answer = bytes_answer("", fetched.body);
    *answer.status_mut() = fetched.status;
    *answer.headers_mut() = passed(&fetched.headers);
    Ok(answer)
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    for name in NOT_PASSED {
        passed.remove(name);
    }
    passed
}

async fn fetch(
    method: &str,
    url: &str,
    headers: &HeaderMap,
    body: Option<Bytes>,
    timeout_ms: Option<u64>,
) -> Result<Fetched, PlatformError> {
    if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(refused("url must be http or https"));
    }
    let timeout = timeout_ms.map_or(TIMEOUT_DEFAULT, Duration::from_millis).min(TIMEOUT_MAX);
    let mut command = Command::new("curl");
    // Without a configuration file, patterns in URLs, and the wait for "100 Continue".
    command.args([
        "-q",
        "--globoff",
        "--silent",
        "--show-error",
        "--include",
        "--http1.1",
        "--header",
        "Expect:",
    ]);
    command.args(["--location", "--max-redirs", "20", "--proto", "=http,https", "--url", url]);
    command.args(["--max-time", &timeout.as_secs_f64().to_string()]);
    match method {
        "GET" if body.is_none() => {}
        "HEAD" => {
            command.arg("--head");
        }
        method => {
            command.args(["--request", method]);
        }
    }
    for (name, value) in headers {
        command.arg("--header").arg(format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
    }
    if body.is_some() {
        command.args(["--data-binary", "@-"]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(format!("cannot run curl: {error}")))?;
    let mut stdin = child.stdin.take();
    let fed = async {
        if let (Some(stdin), Some(body)) = (&mut stdin, &body) {
            // A server may answer without reading everything.
            let _ = stdin.write_all(body).await;
        }
        drop(stdin);
    };
    let ((), output) = tokio::join!(fed, child.wait_with_output());
    let output = output.map_err(PlatformError::internal)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        return Err(match output.status.code() {
            Some(TIMED_OUT) => PlatformError::in_vm(StatusCode::GATEWAY_TIMEOUT, message),
            _ => failed(message),
        });
    }
    last(output.stdout.into()).ok_or_else(|| failed("malformed answer".to_owned()))
}

/// The last of the answers that `curl` wrote: interim answers and redirects come before it.
fn last(mut output: Bytes) -> Option<Fetched> {
    loop {
        let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let head = output.split_to(end);
        let body = output.split_off(4);
        let head = std::str::from_utf8(&head).ok()?;
        let (first, lines) = head.split_once("\r\n").unwrap_or((head, ""));
        let status: StatusCode = first.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.split("\r\n").filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.parse::<HeaderName>().ok()?, value.trim().parse::<HeaderValue>().ok()?))
        });
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(name, value);
        }
        let is_redirect = status.is_redirection() && all.contains_key(header::LOCATION);
        if status.is_informational() || is_redirect {
            output = body;
        } else {
            return Some(Fetched { status, headers: all, body });
        }
    }
}

fn refused(message: &str) -> PlatformError {
    PlatformError::in_vm(StatusCode::BAD_REQUEST, message)
}

fn failed(message: String) -> PlatformError {
    PlatformError::in_vm(StatusCode::BAD_GATEWAY, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_is_the_one_after_redirects() {
        let output = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n\
                      HTTP/1.1 404 Not Found\r\nA: 1\r\na: 2\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        let fetched = last(output.into()).expect("an answer");
        assert_eq!(
            (fetched.status, &fetched.body[..]),
            (StatusCode::NOT_FOUND, &b"HTTP/1.1 200 OK\r\n\r\n"[..])
        );
        assert_eq!(fetched.headers.get_all("a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(last("no answer".into()).is_none());
    }
}
