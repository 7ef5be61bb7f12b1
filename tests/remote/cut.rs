//! A connection cut anywhere during the login counts as a lost connection; a refusal does not.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ksync::remote::{AgentImage, ErrorKind, RemoteError, Target, connect};

use crate::world::{ECHO, World};

/// Extra configuration of this sshd, which sees hundreds of abandoned logins.
const MANY_STARTUPS: &str = "MaxStartups 1000\n";

/// Bytes between two cuts within a packet. The test cuts at the ends of every packet too.
const STEP: usize = 61;

/// A proxy that cuts each connection after a number of bytes in one direction.
struct Cutter {
    address: SocketAddr,
    limits: Arc<[AtomicUsize; 2]>,
    /// Positions at which packets ended, for each direction.
    ends: Arc<[std::sync::Mutex<Vec<usize>>; 2]>,
}

impl Cutter {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let limits: Arc<[AtomicUsize; 2]> = Arc::default();
        let ends: Arc<[std::sync::Mutex<Vec<usize>>; 2]> = Arc::default();
        let (limiting, noting) = (Arc::clone(&limits), Arc::clone(&ends));
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(target) else { return };
                for socket in [&near, &far] {
                    socket.set_nodelay(true).unwrap();
                }
                for (direction, from, to) in [(0, &near, &far), (1, &far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (limits, ends) = (Arc::clone(&limiting), Arc::clone(&noting));
                    thread::spawn(move || {
                        let (mut buffer, mut passed) = (vec![0; 64 * 1024], 0);
                        let limit = limits[direction].load(Ordering::SeqCst);
                        while let Ok(count @ 1..) = from.read(&mut buffer) {
                            let count = count.min(limit - passed);
                            passed += count;
                            ends[direction].lock().unwrap().push(passed);
                            if to.write_all(&buffer[..count]).is_err() || passed == limit {
                                break;
                            }
                        }
                        for socket in [from, to] {
                            let _ = socket.shutdown(Shutdown::Both);
                        }
                    });
                }
            }
        });
        Self { address, limits, ends }
    }

    fn cut_after(&self, direction: usize, bytes: usize) {
        self.limits[1 - direction].store(usize::MAX, Ordering::SeqCst);
        self.limits[direction].store(bytes, Ordering::SeqCst);
        for ends in &*self.ends {
            ends.lock().unwrap().clear();
        }
    }
}

/// Logs in and starts an agent, up to its first byte.
async fn start(target: &Target, image: &AgentImage) -> Result<(), (ErrorKind, String)> {
    let told = |error: &RemoteError| (error.kind(), format!("{error:?}"));
    let connection = connect(target).await.map_err(|error| told(&error))?;
    let agent = connection.agent_from(image.clone()).await.map_err(|error| told(&error))?;
    let mut reader = agent.reader;
    let read = tokio::task::spawn_blocking(move || reader.read_exact(&mut [0])).await.unwrap();
    match read {
        Ok(()) => Ok(()),
        Err(_) => agent.end.wait().await.error.map_or(Ok(()), |error| Err(told(&error))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_cut_at_any_byte_is_a_lost_connection() {
    let Some(mut world) = World::with(MANY_STARTUPS) else { return };
    let image = world.image(ECHO);
    // The wrong key comes first, so that the login contains refusals that do not end it.
    let target = |address| Target {
        identities: vec![world.path("other"), world.path("key")],
        connect_timeout: Duration::from_secs(10),
        ..world.target_at(address)
    };
    // Install the agent once, so that every later start takes the same path.
    start(&target(world.address()), &image).await.unwrap();
    let cutter = Cutter::to(world.address());
    let target = target(cutter.address);
    cutter.cut_after(0, usize::MAX);
    start(&target, &image).await.unwrap();
    let ends = [0, 1].map(|direction| cutter.ends[direction].lock().unwrap().clone());
    let (mut cuts, mut lost) = (0, 0);
    for (direction, ends) in ends.iter().enumerate() {
        let last = *ends.last().unwrap();
        let mut places: Vec<usize> = ends.iter().flat_map(|&end| [end - 1, end, end + 1]).collect();
        places.extend((1..last).step_by(STEP));
        places.retain(|&place| (1..last).contains(&place));
        places.sort_unstable();
        places.dedup();
        for place in places {
            cutter.cut_after(direction, place);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_matching_key_refuses_in_or_out_of_session() {
    for tries in [6, 2, 1] {
        let Some(world) = World::with(&format!("MaxAuthTries {tries}\n")) else { return };
        let identities = vec![world.path("other"), world.path("host"), world.path("host_ecdsa")];
        let target = Target { identities, ..world.target() };
        let error = connect(&target).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{tries}: {error:?}");
    }
}

/// sshd sends these plain texts to a waiting client, before anything of SSH.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_or_penalising_server_is_retried() {
    let Some(world) = World::new() else { return };
    for text in ["Exceeded MaxStartups\r\n", "Not allowed at this time\r\n", ""] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || listener.accept().unwrap().0.write_all(text.as_bytes()));
        let error = connect(&world.target_at(address)).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Socket, "{text:?}: {error:?}");
        assert!(error.is_retryable(), "{text:?}: {error:?}");
    }
}
