//! A link with a delay, in user space, which counts bytes and round trips.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Traffic counters. Bytes may answer everything that has arrived at their end before, so each byte
/// has a depth. A byte from the near end is one deeper than the deepest byte received there. A byte
/// from the far end is as deep as the deepest byte received there. The depth finally received at
/// the near end is the number of round trips.
#[derive(Default)]
struct Passed {
    up_bytes: AtomicU64,
    connections: AtomicUsize,
    near_depth: AtomicUsize,
    far_depth: AtomicUsize,
    sockets: Mutex<Vec<TcpStream>>,
}

/// A link with a delay each way and no other limit.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    passed: Arc<Passed>,
}

impl Link {
    /// Makes a link to a listening server.
    pub(crate) fn to(target: SocketAddr, delay: Duration) -> Link {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let passed = Arc::new(Passed::default());
        let counting = Arc::clone(&passed);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let counting = Arc::clone(&counting);
                counting.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || connect(near, target, delay, &counting));
            }
        });
        Link { address, passed }
    }

    /// Bytes from the near end: TCP payload.
    pub(crate) fn up_bytes(&self) -> u64 {
        self.passed.up_bytes.load(Ordering::SeqCst)
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for socket in self.passed.sockets.lock().expect("sockets").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Sequential round trips, connecting included.
    pub(crate) fn round_trips(&self) -> usize {
        let passed = &self.passed;
        passed.connections.load(Ordering::SeqCst) + passed.near_depth.load(Ordering::SeqCst)
    }
}

fn connect(near: TcpStream, target: SocketAddr, delay: Duration, passed: &Arc<Passed>) {
    // The kernel has already accepted the connection. This delay stands for the TCP handshake.
    thread::sleep(2 * delay);
    let Ok(far) = TcpStream::connect(target) else { return };
    for socket in [&near, &far] {
        socket.set_nodelay(true).expect("nodelay");
    }
    let clone = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
    passed.sockets.lock().expect("sockets").extend([clone(&near), clone(&far)]);
    let (up, there) = (Arc::clone(passed), Arc::clone(passed));
    let leaves_near = move |bytes| {
        up.up_bytes.fetch_add(bytes as u64, Ordering::SeqCst);
        up.near_depth.load(Ordering::SeqCst) + 1
    };
    let reaches_far = move |depth| {
        there.far_depth.fetch_max(depth, Ordering::SeqCst);
    };
    carry(clone(&near), clone(&far), delay, leaves_near, reaches_far);
    let (down, here) = (Arc::clone(passed), Arc::clone(passed));
    let leaves_far = move |_| down.far_depth.load(Ordering::SeqCst);
    let reaches_near = move |depth| {
        here.near_depth.fetch_max(depth, Ordering::SeqCst);
    };
    carry(far, near, delay, leaves_far, reaches_near);
}

/// Carries one direction. `depth_of` returns the depth of sent bytes, and `arrives` is called
/// before bytes of a depth arrive.
fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    delay: Duration,
    depth_of: impl Fn(usize) -> usize + Send + 'static,
    arrives: impl Fn(usize) + Send + 'static,
) {
    let (sender, receiver) = channel::<(Instant, usize, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + delay, depth_of(count), buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, depth, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            arrives(depth);
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
