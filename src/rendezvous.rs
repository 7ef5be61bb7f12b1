//! Where a lane meets the agent whose lane it is: two processes of one login, started over two channels.
//!
//! The process of a lane hands its standard input to the agent, waits until that has taken it, says so on its
//! standard output, and stays until the agent is done with the lane. So no byte passes through it, and it ends
//! by itself when the agent does, however that ends.
//!
//! They meet at a Unix socket with an abstract name, which leaves nothing on any disk. Anybody on the machine
//! can connect to such a socket, or can have taken the name before; so both ends ask the kernel who the other
//! one is, and have nothing to do with another user. That can at most keep lanes from joining, and an exchange
//! does without them.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::exchange::lanes::{JoinLanes, Joining};
use crate::wire::hello::MAGIC;
use crate::wire::lanes::{Announcement, Token};

/// How long agent and lanes wait for each other. The announcement leaves before any lane is started, but may
/// queue behind 2 MiB.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a lane looks whether the agent is there.
const LOOK: Duration = Duration::from_millis(5);

/// How long a lane that has connected may take to hand over its input.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);

/// The one byte of either message.
const WORD: [u8; 1] = [1];

/// The whole life of a lane's process: hands `input` to the agent that announced `token`, says on `output` when
/// that has it, and returns when the agent is done with it.
///
/// # Errors
/// Where there is no such agent, or it takes no further lane.
pub fn serve_lane(token: Token, input: impl AsFd, output: &mut impl Write) -> io::Result<()> {
    let mut agent = connect(token)?;
    check_own(&agent)?;
    hand_over(&agent, input.as_fd())?;
    agent.read_exact(&mut WORD.clone())?;
    output.write_all(&MAGIC)?;
    output.flush()?;
    // Nothing more is said: this waits for the end. A broken connection is one too.
    let _ = agent.read(&mut WORD.clone());
    Ok(())
}

/// The agent's end: lets lanes in.
#[derive(Debug)]
pub struct Rendezvous;

impl JoinLanes for Rendezvous {
    fn join(&self, announcement: Announcement, joining: Joining) {
        // Where nobody can listen no lane joins, and the exchange goes on without.
        if let Ok(listener) = listen(announcement.token) {
            let _ = thread::Builder::new().spawn(move || let_in(&listener, &joining));
        }
    }
}

/// Lets lanes in until all have joined.
fn let_in(listener: &UnixListener, joining: &Joining) {
    let start = Instant::now();
    while joining.is_open() && start.elapsed() < PATIENCE {
        match listener.accept() {
            // One that is refused sees the end of its connection.
            Ok((lane, _)) => drop(admit(lane, joining)),
            // Nobody came for a while, or there is no descriptor for whoever did.
            Err(_) => thread::sleep(LOOK),
        }
    }
}

fn admit(lane: UnixStream, joining: &Joining) -> io::Result<()> {
    check_own(&lane)?;
    lane.set_read_timeout(Some(HAND_OVER_PATIENCE))?;
    let input = File::from(take_over(&lane)?);
    let mut answer = lane.try_clone()?;
    if joining.add(Box::new(Handed { input, _lane: lane })) {
        // The lane is used once this has arrived.
        answer.write_all(&WORD)?;
    }
    Ok(())
}

/// A lane's input, and the connection whose end tells its process that it may go.
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
    // Also for accepting: whoever waits looks at the clock now and then.
    set_socket_timeout(&listener, Timeout::Recv, Some(Duration::from_secs(1)))?;
    Ok(listener)
}

/// Connects to the agent; it may not have read the announcement yet.
fn connect(token: Token) -> io::Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect_addr(&name(token)?) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && start.elapsed() < PATIENCE => {
                thread::sleep(LOOK);
            }
            result => return result,
        }
    }
}

/// Whether the other end is a process of the same user, by what the kernel knows.
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
