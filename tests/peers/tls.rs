//! TLS in front of a bridge, with a certificate of a CA that only this test knows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::world::World;

/// A TLS proxy in front of a bridge. It ends when dropped.
pub(crate) struct Tls {
    /// `wss://localhost:PORT`.
    pub(crate) url: String,
    _runtime: Runtime,
}

impl Tls {
    /// Puts TLS in front of the bridge at `url`, valid for `localhost`. Writes the CA's certificate
    /// to `ca.pem`, and that of an unrelated CA to `other-ca.pem`.
    pub(crate) fn before(url: &str, world: &World) -> Tls {
        Tls::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), "localhost", url, world)
    }

    /// The same, valid for another name.
    pub(crate) fn named(name: &str, url: &str, world: &World) -> Tls {
        Tls::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), name, url, world)
    }

    /// The same at the bridge port of VMs, valid for its loopback address.
    pub(crate) fn as_of_a_vm(url: &str, world: &World) -> (Tls, IpAddr) {
        // The port is fixed, so each test of each process has its own address.
        static COUNT: AtomicU8 = AtomicU8::new(32);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = IpAddr::from([127, COUNT.fetch_add(1, Ordering::Relaxed), high, low]);
        (Tls::at((address, 2222).into(), &address.to_string(), url, world), address)
    }

    fn at(address: SocketAddr, name: &str, url: &str, world: &World) -> Tls {
        Tls::with(address, name, url, world, |_| ())
    }

    /// The same with a certificate that is valid from the first of these years to the last.
    pub(crate) fn valid_in(years: std::ops::Range<i32>, url: &str, world: &World) -> Tls {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Tls::with(anywhere, "localhost", url, world, |params| {
            params.not_before = date_time_ymd(years.start, 1, 1);
            params.not_after = date_time_ymd(years.end, 1, 1);
        })
    }

    /// The same with a self-signed certificate, as `openssl req -x509` makes it: that of a CA. It
    /// is written to `self.pem`.
    pub(crate) fn self_signed(url: &str, world: &World) -> Tls {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        world.tree(".").file("self.pem", certificate.pem());
        Tls::serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), "localhost", url, &certificate, &key)
    }

    fn with(
        address: SocketAddr,
        name: &str,
        url: &str,
        world: &World,
        adapt: impl FnOnce(&mut CertificateParams),
    ) -> Tls {
        let (ca, other) = (authority(), authority());
        world.tree(".").file("ca.pem", ca.1).file("other-ca.pem", other.1);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        adapt(&mut params);
        let certificate = params.signed_by(&key, &ca.0).expect("a certificate");
        Tls::serve(address, name, url, &certificate, &key)
    }

    fn serve(address: SocketAddr, name: &str, url: &str, certificate: &Certificate, key: &KeyPair) -> Tls {
        let target: SocketAddr = url.strip_prefix("ws://").expect("ws").parse().expect("an address");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("a configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind(address)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut inside) = acceptor.accept(stream).await else { return };
                    let Ok(mut outside) = TcpStream::connect(target).await else { return };
                    let _ = copy_bidirectional(&mut inside, &mut outside).await;
                });
            }
        });
        Tls { url: format!("wss://{name}:{port}"), _runtime: runtime }
    }
}

fn authority() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    (Issuer::new(params, key), certificate.pem())
}
