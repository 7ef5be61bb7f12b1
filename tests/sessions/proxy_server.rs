//! A proxy: `CONNECT` of HTTP, SOCKS 4a and 5 on one port, told apart by their first byte.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The proxy's manner.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manner {
    /// It connects everybody.
    Open,
    /// It wants this user and this password.
    Login(&'static str, &'static str),
    /// It answers with this HTTP status, or as a SOCKS proxy whose rules forbid the connection.
    Refuse(u16),
    /// It never answers.
    Silent,
}

/// A proxy on loopback. A host below `.test` is this machine, for the proxy alone.
pub(crate) struct ProxyServer {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ProxyServer {
    pub(crate) fn start(manner: Manner) -> ProxyServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                // A client may go away in the middle of its handshake.
                thread::spawn(move || serve(stream, manner, &log));
            }
        });
        ProxyServer { address, asked }
    }

    /// Hosts and ports that clients asked for, since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(mut near: TcpStream, manner: Manner, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let note = |to: &str| log.lock().unwrap_or_else(PoisonError::into_inner).push(to.to_owned());
    match byte(&mut near)? {
        5 => {
            let Some(to) = socks5(&mut near, manner)? else { return Ok(()) };
            note(&to);
            match manner {
                Manner::Refuse(_) => near.write_all(&[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]),
                _ => join(near, &to, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
            }
        }
        4 => {
            let to = socks4(&mut near)?;
            note(&to);
            join(near, &to, &[0, 90, 0, 0, 0, 0, 0, 0])
        }
        first => {
            let mut head = String::from(char::from(first));
            while !head.ends_with("\r\n\r\n") {
                head.push(char::from(byte(&mut near)?));
            }
            let to = head.split(' ').nth(1).unwrap_or_default();
            note(to);
            match manner {
                Manner::Silent => silence(near),
                Manner::Refuse(status) => near.write_all(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes()),
                Manner::Login(user, password) if !head.contains(&basic(user, password)) => {
                    near.write_all(b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n")
                }
                Manner::Open | Manner::Login(..) => join(near, to, b"HTTP/1.1 200 Established\r\n\r\n"),
            }
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("\r\nProxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

fn socks4(near: &mut TcpStream) -> io::Result<String> {
    let mut fixed = [0; 7];
    near.read_exact(&mut fixed)?;
    let port = u16::from_be_bytes([fixed[1], fixed[2]]);
    text(near)?;
    let host = if fixed[3..6] == [0, 0, 0] {
        text(near)?
    } else {
        Ipv4Addr::new(fixed[3], fixed[4], fixed[5], fixed[6]).to_string()
    };
    Ok(format!("{host}:{port}"))
}

/// A text that ends in a zero byte.
fn text(near: &mut TcpStream) -> io::Result<String> {
    let mut text = String::new();
    loop {
        match byte(near)? {
            0 => return Ok(text),
            letter => text.push(char::from(letter)),
        }
    }
}

/// Reads a request; `None` if the client has no right to make one.
fn socks5(near: &mut TcpStream, manner: Manner) -> io::Result<Option<String>> {
    let methods = counted(near)?;
    match manner {
        Manner::Silent => return silence(near.try_clone()?).map(|()| None),
        Manner::Login(user, password) => {
            if !methods.contains(&2) {
                return near.write_all(&[5, 255]).map(|()| None);
            }
            near.write_all(&[5, 2])?;
            byte(near)?;
            let given = (counted(near)?, counted(near)?);
            let is_right = given == (user.as_bytes().to_vec(), password.as_bytes().to_vec());
            near.write_all(&[1, u8::from(!is_right)])?;
            if !is_right {
                return Ok(None);
            }
        }
        Manner::Open | Manner::Refuse(_) => near.write_all(&[5, 0])?,
    }
    let mut begin = [0; 4];
    near.read_exact(&mut begin)?;
    let host = if begin[3] == 3 {
        String::from_utf8_lossy(&counted(near)?).into_owned()
    } else {
        let mut address = [0; 4];
        near.read_exact(&mut address)?;
        Ipv4Addr::from(address).to_string()
    };
    let port = u16::from_be_bytes([byte(near)?, byte(near)?]);
    Ok(Some(format!("{host}:{port}")))
}

fn counted(near: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(byte(near)?)];
    near.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn byte(near: &mut TcpStream) -> io::Result<u8> {
    let mut byte = [0];
    near.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Waits until the client goes away.
fn silence(mut near: TcpStream) -> io::Result<()> {
    io::copy(&mut near, &mut io::sink()).map(|_| ())
}

/// Connects to the host, says so, and carries bytes both ways.
fn join(mut near: TcpStream, to: &str, granted: &[u8]) -> io::Result<()> {
    let (host, port) = to.rsplit_once(':').unwrap_or_default();
    let host = if host.ends_with(".test") { "127.0.0.1" } else { host };
    let mut far = TcpStream::connect(format!("{host}:{port}"))?;
    far.set_nodelay(true)?;
    near.set_nodelay(true)?;
    near.write_all(granted)?;
    let (mut up, mut down) = (near.try_clone()?, far.try_clone()?);
    let upwards = thread::spawn(move || {
        let _ = io::copy(&mut up, &mut down);
        let _ = down.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut far, &mut near);
    let _ = near.shutdown(Shutdown::Both);
    let _ = upwards.join();
    Ok(())
}
