//! The API's connection through a proxy. The HTTP client opens it by the same handshake as the
//! connection to a VM, so both follow the same settings and fail with the same errors.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::FutureExt;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ureq::Error;
use ureq::http::Uri;
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport, TransportAdapter,
};

use crate::kernel::tls::TlsConnector;
use crate::remote::{Destination, Proxy, ProxyError, RemoteError, Scheme, TlsError, ask};

/// Opens a tunnel, if there is a proxy; else the next connector connects.
#[derive(Debug)]
pub(super) struct ProxyConnector {
    pub(super) proxy: Option<Proxy>,
    /// For a proxy behind TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The API's endpoint, for errors.
    pub(super) endpoint: String,
}

impl Connector for ProxyConnector {
    type Out = Tunnel;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Tunnel>, Error> {
        let Some(proxy) = &self.proxy else { return Ok(None) };
        self.tunnel(details, proxy).map(Some).map_err(|source| {
            let (endpoint, variable, source) = (self.endpoint.clone(), proxy.variable(), Box::new(source));
            let error = RemoteError::Proxy { endpoint, proxy: proxy.to_string(), variable, source };
            Error::Io(io::Error::other(error))
        })
    }
}

impl ProxyConnector {
    fn tunnel(&self, details: &ConnectionDetails, proxy: &Proxy) -> Result<Tunnel, ProxyError> {
        let begin = Instant::now();
        let left = || left(details.timeout, begin);
        let late = || ProxyError::TimedOut(*details.timeout.after);
        let nothing = || ProxyError::Connect(io::ErrorKind::NotConnected.into());
        let unreachable = |error| match error {
            Error::Timeout(_) => late(),
            Error::HostNotFound => ProxyError::Connect(io::Error::other("its name cannot be resolved")),
            error => ProxyError::Connect(error.into_io()),
        };
        let scheme = if proxy.scheme == Scheme::Https { "https" } else { "http" };
        let uri: Uri = format!("{scheme}://{}", proxy.authority())
            .parse()
            .map_err(|_| ProxyError::Unfit("its host cannot be that of a machine"))?;
        let addresses = details.resolver.resolve(&uri, details.config, left()).map_err(unreachable)?;
        let mut to_proxy = ConnectionDetails {
            uri: &uri,
            addrs: addresses,
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: left(),
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let tcp = TcpConnector::default().connect(&to_proxy, None::<()>).map_err(unreachable)?;
        let tcp = tcp.ok_or_else(nothing)?.boxed();
        to_proxy.timeout = left();
        let stream =
            TlsConnector(self.tls.clone()).connect(&to_proxy, Some(tcp)).map_err(|error| match error {
                Error::Timeout(_) => late(),
                error => ProxyError::Tls(TlsError::from(error.into_io())),
            })?;
        let mut stream =
            TransportAdapter::new(stream.ok_or_else(nothing)?.boxed(), details.current_time.clone());
        let to = destination(details, proxy, left())?;
        stream.set_timeout(left());
        let mut stream = Blocking(stream);
        // Every read and write blocks, so the future is ready at once.
        let asked = ask(&mut stream, proxy, to).now_or_never().ok_or_else(nothing)?;
        asked.map_err(|error| match error {
            ProxyError::Closed(error) => match Error::from(error) {
                Error::Timeout(_) => late(),
                error => ProxyError::Closed(error.into_io()),
            },
            error => error,
        })?;
        Ok(Tunnel(stream.0.into_inner()))
    }
}

/// The rest of a timeout that began at `begin`.
fn left(timeout: NextTimeout, begin: Instant) -> NextTimeout {
    match timeout.after {
        Duration::Exact(after) => {
            NextTimeout { after: Duration::Exact(after.saturating_sub(begin.elapsed())), ..timeout }
        }
        Duration::NotHappening => timeout,
    }
}

/// The API's host, resolved if the proxy does not do that.
fn destination<'a>(
    details: &'a ConnectionDetails<'_>,
    proxy: &Proxy,
    timeout: NextTimeout,
) -> Result<Destination<'a>, ProxyError> {
    const HTTPS_PORT: u16 = 443;
    let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = details.uri.port_u16().unwrap_or(HTTPS_PORT);
    if !Destination::must_be_resolved(host, proxy.scheme) {
        return Ok(Destination { host, port, address: None });
    }
    let found = details.resolver.resolve(details.uri, details.config, timeout);
    let found = found.map_err(|error| ProxyError::Unresolved(error.into_io()))?;
    let mut addresses = found.iter().map(|address| address.ip());
    let address = addresses.find(|address| proxy.scheme != Scheme::Socks4 || address.is_ipv4());
    let address = address.ok_or(ProxyError::Unfit("SOCKS4 knows no IPv6 addresses"))?;
    Ok(Destination { host, port, address: Some(address) })
}

/// A blocking stream whose reads and writes are always ready.
struct Blocking(TransportAdapter);

impl AsyncRead for Blocking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.0.read(buffer.initialize_unfilled())?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Blocking {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection to the host behind a proxy. TLS with the proxy is not TLS with the host.
#[derive(Debug)]
pub(super) struct Tunnel(Box<dyn Transport>);

impl Transport for Tunnel {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }
}
