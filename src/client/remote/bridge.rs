//! A bridge on its own: a WebSocket that carries arbitrary bytes. SSH uses one, and `ksync proxy`
//! offers one to other programs. A bridge that is merely held open keeps a session awake.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::remote::dial::{Dialled, dial};
use crate::remote::error::{ConnectionStatus, DisconnectReason, RemoteError, TLS_HANDSHAKE};
use crate::remote::greeting::{self, Greeted};
use crate::remote::protocol::{Protocol, Wanted};
use crate::remote::proxies::Proxies;
use crate::remote::tcp::ByteStream;
use crate::remote::timeout::{GOODBYE_TIMEOUT, within};
use crate::remote::tls::Tls;
use crate::remote::websocket::{self, Address};

/// Bytes that the proxy reads at a time.
const PROXY_BYTES: usize = 64 << 10;

/// Connect timeout and silence timeout of a WebSocket that is only held open.
const HOLD_TIMEOUT: Duration = Duration::from_secs(10);
const HOLD_SILENCE: Duration = Duration::from_secs(60);

/// Carries bytes between standard input and output and the bridge at `url`, until either side ends.
/// It replaces `websocat --binary` as a `ProxyCommand`.
///
/// # Errors
/// The bridge cannot be opened, or the connection broke.
pub fn proxy<'a>(
    url: &'a str,
    ca_cert: Option<&'a Path>,
    timeout: Duration,
    silence: Duration,
) -> LocalBoxFuture<'a, Result<(), RemoteError>> {
    // Boxed, or each crate that calls this would compile all of it once more.
    Box::pin(carry(url, ca_cert, timeout, silence))
}

async fn carry(
    url: &str,
    ca_cert: Option<&Path>,
    timeout: Duration,
    silence: Duration,
) -> Result<(), RemoteError> {
    let (address, connection_status) = (Address::parse(url)?, ConnectionStatus::default());
    let proxies = Proxies::of_environment();
    let (stream, socket) = open(&address, ca_cert, &proxies, timeout, silence, &connection_status).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let up = async {
        tokio::io::copy(&mut tokio::io::stdin(), &mut writer).await?;
        writer.shutdown().await
    };
    let down = async {
        let mut stdout = tokio::io::stdout();
        let mut buffer = vec![0; PROXY_BYTES];
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                return io::Result::Ok(());
            }
            stdout.write_all(buffer.get(..count).unwrap_or_default()).await?;
            // SSH waits for each packet.
            stdout.flush().await?;
        }
    };
    let carried = tokio::select! {
        // SSH has disconnected; a bridge has no half-closed connections.
        _ = up => Ok(()),
        carried = down => carried,
    };
    if let Err(source) = carried
        && source.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(RemoteError::Output { source });
    }
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, socket).await;
    match connection_status.known() {
        Some(DisconnectReason::Broken(_)) | None => Ok(()),
        Some(source) => Err(RemoteError::Lost { endpoint: address.endpoint(), source }),
    }
}

/// Opens a WebSocket and holds it open, with nothing but pings, until the other side closes it.
/// Calls `opened` once it is open. Returns why it is not open, or not any more.
pub async fn hold_open(url: &str, ca_cert: Option<&Path>, opened: impl FnOnce()) -> RemoteError {
    let connection_status = ConnectionStatus::default();
    let opening = async {
        let (address, proxies) = (Address::parse(url)?, Proxies::of_environment());
        let stream =
            open(&address, ca_cert, &proxies, HOLD_TIMEOUT, HOLD_SILENCE, &connection_status).await?;
        Ok((address, stream))
    };
    let (address, (stream, socket)) = match opening.await {
        Ok(opened) => opened,
        Err(error) => return error,
    };
    opened();
    let (mut reader, _writer) = tokio::io::split(stream);
    // Received bytes are discarded.
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    socket.abort();
    connection_status.error(&address.endpoint())
}

/// Opens the bridge at `address`. Returns it as a byte stream, with the task that owns the
/// WebSocket.
pub(super) async fn open(
    address: &Address,
    ca_cert: Option<&Path>,
    proxies: &Proxies,
    timeout: Duration,
    silence: Duration,
    connection_status: &ConnectionStatus,
) -> Result<(DuplexStream, JoinHandle<()>), RemoteError> {
    let endpoint = address.endpoint();
    let tls = address.encrypted.then(|| Tls::new(ca_cert, &endpoint)).transpose()?;
    let begin = Instant::now();
    let Dialled { stream, is_direct } = dial(address, proxies, ca_cert, timeout).await?;
    let round_trip = begin.elapsed();
    let host = address.host.as_str();
    // A port behind a proxy is not asked for its protocol.
    let port = is_direct.then_some((host, address.port));
    let opening = |stream, greeting, wanted| {
        let endpoint = &endpoint;
        async move {
            let opening = websocket::open(address, stream, silence, connection_status.clone());
            match within(timeout, "open a WebSocket to", endpoint, opening).await {
                Ok(opened) => Ok(opened),
                Err(error) => Err(greeting::explain(error, &greeting, wanted, port).await),
            }
        }
    };
    let Some(tls) = tls else {
        let (stream, greeting) = Greeted::new(stream, Wanted::Ws);
        return opening(Box::new(stream) as Box<dyn ByteStream>, greeting, Wanted::Ws).await;
    };
    let wanted = Wanted::Wss;
    let (stream, greeting) = Greeted::new(stream, wanted);
    let handshake = async {
        tokio::select! {
            connected = tls.connect(host, stream, &endpoint) => connected,
            () = greeting::speaks_http(&greeting, port, round_trip) => {
                let (endpoint, protocol) = (endpoint.clone(), Protocol::Http);
                Err(RemoteError::OtherProtocol { endpoint, wanted, protocol })
            }
        }
    };
    match within(timeout, TLS_HANDSHAKE, &endpoint, handshake).await {
        Ok(stream) => {
            let (stream, greeting) = Greeted::new(stream, Wanted::WsInTls);
            opening(Box::new(stream), greeting, Wanted::WsInTls).await
        }
        Err(error) => Err(greeting::explain(error, &greeting, wanted, port).await),
    }
}
