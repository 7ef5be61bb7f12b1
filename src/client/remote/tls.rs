//! TLS for `wss://`, with the platform's roots and, if given, a private CA's.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::remote::error::RemoteError;

/// Connector for TLS connections. It is made before connecting, so that a bad CA file costs no
/// time.
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Trusts the platform's roots and `ca_cert`.
    pub(super) fn new(ca_cert: Option<&Path>, endpoint: &str) -> Result<Self, RemoteError> {
        client_config(ca_cert, endpoint).map(|config| Self(TlsConnector::from(config)))
    }

    /// Runs TLS over `stream`. The certificate must be valid for `host`.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
        endpoint: &str,
    ) -> Result<TlsStream<TcpStream>, RemoteError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| RemoteError::Url {
            reason: "its host is no name that a certificate can have".into(),
        })?;
        self.0
            .connect(name, stream)
            .await
            .map_err(|source| RemoteError::Tls { endpoint: endpoint.into(), source })
    }
}

/// TLS configuration that trusts the platform's roots and `ca_cert`.
///
/// # Errors
/// The file or the platform's roots are unusable. The error names `endpoint` as the server that was
/// not reached.
pub(crate) fn client_config(
    ca_cert: Option<&Path>,
    endpoint: &str,
) -> Result<Arc<ClientConfig>, RemoteError> {
    let roots = ca_cert.map_or_else(|| Ok(Vec::new()), read_roots)?;
    let failed = |error| RemoteError::Tls { endpoint: endpoint.into(), source: std::io::Error::other(error) };
    config(roots).map(Arc::new).map_err(failed)
}

fn config(roots: Vec<CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    // The provider is explicit: with two providers in one program, rustls refuses to choose a
    // default.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new_with_extra_roots(roots, provider.clone())?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    // The verifier here is the platform's own; the word "dangerous" is only rustls's name for this
    // method.
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, RemoteError> {
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| RemoteError::CaCert { path: path.into(), source };
    let roots = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(Box::new(error)))?;
    if roots.is_empty() {
        return Err(failed("there is no certificate in it".into()));
    }
    Ok(roots)
}
