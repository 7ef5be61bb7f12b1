//! The grammar as a table.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{Endpoint, EndpointErrorKind};

fn parse(text: &[u8]) -> Result<Endpoint, EndpointErrorKind> {
    Endpoint::parse(OsStr::from_bytes(text)).map_err(|error| error.kind)
}

fn setup(path: &str) -> Endpoint {
    Endpoint::Setup { path: path.into() }
}

fn sandbox(path: &str) -> Endpoint {
    Endpoint::Sandbox { path: path.into() }
}

fn session(name: &str, path: &str) -> Endpoint {
    Endpoint::Session { name: name.into(), path: path.into() }
}

fn ssh(user: &str, host: &str, port: u16, path: &str) -> Endpoint {
    let user = (!user.is_empty()).then(|| user.to_owned());
    Endpoint::Ssh { user, host: host.into(), port: (port != 0).then_some(port), path: path.into() }
}

fn websocket(url: &str, user: &str, path: &str) -> Endpoint {
    let user = (!user.is_empty()).then(|| user.to_owned());
    Endpoint::WebSocket { url: url.into(), user, path: path.into() }
}

#[test]
fn local_paths_are_taken_literally() {
    for text in [
        &b"x"[..],
        b".",
        b"./x",
        b"/x/",
        b"dir/a:b",
        b"./user@host:/x",
        b"/a://b",
        b"user@host",
        b"sandbox",
        b"C:\\x",
        b"c:",
        b"Z:/x",
        b"a://b",
        b"\xff\xfe",
        b"\xff/a:b",
        b"a b",
        b"~/x",
        b"-x",
        b"[draft]",
        b"a/[b]:c",
    ] {
        let local = Endpoint::Local(OsStr::from_bytes(text).into());
        assert_eq!(parse(text), Ok(local), "{}", text.escape_ascii());
    }
}

#[test]
fn each_remote_form_parses_to_its_endpoint() {
    for (text, endpoint) in [
        (":/tmp/x", setup("/tmp/x")),
        (":x", setup("x")),
        (":", setup(".")),
        ("sandbox:/tmp/x", sandbox("/tmp/x")),
        ("sandbox:", sandbox(".")),
        ("sandbox:~", sandbox(".")),
        ("sandbox:~/x", sandbox("x")),
        ("sandbox:x:y", sandbox("x:y")),
        ("sandbox://tmp", sandbox("//tmp")),
        ("session:/tmp", session("session", "/tmp")),
        ("abc123:/tmp/x", session("abc123", "/tmp/x")),
        ("my-browser:x", session("my-browser", "x")),
        ("a b:/x", session("a b", "/x")),
        ("#1?\\é:x", session("#1?\\é", "x")),
        ("user@host:/x", ssh("user", "host", 0, "/x")),
        ("user@host:", ssh("user", "host", 0, ".")),
        ("user@host:~/a b", ssh("user", "host", 0, "a b")),
        ("a@b@host:/x", ssh("a@b", "host", 0, "/x")),
        ("user@[::1]:/x", ssh("user", "::1", 0, "/x")),
        ("user@[fe80::1%eth0]:x", ssh("user", "fe80::1%eth0", 0, "x")),
        ("[::1]:/x", ssh("", "::1", 0, "/x")),
        ("user@host:22:x", ssh("user", "host", 0, "22:x")),
        ("ssh://host", ssh("", "host", 0, ".")),
        ("ssh://host/", ssh("", "host", 0, "/")),
        ("ssh://host/x", ssh("", "host", 0, "/x")),
        ("ssh://host/~", ssh("", "host", 0, ".")),
        ("ssh://host/~/x", ssh("", "host", 0, "x")),
        ("ssh://user@host:2222/x y", ssh("user", "host", 2222, "/x y")),
        ("SSH://user@[::1]:22/x%20y", ssh("user", "::1", 22, "/x%20y")),
        ("ws://127.0.0.1:80/x", websocket("ws://127.0.0.1:80", "", "/x")),
        ("wss://vm.example/x", websocket("wss://vm.example", "", "/x")),
        ("wss://root@vm.example:2222/~/x", websocket("wss://vm.example:2222", "root", "x")),
        ("WS://[::1]:2222", websocket("ws://[::1]:2222", "", ".")),
    ] {
        assert_eq!(parse(text.as_bytes()), Ok(endpoint), "{text}");
    }
}

#[test]
fn remote_paths_are_bytes() {
    assert_eq!(parse(b"sandbox:/\xff"), Ok(Endpoint::Sandbox { path: b"/\xff".to_vec() }));
    assert_eq!(parse(b"u@h:\xff").unwrap().path(), b"\xff");
    assert_eq!(parse(b"ws://h/\xff").unwrap().path(), b"/\xff");
}

#[test]
fn texts_that_are_no_endpoint_are_refused() {
    for (text, kind) in [
        (&b""[..], EndpointErrorKind::Empty),
        (b"a\0b", EndpointErrorKind::Nul),
        (b"user@:/x", EndpointErrorKind::NoHost),
        (b"ssh://", EndpointErrorKind::NoHost),
        (b"ssh:///x", EndpointErrorKind::NoHost),
        (b"wss://:80/x", EndpointErrorKind::NoHost),
        (b"ssh://user@/x", EndpointErrorKind::NoHost),
        (b"[]:/x", EndpointErrorKind::NoHost),
        (b"::1:/x", EndpointErrorKind::Host),
        (b"user@::1:/x", EndpointErrorKind::Host),
        (b"ws://::1/x", EndpointErrorKind::Host),
        (b"ws://[::1/x", EndpointErrorKind::Host),
        (b"ws://[host]:1/x", EndpointErrorKind::Host),
        (b"ws://[::1]x/x", EndpointErrorKind::Host),
        (b"user@-oProxyCommand=x:/x", EndpointErrorKind::Host),
        (b"-x:/x", EndpointErrorKind::Host),
        (b"a\tb:/x", EndpointErrorKind::Host),
        (b"a[b]:/x", EndpointErrorKind::Host),
        (b" a:/x", EndpointErrorKind::Host),
        (b"\xff:/x", EndpointErrorKind::Host),
        (b"user@\xff:/x", EndpointErrorKind::Host),
        (b"@host:/x", EndpointErrorKind::User),
        (b"-l@host:/x", EndpointErrorKind::User),
        (b"ssh://a b@host/x", EndpointErrorKind::User),
        (b"ssh://host:/x", EndpointErrorKind::Port),
        (b"ssh://host:0/x", EndpointErrorKind::Port),
        (b"ssh://host:65536/x", EndpointErrorKind::Port),
        (b"ssh://host:+22/x", EndpointErrorKind::Port),
        (b"wss://[::1]:x/x", EndpointErrorKind::Port),
        (b"http://host/x", EndpointErrorKind::Scheme),
        (b"file:///x", EndpointErrorKind::Scheme),
        (b"rsync://host/module", EndpointErrorKind::Daemon),
        (b"host::module/x", EndpointErrorKind::Daemon),
        (b"user@host::module", EndpointErrorKind::Daemon),
        (b"sandbox:~root", EndpointErrorKind::OtherHome),
        (b"ssh://host/~root/x", EndpointErrorKind::OtherHome),
    ] {
        assert_eq!(parse(text), Err(kind), "{}", text.escape_ascii());
    }
}

#[test]
fn an_error_shows_the_text_with_control_bytes_escaped() {
    let error = Endpoint::parse(OsStr::from_bytes(b"http://\x1b[2J/")).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#""http://\u{1b}[2J/" is not an endpoint: its scheme is not ssh, ws or wss"#
    );
}

#[test]
fn a_displayed_endpoint_parses_to_itself() {
    for text in [
        "x/y",
        ":/x",
        "sandbox:x",
        "abc:/x",
        "user@host:/x",
        "user@[::1]:x",
        "[::1]:/x",
        "ssh://user@host:22/x",
        "ssh://[::1]:22/~/x",
        "wss://root@vm:2222/x",
        "ws://[::1]:80/~/x",
    ] {
        assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
    }
}

#[test]
fn a_resolved_path_takes_the_place_of_the_typed_one() {
    let endpoint = parse(b"sandbox:x").unwrap();
    assert_eq!(endpoint.with_path(b"/home/kernel/x\n").to_string(), "sandbox:/home/kernel/x\\n");
}

#[test]
fn the_name_is_the_last_component_that_is_a_name() {
    for (text, name) in [
        ("a/b", Some("b")),
        ("a/b//", Some("b")),
        ("a/.", Some("a")),
        ("sandbox:/a b", Some("a b")),
        (".", None),
        ("/", None),
        ("a/..", None),
        ("sandbox:", None),
    ] {
        assert_eq!(parse(text.as_bytes()).unwrap().name(), name.map(str::as_bytes), "{text}");
    }
}

#[test]
fn a_joined_name_is_below_the_endpoint() {
    assert_eq!(parse(b"sandbox:/a").unwrap().join(b"b"), sandbox("/a/b"));
    assert_eq!(parse(b"sandbox:/").unwrap().join(b"b"), sandbox("/b"));
    assert_eq!(parse(b"a/").unwrap().join(b"b"), Endpoint::Local("a/b".into()));
}

#[test]
fn an_endpoint_without_a_path_gets_two_suggestions() {
    for (text, home, inside) in [
        ("host:", "host:.", "host:site"),
        ("me@host:", "me@host:.", "me@host:site"),
        ("me@[::1]:", "me@[::1]:.", "me@[::1]:site"),
        ("session:", "session:.", "session:site"),
        ("sandbox:", "sandbox:.", "sandbox:site"),
        (":", ":.", ":site"),
        ("ssh://me@host", "ssh://me@host/~", "ssh://me@host/~/site"),
        ("wss://vm:2222", "wss://vm:2222/~", "wss://vm:2222/~/site"),
        ("wss://vm:2222/", "wss://vm:2222/~", "wss://vm:2222/~/site"),
    ] {
        let told = Endpoint::without_path(text.as_ref(), "site");
        assert_eq!(told, Some((home.to_owned(), inside.to_owned())), "{text}");
        for form in [home, inside] {
            assert!(parse(form.as_bytes()).is_ok(), "{form}");
            assert_eq!(Endpoint::without_path(form.as_ref(), "site"), None, "{form}");
        }
    }
    for text in
        ["host:.", "host:~", "host:/", "ssh://host//", "wss://vm/~", "dir", "dir/a:", "c:", "./x:", ""]
    {
        assert_eq!(Endpoint::without_path(text.as_ref(), "site"), None, "{text}");
    }
}
