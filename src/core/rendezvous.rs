//! Rendezvous of a lane and its agent: two processes of one login, started over two channels.
//!
//! The process of a lane passes its standard input to the agent. When the agent has it, the process
//! says so on its standard output, and stays until the agent is done with the lane. So no byte
//! passes through the process, and it ends with the agent, however that ends.
//!
//! They meet at a Unix socket with an abstract name, which leaves nothing on any disk. Any user of
//! the machine can connect to such a socket, or may have taken the name before. So both ends ask
//! the kernel for the peer's user, and refuse any other user. At worst another user keeps lanes
//! from joining, and an exchange works without them.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::exchange::lanes::{JoinLanes, Joining, Lane};
use crate::wire::hello::MAGIC;
use crate::wire::lanes::{Announcement, Token};

/// Timeout for a lane to meet its agent. The announcement leaves before any lane is started, but
/// may queue behind half a MiB.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which a lane tries to reach the agent.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// The agent's pause when it cannot accept a connection.
const REST: Duration = Duration::from_millis(5);

/// Timeout for a connected lane to pass its input.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The one byte of either message.
const WORD: [u8; 1] = [1];

/// The whole work of a lane's process. Passes `input` to the agent that announced `token`, and
/// reports on `output` when the agent has it. Returns when the agent is done with it.
///
/// # Errors
/// There is no such agent, or it takes no further lane.
pub fn serve_lane(token: Token, input: impl AsFd, output: &mut impl Write) -> io::Result<()> {
    let mut agent = connect(token, input.as_fd())?;
    check_own(&agent)?;
    hand_over(&agent, input.as_fd())?;
    agent.read_exact(&mut WORD.clone())?;
    output.write_all(&MAGIC)?;
    output.flush()?;
    // No more bytes come: this waits for the end. A broken connection is one too.
    let _ = agent.read(&mut WORD.clone());
    Ok(())
}

/// The agent's end: accepts lanes.
#[derive(Debug)]
pub struct Rendezvous;

impl JoinLanes for Rendezvous {
    fn join(&self, announcement: Announcement, joining: Joining) {
        // If the agent cannot listen, no lane joins, and the exchange works without.
        if let Ok(listener) = listen(announcement.token) {
            let _ = thread::Builder::new().spawn(move || let_in(&listener, &joining));
        }
    }
}

/// Accepts lanes until all have joined, or the exchange is over.
fn let_in(listener: &UnixListener, joining: &Joining) {
    while joining.is_open() {
        match listener.accept() {
            // A refused lane sees the end of its connection.
            Ok((lane, _)) => drop(admit(lane, joining)),
            // No lane came for a while, or no descriptor was free for it.
            Err(_) => thread::sleep(REST),
        }
    }
}

fn admit(lane: UnixStream, joining: &Joining) -> io::Result<()> {
    check_own(&lane)?;
    lane.set_read_timeout(Some(HAND_OVER_TIMEOUT))?;
    let input = File::from(take_over(&lane)?);
    let mut answer = lane.try_clone()?;
    if joining.add(Lane::new(Handed { input, _lane: lane })) {
        // The lane process reports success after this byte.
        answer.write_all(&WORD)?;
    }
    Ok(())
}

/// A lane's input, and the connection whose end lets the lane's process exit.
struct Handed {
    input: File,
    _lane: UnixStream,
}

impl Read for Handed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

fn name(token: Token) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("ksync-lane-{token}"))
}

fn listen(token: Token) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&name(token)?)?;
    // The timeout applies to `accept` too, so the loop checks the clock now and then.
    set_socket_timeout(&listener, Timeout::Recv, Some(Duration::from_secs(1)))?;
    Ok(listener)
}

/// Connects to the agent. The agent may not have read the announcement yet. Or it may be gone
/// already; then `input` has ended too.
fn connect(token: Token, input: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect_addr(&name(token)?) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && start.elapsed() < TIMEOUT => {
                // A pipe hangs up; a socket closes only one direction.
                let mut polled = [PollFd::from_borrowed_fd(input, PollFlags::RDHUP)];
                if poll(&mut polled, Some(&LOOK))? > 0 {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

/// Checks with the kernel that the other end is a process of the same user.
fn check_own(socket: &UnixStream) -> io::Result<()> {
    if socket_peercred(socket)?.uid == rustix::process::geteuid() {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn hand_over(socket: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(&WORD)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn take_over(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = WORD;
    recvmsg(socket, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
#[path = "../../tests/world/skip.rs"]
#[allow(clippy::duplicate_mod)]
mod skip;

#[cfg(test)]
mod tests {
    use rustix::process::Uid;

    use super::*;
    use crate::exchange::lanes::Merged;
    use crate::wire::lanes::encode_segment;

    const NOBODY: u32 = 65534;

    fn announcement(number: u8) -> Announcement {
        let mut random = [number; 16];
        random[..4].copy_from_slice(&std::process::id().to_le_bytes());
        Announcement { token: Token::new(random), lanes: 2 }
    }

    /// Sends bytes over a lane of this token and checks them at the agent's end. Returns the lane's
    /// result and its answer.
    fn carries(token: Token, merged: &mut Merged) -> (io::Result<()>, Vec<u8>) {
        let (input, mut far) = io::pipe().unwrap();
        let lane = thread::spawn(move || {
            let mut answer = Vec::new();
            (serve_lane(token, input, &mut answer), answer)
        });
        far.write_all(&encode_segment(0, b"over the lane")).unwrap();
        let mut text = [0; 13];
        merged.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"over the lane");
        // The process of the lane exits only after the end of the lane.
        thread::sleep(Duration::from_millis(50));
        assert!(!lane.is_finished());
        drop(far);
        lane.join().unwrap()
    }

    /// Runs `work` as another user, on a thread of its own.
    fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let working = scope.spawn(|| {
                rustix::thread::set_thread_uid(Uid::from_raw(NOBODY)).unwrap();
                work()
            });
            working.join().unwrap()
        })
    }

    #[test]
    fn a_lane_hands_its_input_over_and_exits_at_its_end() {
        let announcement = announcement(1);
        let (reader, _main) = io::pipe().unwrap();
        let (mut merged, joining) = Merged::new(Lane::new(reader), announcement);
        Rendezvous.join(announcement, joining);
        let (ended, answer) = carries(announcement.token, &mut merged);
        ended.unwrap();
        assert_eq!(answer, MAGIC);
        // All lanes have joined, so the agent no longer listens.
        let mut refused = UnixStream::connect_addr(&name(announcement.token).unwrap());
        while refused.is_ok() {
            thread::sleep(REST);
            refused = UnixStream::connect_addr(&name(announcement.token).unwrap());
        }
    }

    #[test]
    fn a_lane_waits_for_the_announcement() {
        let announcement = announcement(2);
        let (reader, _main) = io::pipe().unwrap();
        let (mut merged, joining) = Merged::new(Lane::new(reader), announcement);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            Rendezvous.join(announcement, joining);
        });
        carries(announcement.token, &mut merged).0.unwrap();
    }

    #[test]
    fn a_lane_without_an_agent_ends_with_its_input() {
        let start = Instant::now();
        let (input, far) = io::pipe().unwrap();
        let lane = thread::spawn(move || serve_lane(announcement(5).token, input, &mut Vec::new()));
        thread::sleep(Duration::from_millis(100));
        assert!(!lane.is_finished());
        drop(far);
        assert_eq!(lane.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(start.elapsed() < TIMEOUT / 2);
    }

    #[test]
    fn another_user_can_neither_join_nor_keep_a_lane_out() {
        if !skip::needs_superuser() {
            return;
        }
        let announcement = announcement(3);
        let (reader, _main) = io::pipe().unwrap();
        let (mut merged, joining) = Merged::new(Lane::new(reader), announcement);
        Rendezvous.join(announcement, joining);
        as_nobody(|| {
            let (input, _far) = io::pipe().unwrap();
            // The steps of a lane, by a program that does not check its peer.
            for _ in 0..100 {
                let mut agent = connect(announcement.token, input.as_fd()).unwrap();
                let _ = hand_over(&agent, input.as_fd());
                assert!(agent.read_exact(&mut [0]).is_err(), "it was let in");
            }
        });
        carries(announcement.token, &mut merged).0.unwrap();
    }

    #[test]
    fn a_lane_hands_nothing_to_another_user() {
        if !skip::needs_superuser() {
            return;
        }
        let token = announcement(4).token;
        let impostor = as_nobody(|| listen(token).unwrap());
        let accepting = thread::spawn(move || {
            let (lane, _) = impostor.accept().unwrap();
            take_over(&lane).map(|_| ())
        });
        let (input, _far) = io::pipe().unwrap();
        let mut answer = Vec::new();
        let error = serve_lane(token, input, &mut answer).unwrap_err();
        assert_eq!((error.kind(), answer.len()), (io::ErrorKind::PermissionDenied, 0));
        accepting.join().unwrap().unwrap_err();
    }
}
