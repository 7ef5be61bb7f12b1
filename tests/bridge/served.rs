//! A running bridge and the target behind it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};

use crate::client::Client;
use crate::world::service::{Service, closed_port, listening};
use crate::world::{DEADLINE, World};

/// A running bridge.
pub(crate) struct Served {
    process: Service,
    /// Address of the bridge.
    pub(crate) address: SocketAddr,
    /// Connections to the bridge's target.
    arrivals: Receiver<TcpStream>,
    _world: World,
}

impl Served {
    /// Starts a bridge to a target that the test plays.
    pub(crate) fn start() -> Served {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let target = listener.local_addr().expect("an address");
        let (sender, arrivals) = channel();
        // The thread ends when the receiver is gone, at the latest with the test.
        std::thread::spawn(move || {
            for arrival in listener.incoming().map_while(Result::ok) {
                if sender.send(arrival).is_err() {
                    break;
                }
            }
        });
        Served::before(target, arrivals)
    }

    /// Starts a bridge to a target that returns all its input.
    pub(crate) fn echoing() -> Served {
        let mut served = Served::start();
        let arrivals = std::mem::replace(&mut served.arrivals, channel().1);
        std::thread::spawn(move || {
            for mut arrival in arrivals {
                std::thread::spawn(move || {
                    let mut back = arrival.try_clone().expect("a descriptor");
                    let _ = std::io::copy(&mut arrival, &mut back);
                    let _ = back.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        served
    }

    /// Starts a bridge to a closed port.
    pub(crate) fn to_nobody() -> (Served, SocketAddr) {
        let target = (Ipv4Addr::LOCALHOST, closed_port()).into();
        (Served::before(target, channel().1), target)
    }

    fn before(target: SocketAddr, arrivals: Receiver<TcpStream>) -> Served {
        let world = World::new();
        let program = world.unpack("ksync-bridge", ksync::bridge().gzip);
        let (port, process) = listening(|port| {
            let mut command = world.command(&program);
            command.arg(format!("127.0.0.1:{port}")).arg(target.to_string()).stderr(Stdio::null());
            Service::start(command)
        });
        Served { process, address: (Ipv4Addr::LOCALHOST, port).into(), arrivals, _world: world }
    }

    /// Connects a client, and returns it with its connection at the target.
    #[track_caller]
    pub(crate) fn pair(&self) -> (Client, TcpStream) {
        let client = Client::open(self.address);
        (client, self.arrival())
    }

    /// Next connection at the target.
    #[track_caller]
    pub(crate) fn arrival(&self) -> TcpStream {
        let arrival = self.arrivals.recv_timeout(DEADLINE).expect("an arrival");
        arrival.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        arrival
    }

    /// Resident memory of the bridge, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes << 10
    }

    /// Asserts that the bridge still serves.
    #[track_caller]
    pub(crate) fn assert_serves(&self) {
        let (mut client, mut target) = self.pair();
        client.send(crate::client::BINARY, b"still");
        let mut heard = [0; 5];
        target.read_exact(&mut heard).expect("what was said");
        assert_eq!(&heard, b"still");
        target.write_all(b"there").expect("an answer");
        assert_eq!(client.receive_bytes(5), b"there");
    }
}
