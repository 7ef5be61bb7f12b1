//! TLS for `wss://`, with the platform's roots and, if given, a private CA's.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::UnixTime;
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, ServerName};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::remote::error::RemoteError;
use crate::remote::tls_error::TlsError;

/// Connector for TLS connections. It is made before connecting, so that a bad CA file costs no
/// time.
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Trusts the platform's roots and `ca_cert`.
    pub(super) fn new(ca_cert: Option<&Path>, endpoint: &str) -> Result<Self, RemoteError> {
        client_config(ca_cert, endpoint).map(|config| Self(TlsConnector::from(config)))
    }

    /// Runs TLS over `stream`. The certificate must be valid for `host`.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
        endpoint: &str,
    ) -> Result<TlsStream<S>, RemoteError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| RemoteError::Url {
            reason: "its host is no name that a certificate can have".into(),
        })?;
        let failed = |error: io::Error| RemoteError::Tls { endpoint: endpoint.into(), source: error.into() };
        self.0.connect(name, stream).await.map_err(failed)
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
    let failed =
        |error: Error| RemoteError::Tls { endpoint: endpoint.into(), source: TlsError::from(&error) };
    config(roots).map(Arc::new).map_err(failed)
}

fn config(roots: Vec<CertificateDer<'static>>) -> Result<ClientConfig, Error> {
    // The provider is explicit: with two providers in one program, rustls refuses to choose a
    // default.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new_with_extra_roots(roots.clone(), provider.clone())?;
    let verifier = CertificateVerifier { verifier, roots };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    // The verifier here is the platform's own, and only a certificate of `roots` itself passes
    // without it; the word "dangerous" is only rustls's name for this method.
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// The platform's verifier. It also accepts a server that shows one of the additional roots as its
/// own certificate: the self-signed certificates of `openssl req -x509` are those of a CA.
#[derive(Debug)]
struct CertificateVerifier {
    verifier: Verifier,
    roots: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // webpki checks the time before this.
            Err(error) if is_self_signed(&error) && self.roots.iter().any(|root| root == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn is_self_signed(error: &Error) -> bool {
    matches!(TlsError::from(error), TlsError::SelfSigned)
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, RemoteError> {
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| RemoteError::CaCert { path: path.into(), source };
    let roots = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| match error {
            pem::Error::Io(error) => failed(Box::new(error)),
            error => failed(error.to_string().into()),
        })?;
    if roots.is_empty() {
        return Err(failed("there is no certificate in it".into()));
    }
    Ok(roots)
}
