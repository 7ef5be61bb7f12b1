//! TLS for `wss://`: the platform's roots, and a private CA's where one is given.

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

/// What is needed to make TLS connections. Made before connecting, so that a bad CA file costs no time.
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Trusts what the platform trusts, and `ca_cert`.
    pub(super) fn new(ca_cert: Option<&Path>, endpoint: &str) -> Result<Self, RemoteError> {
        client_config(ca_cert, endpoint).map(|config| Self(TlsConnector::from(config)))
    }

    /// Makes `stream` a TLS stream to `host`, whose certificate must be good for that name.
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

/// How TLS is spoken by whoever trusts what the platform trusts, and `ca_cert`.
///
/// # Errors
/// Where the file or the platform's roots cannot be used; `endpoint` is who could not be reached for that.
pub(crate) fn client_config(
    ca_cert: Option<&Path>,
    endpoint: &str,
) -> Result<Arc<ClientConfig>, RemoteError> {
    let roots = ca_cert.map_or_else(|| Ok(Vec::new()), read_roots)?;
    let failed = |error| RemoteError::Tls { endpoint: endpoint.into(), source: std::io::Error::other(error) };
    config(roots).map(Arc::new).map_err(failed)
}

fn config(roots: Vec<CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    // Named, not taken from the process: two providers in one program make rustls refuse to choose.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new_with_extra_roots(roots, provider.clone())?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    // "Dangerous" is only the name of the door; what goes through it is the platform's own verifier.
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
