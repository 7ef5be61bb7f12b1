//! A connection cut anywhere during the login counts as a lost connection; a refusal does not.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ksync::remote::{AgentImage, ErrorKind, Keys, RemoteError, Target, connect};

use crate::server::{ECHO, Server};
use crate::world::link::{Cut, Link};

/// Bytes between two cuts within a packet. The test cuts at the ends of every packet too.
const STEP: usize = 61;

/// Logs in and starts an agent, up to its first byte.
async fn start(target: &Target, image: &AgentImage) -> Result<(), (ErrorKind, String)> {
    let told = |error: &RemoteError| (error.kind(), format!("{error:?}"));
    let connection = connect(target).await.map_err(|error| told(&error))?;
    let agent = connection.agent(image.clone()).await.map_err(|error| told(&error))?;
    let mut reader = agent.reader;
    let read = tokio::task::spawn_blocking(move || reader.read_exact(&mut [0])).await.unwrap();
    match read {
        Ok(()) => Ok(()),
        Err(_) => agent.end.wait().await.error.map_or(Ok(()), |error| Err(told(&error))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_cut_at_any_byte_is_a_lost_connection() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    // The wrong key comes first, so that the login contains refusals that do not end it.
    let target = |address| Target {
        keys: Keys::named(vec![server.path("other"), server.path("key")]),
        connect_timeout: Duration::from_secs(10),
        ..server.target_at(address)
    };
    // Install the agent once, so that every later start takes the same path.
    start(&target(server.address()), &image).await.unwrap();
    let link = Link::to(server.address());
    let target = target(link.address());
    start(&target, &image).await.unwrap();
    let ends = link.ends();
    let (mut cuts, mut lost) = (0, 0);
    for (direction, ends) in ends.iter().enumerate() {
        let last = *ends.last().unwrap();
        let mut places: Vec<u64> = ends.iter().flat_map(|&end| [end - 1, end, end + 1]).collect();
        places.extend((1..last).step_by(STEP));
        places.retain(|&place| (1..last).contains(&place));
        places.sort_unstable();
        places.dedup();
        for place in places {
            link.cut_each(Some([Cut::UpAfter, Cut::DownAfter][direction](place)));
            cuts += 1;
            // The login may end before the cut.
            let Err((kind, error)) = start(&target, &image).await else { continue };
            lost += 1;
            assert!(
                matches!(kind, ErrorKind::Socket | ErrorKind::Timeout | ErrorKind::ConnectTimeout),
                "cut after {place} of {last} bytes in direction {direction}: {kind:?} {error}"
            );
        }
    }
    assert!(cuts > 100 && lost > cuts * 3 / 4, "{lost} of {cuts} cuts were seen");
}

/// Carries one connection at a time to `server`, and closes it in order once a direction has
/// carried the given number of bytes: 0 is up, 1 is down. Returns the relay's address.
fn closing(server: SocketAddr, limits: Arc<[AtomicU64; 2]>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            let left = [0, 1].map(|direction: usize| limits[direction].load(Ordering::SeqCst));
            let ends = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
            let ways = ends.into_iter().zip(left).map(|((mut from, mut to), mut left)| {
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while left > 0 {
                        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        let Ok(count @ 1..) = from.read(&mut buffer[..room]) else { break };
                        left -= count as u64;
                        if to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    // The bytes written so far still arrive, and then the end of input.
                    let _ = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Write));
                })
            });
            drop(ways.collect::<Vec<_>>());
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_closed_in_order_at_any_byte_is_a_lost_connection() {
    let Some(server) = Server::new() else { return };
    let limits: Arc<[AtomicU64; 2]> = Arc::default();
    let relay = closing(server.address(), Arc::clone(&limits));
    // The wrong key comes first, as above.
    let target = Target {
        keys: Keys::named(vec![server.path("other"), server.path("key")]),
        connect_timeout: Duration::from_secs(10),
        ..server.target_at(relay)
    };
    let mut lost = 0;
    for direction in [0, 1] {
        for place in (1..).step_by(STEP) {
            limits[direction].store(place, Ordering::SeqCst);
            limits[1 - direction].store(u64::MAX, Ordering::SeqCst);
            let Err(error) = connect(&target).await else { break };
            lost += 1;
            let is_loss = matches!(error.kind(), ErrorKind::Socket | ErrorKind::Timeout);
            assert!(is_loss, "closed after {place} bytes in direction {direction}: {error:?}");
        }
    }
    assert!(lost > 50, "{lost} closed connections were seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_matching_key_refuses_in_or_out_of_session() {
    for tries in [6, 2, 1] {
        let Some(server) = Server::with(&format!("MaxAuthTries {tries}\n")) else { return };
        let identities = vec![server.path("other"), server.path("host"), server.path("host_ecdsa")];
        let target = Target { keys: Keys::named(identities), ..server.target() };
        let error = connect(&target).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{tries}: {error:?}");
    }
}

/// sshd sends these plain texts to a waiting client, before anything of SSH.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_or_penalising_server_is_retried() {
    let Some(server) = Server::new() else { return };
    for text in ["Exceeded MaxStartups\r\n", "Not allowed at this time\r\n", ""] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || listener.accept().unwrap().0.write_all(text.as_bytes()));
        let error = connect(&server.target_at(address)).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Socket, "{text:?}: {error:?}");
        assert!(error.is_retryable(), "{text:?}: {error:?}");
    }
}
