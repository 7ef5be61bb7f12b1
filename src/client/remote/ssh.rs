//! The SSH session: russh's configuration, and the check of the host key.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use russh::client::{
    self, ChannelOpenHandle, Config, GexParams, Handle, Handler, Msg, Session, connect_stream,
};
use russh::keys::ssh_key::Algorithm;
use russh::keys::{Certificate, EcdsaCurve, HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{AlgorithmKind, Channel, Disconnect, Names, Preferred, SshId, cipher, compression, kex, mac};
use tokio::sync::watch;

use crate::log::debug;
use crate::remote::error::{ConnectionStatus, DisconnectReason, RemoteError};
use crate::remote::facts::HostFacts;
use crate::remote::hostkey::HostKeys;
use crate::remote::hostkey_error::HostKeyError;
use crate::remote::inbound::{Inbound, Incoming, Listener};
use crate::remote::tcp::{ByteStream, GuardedStream};
use crate::tree::path::escape;

/// AES-GCM comes first: 417 MB/s, against 264 MB/s with ChaCha20, which russh prefers. The machine
/// had AES instructions, as all relevant ones have. AES-CTR is for servers that offer nothing else.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// The cipher of a short offer. All OpenSSH servers have it, unless their configuration says no. It
/// needs no MAC, but lists must not be empty.
pub(super) const LEAN_CIPHER: &str = "aes256-gcm@openssh.com";
pub(super) const LEAN_MAC: &str = "hmac-sha2-256";

/// Parts of the names of ciphers that need no MAC. The fast order offers no others.
const AEADS: [&str; 2] = ["-gcm", "-poly1305"];

/// Key exchanges that OpenSSH's client offers, in order of preference. russh has no sntrup761: a
/// server that has nothing else is met by ksync's own client, see `own`.
const KEY_EXCHANGES: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

/// MACs for AES-CTR that OpenSSH's client offers, in order of preference. HMAC with SHA-1 is not
/// broken. russh has no UMAC: see `own`.
const MACS: &[mac::Name] = &[
    mac::HMAC_SHA256_ETM,
    mac::HMAC_SHA512_ETM,
    mac::HMAC_SHA1_ETM,
    mac::HMAC_SHA256,
    mac::HMAC_SHA512,
    mac::HMAC_SHA1,
];

/// No SSH compression, because ksync's own layers compress content whose type they know.
const COMPRESSIONS: &[compression::Name] = &[compression::NONE];

/// Supported host key types, in order of preference. RSA with SHA-1 (`ssh-rsa`) is missing.
static HOST_KEYS: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// Sizes of a group for Diffie-Hellman, as OpenSSH's client asks for them.
const DH_BITS_MIN: usize = 2048;
const DH_BITS_MAX: usize = 8192;

/// Algorithms of a server that an error names.
const ALGORITHMS_SHOWN: usize = 8;

/// Limits of the receive window. The minimum is the window of OpenSSH's client, and of russh at any
/// time. The maximum is the most that may wait in this process.
const WINDOW_BYTES_MIN: u32 = 2 << 20;
pub(super) const WINDOW_BYTES_MAX: u32 = 32 << 20;

/// Data rate for which the receive window is sized. A download reaches at least half of it, because
/// russh reopens the window when half of it is used.
const WINDOW_BYTES_PER_SECOND: u128 = 200_000_000;

/// Messages that may wait for the reader of a channel. With this window, 16 were faster (430–568
/// MB/s) than the default of 100 (236–342 MB/s).
const CHANNEL_MESSAGES: usize = 16;

/// Unanswered keepalives after which the connection counts as dead.
pub(super) const KEEPALIVES: u32 = 2;

/// Receive window for this round trip.
///
/// A larger window costs time: sshd keeps what the link does not take. Each packet by which its
/// buffer grows makes it copy the whole buffer (`sshbuf_allocate` in OpenSSH's sshbuf.c). Until the
/// buffer holds 32 MiB, sshd has copied 16 GiB. With that window, 50 MB over 100 Mbit/s and 50 ms
/// took 4.6 to 7.2 s, because sshd had no time to send. With windows up to 20 MiB they always took
/// 4.6 s.
pub(super) fn window_bytes(round_trip: Duration) -> u32 {
    let bytes = round_trip.as_micros() * WINDOW_BYTES_PER_SECOND / 1_000_000;
    u32::try_from(bytes).unwrap_or(u32::MAX).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
}

/// Opens an SSH session over `stream`, which has this round trip, to a host that `host_keys` knows.
pub(super) async fn handshake(
    stream: GuardedStream<Box<dyn ByteStream>>,
    round_trip: Duration,
    host_keys: HostKeys,
    silence: Duration,
    endpoint: &str,
    connection_status: ConnectionStatus,
    hooks: Hooks,
) -> Result<Handle<Client>, RemoteError> {
    let known_kinds = host_keys.known_kinds().map_err(|error| untrusted(endpoint, error))?;
    let certified = host_keys.has_authority().map_err(|error| untrusted(endpoint, error))?;
    let config = Arc::new(config(&known_kinds, certified, window_bytes(round_trip), silence));
    let client = Client { host_keys, silence, connection_status: connection_status.clone(), hooks };
    connect_stream(config, stream, client).await.map_err(|error| match error {
        ClientError::HostKey(source) => untrusted(endpoint, source),
        ClientError::Ssh(russh::Error::NoCommonAlgo { kind, ours, theirs }) => {
            no_common_algorithm(endpoint, kind, ours, &theirs)
        }
        ClientError::Ssh(source) => match connection_status.known() {
            Some(source) => RemoteError::Lost { endpoint: endpoint.into(), source },
            None => RemoteError::Handshake { endpoint: endpoint.into(), source },
        },
    })
}

/// Error for a host key that is not trusted.
pub(super) fn untrusted(endpoint: &str, error: HostKeyError) -> RemoteError {
    match error {
        HostKeyError::NotKept { path, source } => RemoteError::NotKept { path, source },
        error => RemoteError::HostKey { endpoint: endpoint.into(), source: Box::new(error) },
    }
}

pub(super) fn no_common_algorithm(
    endpoint: &str,
    kind: AlgorithmKind,
    mut ours: Vec<String>,
    theirs: &[String],
) -> RemoteError {
    let what = match kind {
        AlgorithmKind::Kex => "a key exchange",
        AlgorithmKind::Key => "a type of host key",
        AlgorithmKind::Cipher => "a cipher",
        AlgorithmKind::Compression => "a compression",
        AlgorithmKind::Mac => "a MAC",
    };
    // Extensions are negotiated like key exchanges, but are none.
    let is_algorithm = |name: &String| !name.starts_with("ext-info-") && !name.starts_with("kex-strict-");
    ours.retain(is_algorithm);
    let theirs = theirs.iter().filter(|name| is_algorithm(name)).take(ALGORITHMS_SHOWN);
    let theirs = theirs.map(|name| escape(name.as_bytes()).into_owned()).collect();
    RemoteError::NoCommonAlgorithm { what, endpoint: endpoint.into(), theirs, ours }
}

/// Types of host key in the order in which they are asked for: those first by which the host is
/// known.
pub(super) fn host_key_order(known_kinds: &[Algorithm]) -> Vec<Algorithm> {
    // A known RSA key is known for each hash.
    let is_known = |kind: &Algorithm| known_kinds.iter().any(|known| known.as_str() == key_type(kind));
    let (mut host_keys, others): (Vec<_>, Vec<_>) = HOST_KEYS.iter().cloned().partition(is_known);
    host_keys.extend(others);
    host_keys
}

fn config(known_kinds: &[Algorithm], certified: bool, window_size: u32, silence: Duration) -> Config {
    Config {
        client_id: SshId::Standard(Cow::Borrowed(concat!("SSH-2.0-ksync_", env!("CARGO_PKG_VERSION")))),
        window_size,
        channel_buffer_size: CHANNEL_MESSAGES,
        preferred: Preferred {
            kex: Cow::Borrowed(KEY_EXCHANGES),
            mac: Cow::Borrowed(MACS),
            key: Cow::Owned(host_key_order(known_kinds)),
            host_key_certificates: if certified { Cow::Borrowed(&HOST_KEYS) } else { Cow::Borrowed(&[]) },
            cipher: Cow::Borrowed(CIPHERS),
            compression: Cow::Borrowed(COMPRESSIONS),
        },
        gex: GexParams::new(DH_BITS_MIN, DH_BITS_MAX, DH_BITS_MAX).unwrap_or_default(),
        // The keepalive after the last unanswered one ends the session: 20 s each for a silence of
        // 60 s.
        keepalive_interval: Some(silence / (KEEPALIVES + 1)),
        keepalive_max: KEEPALIVES as usize,
        nodelay: true,
        ..Config::default()
    }
}

/// The name of an algorithm for certificates. For RSA it has the hash, unlike the type.
pub(super) fn certificate_name(kind: &Algorithm) -> String {
    match kind {
        Algorithm::Rsa { .. } => format!("{kind}-cert-v01@openssh.com"),
        kind => kind.to_certificate_type(),
    }
}

/// The type of the key that signs with this algorithm.
fn key_type(kind: &Algorithm) -> &str {
    match kind {
        Algorithm::Rsa { .. } => "ssh-rsa",
        kind => kind.as_str(),
    }
}

/// Handler of russh's callbacks during a session.
pub(super) struct Client {
    host_keys: HostKeys,
    silence: Duration,
    connection_status: ConnectionStatus,
    hooks: Hooks,
}

/// The trusted host key that the server showed, as text.
pub(super) type Shown = Arc<OnceLock<String>>;

/// Messages from the session to the connection that owns it.
#[derive(Clone, Default)]
pub(super) struct Hooks {
    pub(super) shown: Shown,
    /// Facts of the first key exchange about the host, without the server's identification.
    pub(super) seen: Arc<OnceLock<HostFacts>>,
    /// The host showed a certificate.
    is_certified: Arc<OnceLock<()>>,
    pub(super) inbound: Inbound,
    /// Never sent on. Its receivers learn that the session has ended.
    pub(super) alive: watch::Sender<()>,
}

/// Reason why russh gave up: its own, or the host key.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(transparent)]
    Ssh(#[from] russh::Error),
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
}

impl Handler for Client {
    type Error = ClientError;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, ClientError> {
        let (plain, certificate) = (key.public_key(), key.certificate().cloned());
        if certificate.is_some() {
            let _ = self.hooks.is_certified.set(());
        }
        check(&self.host_keys, plain, certificate, &self.hooks.shown).await?;
        Ok(true)
    }

    async fn kex_done(
        &mut self,
        _shared_secret: Option<&[u8]>,
        names: &Names,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        let is_certified = self.hooks.is_certified.get().is_some();
        let kind = if is_certified { certificate_name(&names.key) } else { names.key.to_string() };
        let is_lean = names.cipher.as_ref() == LEAN_CIPHER;
        let mut seen = HostFacts::negotiated(names.kex.as_ref(), &kind, names.strict_kex(), is_lean);
        if !AEADS.iter().any(|part| names.cipher.as_ref().contains(part)) {
            seen.refuses_fast_order();
        }
        let _ = self.hooks.seen.set(seen);
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        address: &str,
        port: u32,
        _from_address: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        let listener = Listener::Tcp { address: address.to_owned(), port };
        self.hooks.inbound.offer(Incoming { listener, channel, reply });
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        let listener = Listener::Unix(path.to_owned());
        self.hooks.inbound.offer(Incoming { listener, channel, reply });
        Ok(())
    }

    // russh accepts the following channels by itself. No server has a reason to open them, and
    // dropping the reply rejects them.

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _from_address: &str,
        _from_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host: &str,
        _port: u32,
        _from_address: &str,
        _from_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), ClientError> {
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: client::DisconnectReason<ClientError>,
    ) -> Result<(), ClientError> {
        match reason {
            client::DisconnectReason::ReceivedDisconnect(info) => {
                let message = escape(info.message.as_bytes()).into_owned();
                self.connection_status.settle(if is_dismissal(info.reason_code as u32, &info.message) {
                    DisconnectReason::Dismissed(message)
                } else {
                    DisconnectReason::Broken(format!("the server closed the session: {message}"))
                });
                Ok(())
            }
            client::DisconnectReason::Error(error) => {
                self.connection_status.settle(if is_silence(&error) {
                    DisconnectReason::Silence(self.silence)
                } else {
                    DisconnectReason::Broken(escape(error.to_string().as_bytes()).into_owned())
                });
                Err(error)
            }
        }
    }
}

/// Checks the key of a host, or its certificate, and stores the key as text.
pub(super) async fn check(
    host_keys: &HostKeys,
    plain: PublicKey,
    certificate: Option<Certificate>,
    shown: &Shown,
) -> Result<(), HostKeyError> {
    let (host_keys, text) = (host_keys.clone(), plain.to_openssh());
    let (by, kind) = (host_keys.kind(), plain.algorithm());
    // The check reads files, and another run may hold a lock on one.
    let checked = tokio::task::spawn_blocking(move || match certificate {
        Some(certificate) => host_keys.check_certificate(&certificate),
        None => host_keys.check(&plain),
    })
    .await;
    // A check that did not end has not accepted the key.
    let checked = checked.unwrap_or(Err(HostKeyError::Malformed));
    debug!("hostkey ok={} type={kind} by={by}", checked.is_ok());
    checked?;
    if let Ok(text) = text {
        // The key of the first exchange counts; no other one is accepted later.
        let _ = shown.set(text);
    }
    Ok(())
}

/// Reports if the server will never let this client in. Every other disconnect reason may be
/// temporary: too many connections, a timeout, a restart.
pub(super) fn is_dismissal(code: u32, message: &str) -> bool {
    let is = |reason: Disconnect| reason as u32 == code;
    // OpenSSH gives all of its own reasons this code: auth_maxtries_exceeded, userauth_finish.
    if is(Disconnect::ProtocolError) {
        let message = message.to_ascii_lowercase();
        return message.contains("too many authentication failures") || message.contains("access denied");
    }
    is(Disconnect::NoMoreAuthMethodsAvailable)
        || is(Disconnect::IllegalUserName)
        || is(Disconnect::HostNotAllowedToConnect)
}

/// Reports if the other side stopped answering or stopped reading.
fn is_silence(error: &ClientError) -> bool {
    match error {
        ClientError::Ssh(russh::Error::KeepaliveTimeout) => true,
        ClientError::Ssh(russh::Error::IO(error)) => error.kind() == std::io::ErrorKind::TimedOut,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_type_of_key_is_asked_for_first_and_sha1_never() {
        let first = |kind: &str| {
            let known_kinds = vec![Algorithm::new(kind).unwrap()];
            let config = config(&known_kinds, false, WINDOW_BYTES_MIN, Duration::from_secs(60));
            assert_eq!(config.preferred.key.len(), HOST_KEYS.len());
            assert!(!config.preferred.key.contains(&Algorithm::Rsa { hash: None }));
            config.preferred.key.first().unwrap().to_string()
        };
        assert_eq!(first("ecdsa-sha2-nistp384"), "ecdsa-sha2-nistp384");
        assert_eq!(first("ssh-rsa"), "rsa-sha2-512");
        assert_eq!(first("ssh-dss"), "ssh-ed25519");
    }

    #[test]
    fn only_a_refusal_counts_as_a_dismissal() {
        for (code, message, expected) in [
            (Disconnect::ProtocolError, "Too many authentication failures", true),
            (Disconnect::ProtocolError, "Too many authentication failures for root", true),
            (Disconnect::NoMoreAuthMethodsAvailable, "", true),
            (Disconnect::IllegalUserName, "no", true),
            (Disconnect::HostNotAllowedToConnect, "no", true),
            (Disconnect::ProtocolError, "Connection corrupted", false),
            (Disconnect::TooManyConnections, "Too many users", false),
            (Disconnect::ByApplication, "server is going down", false),
            (Disconnect::ServiceNotAvailable, "", false),
            (Disconnect::ConnectionLost, "Too many connections", false),
        ] {
            assert_eq!(is_dismissal(code as u32, message), expected, "{message}");
        }
    }

    #[test]
    fn the_window_grows_with_the_round_trip() {
        let windows = [0, 1, 50, 100, 10_000].map(|millis| window_bytes(Duration::from_millis(millis)));
        assert_eq!(windows, [WINDOW_BYTES_MIN, WINDOW_BYTES_MIN, 10_000_000, 20_000_000, WINDOW_BYTES_MAX]);
        assert_eq!(window_bytes(Duration::MAX), WINDOW_BYTES_MAX);
    }
}
