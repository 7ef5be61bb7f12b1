//! The connection below a WebSocket: TCP to its host, or a tunnel through a proxy.

use std::path::Path;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, timeout as within};

use crate::log::debug;
use crate::remote::error::RemoteError;
use crate::remote::proxies::{Proxies, Proxy, Scheme};
use crate::remote::proxy_error::ProxyError;
use crate::remote::tcp::{self, ByteStream};
use crate::remote::tls::Tls;
use crate::remote::tunnel::{self, Destination};
use crate::remote::websocket::Address;

/// A connection to a WebSocket's host.
pub(super) struct Dialled {
    pub(super) stream: Box<dyn ByteStream>,
    /// True if no proxy is in between.
    pub(super) is_direct: bool,
}

/// Connects to `address`, through a proxy if `proxies` names one. Each step has the timeout.
pub(super) async fn dial(
    address: &Address,
    proxies: &Proxies,
    ca_cert: Option<&Path>,
    timeout: Duration,
) -> Result<Dialled, RemoteError> {
    let endpoint = address.endpoint();
    let Some(proxy) = proxies.to(address.encrypted, &address.host, address.port)? else {
        let stream = tcp::connect(&address.host, address.port, &endpoint, timeout).await?;
        return Ok(Dialled { stream: Box::new(stream), is_direct: true });
    };
    let begin = Instant::now();
    let tunnel = through(address, &proxy, ca_cert, timeout).await;
    let (ms, is_ok) = (begin.elapsed().as_millis(), tunnel.is_ok());
    debug!("connect ok={is_ok} ms={ms} endpoint={endpoint} step=proxy proxy={proxy}");
    match tunnel {
        Ok(stream) => Ok(Dialled { stream, is_direct: false }),
        Err(source) => {
            let (variable, source) = (proxy.variable(), Box::new(source));
            Err(RemoteError::Proxy { endpoint, proxy: proxy.to_string(), variable, source })
        }
    }
}

/// Opens a tunnel through the proxy.
async fn through(
    address: &Address,
    proxy: &Proxy,
    ca_cert: Option<&Path>,
    timeout: Duration,
) -> Result<Box<dyn ByteStream>, ProxyError> {
    let late = |_| ProxyError::TimedOut(timeout);
    let name = proxy.authority();
    let connecting = tcp::connect(&proxy.host, proxy.port, &name, timeout).await;
    let stream = connecting.map_err(|error| match error {
        RemoteError::Connect { source, .. } => ProxyError::Connect(source),
        _ => ProxyError::TimedOut(timeout),
    })?;
    let mut stream: Box<dyn ByteStream> = match proxy.scheme {
        Scheme::Https => {
            let failed = |error| match error {
                RemoteError::Tls { source, .. } => ProxyError::Tls(source),
                _ => ProxyError::Unfit("its host is no name that a certificate can have"),
            };
            let tls = Tls::new(ca_cert, &name).map_err(failed)?;
            let connecting = tls.connect(&proxy.host, stream, &name);
            Box::new(within(timeout, connecting).await.map_err(late)?.map_err(failed)?)
        }
        _ => Box::new(stream),
    };
    let asking = async {
        let must_be_resolved = Destination::must_be_resolved(&address.host, proxy.scheme);
        let resolved = if must_be_resolved { Some(resolve(address, proxy.scheme).await?) } else { None };
        let to = Destination { host: &address.host, port: address.port, address: resolved };
        tunnel::ask(&mut stream, proxy, to).await
    };
    within(timeout, asking).await.map_err(late)??;
    Ok(stream)
}

/// Resolves the host's name for a proxy that wants an address.
async fn resolve(address: &Address, scheme: Scheme) -> Result<std::net::IpAddr, ProxyError> {
    let found = lookup_host((address.host.as_str(), address.port)).await.map_err(ProxyError::Unresolved)?;
    let mut addresses = found.map(|address| address.ip());
    let address = addresses.find(|address| scheme != Scheme::Socks4 || address.is_ipv4());
    address.ok_or(ProxyError::Unfit("SOCKS4 knows no IPv6 addresses"))
}
