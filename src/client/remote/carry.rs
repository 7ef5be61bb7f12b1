//! One forwarded connection: a channel and a local socket.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::remote::socks::{Request, Socks, Step};
use crate::remote::spool::Spool;
use crate::remote::tcp::ByteStream;

/// Bytes of one read: an OpenSSH packet.
const READ_BYTES: usize = 32 << 10;

/// Time that a client has for its SOCKS request.
const SOCKS_TIMEOUT: Duration = Duration::from_secs(30);

/// Carries bytes until both directions have ended. The end of one direction leaves the other one
/// open. `spool` may hold bytes for the socket, and `early` has bytes for the channel.
pub(super) async fn carry(
    (mut read, write): (ChannelReadHalf, ChannelWriteHalf<Msg>),
    early: Bytes,
    socket: Box<dyn ByteStream>,
    mut spool: Spool,
    stalled: impl Fn(),
) {
    let (mut from_socket, mut to_socket) = tokio::io::split(socket);
    let mut sending = pin!(async {
        if write.data_bytes(early).await.is_err() {
            return;
        }
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match from_socket.read_buf(&mut buffer).await {
                Ok(1..) if write.data_bytes(buffer.split().freeze()).await.is_ok() => {}
                // A reset, too, ends this direction; the other one ends when it writes.
                _ => break,
            }
        }
        let _ = write.eof().await;
    });
    let (mut is_sent, mut is_ended, mut is_shut, mut is_closed) = (false, false, false, false);
    let mut next = Bytes::new();
    loop {
        if next.is_empty() {
            match spool.pop() {
                Ok(Some(bytes)) => next = bytes,
                Ok(None) if is_closed => return,
                Ok(None) if is_ended && !is_shut => {
                    is_shut = true;
                    let _ = to_socket.shutdown().await;
                }
                Ok(None) => {}
                // Lost bytes must not look like the end.
                Err(_) => break,
            }
        }
        if is_sent && is_shut {
            break;
        }
        let has_room = spool.has_room();
        tokio::select! {
            () = &mut sending, if !is_sent && !is_closed => is_sent = true,
            written = to_socket.write(&next), if !next.is_empty() => match written {
                Ok(written) => next.advance(written),
                // Only a reset makes a write fail, and it ends both directions.
                Err(_) => break,
            },
            message = read.wait(), if !is_closed && has_room => match message {
                Some(ChannelMsg::Data { data }) => {
                    spool.push(data);
                    if !spool.has_room() {
                        stalled();
                    }
                }
                Some(ChannelMsg::Eof) => is_ended = true,
                // Bytes that have arrived still go to the socket.
                Some(ChannelMsg::Close) => is_closed = true,
                Some(_) => {}
                None => return,
            },
        }
    }
    let _ = write.close().await;
}

/// Reads the SOCKS request of a local client.
///
/// # Errors
/// The client sent something else, or nothing in time.
pub(super) async fn socks_of_socket(socket: &mut Box<dyn ByteStream>) -> io::Result<Request> {
    let negotiation = async {
        let (mut socks, mut buffer) = (Socks::default(), BytesMut::new());
        loop {
            match socks.step() {
                Step::More => {
                    if socket.read_buf(&mut buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    socks.push(&buffer.split());
                }
                Step::Reply(reply) => socket.write_all(&reply).await?,
                Step::Connect(request) => return Ok(request),
                Step::Refuse(reply) => {
                    socket.write_all(&reply).await?;
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
    };
    tokio::time::timeout(SOCKS_TIMEOUT, negotiation).await?
}

/// Reads the SOCKS request of a client at the other end of a channel.
///
/// # Errors
/// The client sent something else, or nothing in time, or the channel ended.
pub(super) async fn socks_of_channel(channel: &mut Channel<Msg>) -> io::Result<Request> {
    let negotiation = async {
        let mut socks = Socks::default();
        loop {
            match socks.step() {
                Step::More => match channel.wait().await {
                    Some(ChannelMsg::Data { data }) => socks.push(&data),
                    Some(ChannelMsg::Eof | ChannelMsg::Close) | None => {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    Some(_) => {}
                },
                Step::Reply(reply) => channel.data_bytes(reply).await.map_err(io::Error::other)?,
                Step::Connect(request) => return Ok(request),
                Step::Refuse(reply) => {
                    channel.data_bytes(reply).await.map_err(io::Error::other)?;
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
    };
    tokio::time::timeout(SOCKS_TIMEOUT, negotiation).await?
}
