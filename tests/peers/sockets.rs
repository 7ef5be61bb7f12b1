//! Servers and clients on loopback, at the ends of forwards.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::world::DEADLINE;

/// Serves each connection in a thread of its own, at a port that it returns.
pub(crate) fn serve(work: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let work = work.clone();
            thread::spawn(move || work(socket));
        }
    });
    port
}

/// A server that reads to the end, and only then answers, in capitals.
pub(crate) fn capitals() -> u16 {
    serve(|mut socket| {
        let mut said = Vec::new();
        if socket.read_to_end(&mut said).is_ok() {
            said.make_ascii_uppercase();
            let _ = socket.write_all(&said);
        }
    })
}

/// A server that says hello, ends its output, and only then reads. The receiver gets what it read.
pub(crate) fn greeter() -> (u16, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    let port = serve(move |mut socket| {
        socket.write_all(b"hello").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        let _ = sender.send(said);
    });
    (port, receiver)
}

/// A web server with one page.
pub(crate) fn web(page: &'static str) -> u16 {
    serve(move |mut socket| {
        let (mut request, mut byte) = (Vec::new(), [0]);
        while !request.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|count| count > 0) {
            request.push(byte[0]);
        }
        let _ = write!(socket, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len());
    })
}

pub(crate) fn connect(port: u16) -> TcpStream {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Sends all of `words`, ends the output, and reads the answer to its end.
pub(crate) fn ask(port: u16, words: &[u8]) -> Vec<u8> {
    let mut socket = connect(port);
    let mut sending = socket.try_clone().unwrap();
    let answer = thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(words).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).map(|_| answer)
    });
    answer.unwrap()
}

/// Asserts that a port leads to [`capitals`], with many connections at once.
#[track_caller]
pub(crate) fn leads_to_capitals(port: u16, connections: usize) {
    thread::scope(|scope| {
        for number in 0..connections {
            scope.spawn(move || {
                let words = format!("connection {number} ").repeat(10_000);
                assert!(ask(port, words.as_bytes()) == words.to_ascii_uppercase().as_bytes(), "{number}");
            });
        }
    });
}

/// Takes one port on both loopback addresses.
pub(crate) fn taken_port() -> (u16, Vec<TcpListener>) {
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = first.local_addr().unwrap().port();
    let mut listeners = vec![first];
    listeners.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, port)));
    (port, listeners)
}
