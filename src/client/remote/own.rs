//! Sessions by ksync's own SSH client. It is for hosts that are remembered (see
//! [`fast`](crate::remote::fast)), and for servers whose algorithms russh lacks: they have no key
//! exchange but sntrup761, or no MAC but UMAC.
//!
//! Everything else is as with russh: the host key's check, the order of keys, the windows, the
//! keepalives. Errors are those of russh, because callers tell them apart.

use std::time::Duration;

use ksync_ssh::{
    AlgorithmKind, ChannelEvent, ChannelReader, ChannelWriter, Config, ConnectError, HostKey, KEY_EXCHANGES,
    Keepalive, LoginKey, LoginReply, MACS, OpenError, Order, Request, Session, SshError,
};
use russh::client::AuthResult;
use russh::keys::agent::AgentIdentity;
use russh::keys::ssh_key::Algorithm;
use russh::keys::{Certificate, HashAlg, PublicKey};
use russh::{ChannelMsg, ChannelOpenFailure, MethodKind, MethodSet, Pty, Sig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::remote::error::{ConnectionStatus, DisconnectReason, RemoteError};
use crate::remote::facts::HostFacts;
use crate::remote::hostkey::HostKeys;
use crate::remote::hostkey_error::HostKeyError;
use crate::remote::keys::Shown;
use crate::remote::ssh::{self, KEEPALIVES, LEAN_CIPHER, LEAN_MAC, certificate_name};
use crate::remote::tcp::{ByteStream, GuardedStream};
use crate::tree::path::escape;

/// Bytes in front of a signature that tell its length.
const LENGTH_BYTES: usize = 4;

/// Number of the request to ssh-agent that names an extension, and most bytes of its answer.
const AGENT_EXTENSION: u8 = 27;
const AGENT_ANSWER_BYTES_MAX: u32 = 256 << 10;

/// Time for the server to name its algorithms of user keys. russh waits as long.
const ALGORITHMS_TIMEOUT: Duration = Duration::from_secs(1);

/// A session.
#[derive(Clone)]
pub(super) struct Own {
    session: Session,
    status: ConnectionStatus,
    silence: Duration,
}

/// Reports if a server that has nothing in common with russh has an algorithm of this client.
pub(super) fn has_what_is_missing(error: &RemoteError) -> bool {
    let RemoteError::NoCommonAlgorithm { theirs, .. } = error else { return false };
    theirs.iter().any(|name| KEY_EXCHANGES.contains(&name.as_str()) || MACS.contains(&name.as_str()))
}

/// Settings of a session.
pub(super) struct Settings {
    pub(super) round_trip: Duration,
    pub(super) silence: Duration,
    pub(super) host_keys: HostKeys,
    pub(super) order: Order,
    /// Offer one cipher only.
    pub(super) is_lean: bool,
}

/// Opens a session, as [`ssh::handshake`] does it. In the fast order, the last packet of the key
/// exchange waits for the login.
pub(super) async fn handshake(
    stream: GuardedStream<Box<dyn ByteStream>>,
    settings: Settings,
    status: ConnectionStatus,
    shown: ssh::Shown,
) -> Result<Own, ConnectError<HostKeyError>> {
    let Settings { round_trip, silence, host_keys, order, is_lean } = settings;
    let known_kinds = host_keys.known_kinds().map_err(ConnectError::HostKey)?;
    let certified = host_keys.has_authority().map_err(ConnectError::HostKey)?;
    let mut config = Config { window_bytes: ssh::window_bytes(round_trip), order, ..Config::default() };
    let names = ssh::host_key_order(&known_kinds).into_iter().map(|kind| kind.to_string());
    config.algorithms.host_keys = names.collect();
    if certified {
        let certificates = ssh::host_key_order(&known_kinds).into_iter().map(|kind| certificate_name(&kind));
        config.algorithms.host_keys.splice(..0, certificates.collect::<Vec<_>>());
    }
    if is_lean {
        config.algorithms.ciphers = vec![LEAN_CIPHER.to_owned()];
        config.algorithms.macs = vec![LEAN_MAC.to_owned()];
    }
    let interval = silence / (KEEPALIVES + 1);
    let keepalive = Some(Keepalive { interval, unanswered_max: KEEPALIVES });
    let check = async |key: &HostKey| {
        let (plain, certificate) = read(key)?;
        ssh::check(&host_keys, plain, certificate, &shown).await
    };
    let session = Session::connect(stream, config, keepalive, check).await?;
    Ok(Own { session, status, silence })
}

/// The error for a session that was not opened, as with russh.
pub(super) fn explain(
    endpoint: &str,
    error: ConnectError<HostKeyError>,
    status: &ConnectionStatus,
) -> RemoteError {
    match error {
        ConnectError::HostKey(error) => ssh::untrusted(endpoint, error),
        ConnectError::Ssh(SshError::NoCommon { kind, ours, theirs }) => {
            ssh::no_common_algorithm(endpoint, kind_of(kind), ours, &theirs)
        }
        ConnectError::Ssh(error) => match status.known() {
            Some(source) => RemoteError::Lost { endpoint: endpoint.into(), source },
            None => RemoteError::Handshake { endpoint: endpoint.into(), source: as_russh(error) },
        },
    }
}

/// Reports if a host whose key has this algorithm would be known by it. Otherwise it is asked in
/// order, with all algorithms.
pub(super) fn is_known_by(host_keys: &HostKeys, algorithm: &str) -> bool {
    match algorithm.split_once("-cert-") {
        Some(_) => host_keys.has_authority().unwrap_or(false),
        None => {
            let kind = if algorithm.starts_with("rsa-sha2-") { "ssh-rsa" } else { algorithm };
            let kinds = host_keys.known_kinds().unwrap_or_default();
            kinds.iter().any(|known| known.as_str() == kind)
        }
    }
}

/// The host key, and its certificate if it showed one.
fn read(key: &HostKey) -> Result<(PublicKey, Option<Certificate>), HostKeyError> {
    if key.algorithm.contains("-cert-") {
        let certificate = Certificate::from_bytes(&key.blob).map_err(|_| HostKeyError::Malformed)?;
        return Ok((PublicKey::from(certificate.public_key().clone()), Some(certificate)));
    }
    Ok((PublicKey::from_bytes(&key.blob).map_err(|_| HostKeyError::Malformed)?, None))
}

/// A login that was signed.
pub(super) struct Signed {
    key: LoginKey,
    signature: Vec<u8>,
}

const fn kind_of(kind: AlgorithmKind) -> russh::AlgorithmKind {
    match kind {
        AlgorithmKind::KeyExchange => russh::AlgorithmKind::Kex,
        AlgorithmKind::HostKey => russh::AlgorithmKind::Key,
        AlgorithmKind::Cipher => russh::AlgorithmKind::Cipher,
        AlgorithmKind::Mac => russh::AlgorithmKind::Mac,
        AlgorithmKind::Compression => russh::AlgorithmKind::Compression,
    }
}

/// The key as a login names it, and as its signer does.
fn login_key(shown: Shown, hash: Option<HashAlg>) -> Option<(LoginKey, AgentIdentity)> {
    let with_hash = |kind: Algorithm| if hash.is_some() { Algorithm::Rsa { hash } } else { kind };
    let comment = String::new();
    Some(match shown {
        Shown::Key(key) => {
            let (algorithm, blob) = (with_hash(key.algorithm()).to_string(), key.to_bytes().ok()?);
            (LoginKey { algorithm, blob }, AgentIdentity::PublicKey { key, comment })
        }
        Shown::Certificate(certificate) => {
            let algorithm = certificate_name(&with_hash(certificate.algorithm()));
            let blob = certificate.to_bytes().ok()?;
            let certificate = *certificate;
            (LoginKey { algorithm, blob }, AgentIdentity::Certificate { certificate, comment })
        }
    })
}

fn result_of(reply: LoginReply) -> Option<AuthResult> {
    match reply {
        LoginReply::Success => Some(AuthResult::Success),
        LoginReply::Failure { methods, partial } => {
            let methods: Vec<MethodKind> = methods.iter().filter_map(|name| name.parse().ok()).collect();
            let remaining_methods = MethodSet::from(methods.as_slice());
            Some(AuthResult::Failure { remaining_methods, partial_success: partial })
        }
        LoginReply::Acceptable => None,
    }
}

fn as_russh(error: SshError) -> russh::Error {
    match error {
        SshError::Closed | SshError::Disconnected { .. } => russh::Error::Disconnect,
        SshError::Silence => russh::Error::KeepaliveTimeout,
        SshError::Io(error) => russh::Error::IO(std::io::Error::new(error.kind(), error)),
        error => russh::Error::IO(std::io::Error::other(error)),
    }
}

/// The message that russh would have for an event.
fn message(event: ChannelEvent) -> ChannelMsg {
    match event {
        ChannelEvent::Opened | ChannelEvent::Success => ChannelMsg::Success,
        ChannelEvent::Refused { code, message } => ChannelMsg::OpenFailure(refusal(code, message)),
        ChannelEvent::Data(data) => ChannelMsg::Data { data },
        ChannelEvent::ExtendedData(ext, data) => ChannelMsg::ExtendedData { data, ext },
        ChannelEvent::Window(new_size) => ChannelMsg::WindowAdjusted { new_size },
        ChannelEvent::Eof => ChannelMsg::Eof,
        ChannelEvent::ExitStatus(exit_status) => ChannelMsg::ExitStatus { exit_status },
        ChannelEvent::ExitSignal(name) => ChannelMsg::ExitSignal {
            signal_name: signal(name),
            core_dumped: false,
            error_message: String::new(),
            lang_tag: String::new(),
        },
        ChannelEvent::Failure => ChannelMsg::Failure,
        ChannelEvent::Closed => ChannelMsg::Close,
    }
}

fn signal(name: String) -> Sig {
    match name.as_str() {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        _ => Sig::Custom(name),
    }
}

pub(super) fn refusal(code: u32, reason: String) -> ChannelOpenFailure {
    match code {
        1 => ChannelOpenFailure::AdministrativelyProhibited,
        2 => ChannelOpenFailure::ConnectFailed,
        3 => ChannelOpenFailure::UnknownChannelType,
        4 => ChannelOpenFailure::ResourceShortage,
        code => ChannelOpenFailure::Other { code, reason },
    }
}

impl Own {
    /// Stores the reason of the session's end, if it has ended.
    fn settle(&self) {
        let reason = match self.session.end() {
            None => return,
            Some(SshError::Silence) => DisconnectReason::Silence(self.silence),
            Some(SshError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                DisconnectReason::Silence(self.silence)
            }
            Some(SshError::Disconnected { code, message }) => {
                let text = escape(message.as_bytes()).into_owned();
                if ssh::is_dismissal(code, &message) {
                    DisconnectReason::Dismissed(text)
                } else {
                    DisconnectReason::Broken(format!("the server closed the session: {text}"))
                }
            }
            Some(error) => DisconnectReason::Broken(escape(error.to_string().as_bytes()).into_owned()),
        };
        self.status.settle(reason);
    }

    fn failed(&self, error: SshError) -> russh::Error {
        self.settle();
        as_russh(error)
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.session.round_trip()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.settle();
        self.session.end().is_some()
    }

    pub(super) async fn ended(&self) {
        self.session.ended().await;
        self.settle();
    }

    pub(super) async fn disconnect(&self) {
        self.session.disconnect("").await;
    }

    pub(super) async fn open(&self) -> Result<OwnChannel, russh::Error> {
        match self.session.open().await {
            Ok(channel) => Ok(self.channel(channel)),
            Err(OpenError::Refused { code, message }) => {
                Err(russh::Error::ChannelOpenFailure(refusal(code, message)))
            }
            Err(OpenError::Ssh(error)) => Err(self.failed(error)),
        }
    }

    /// Tells ssh-agent which session it signs for (OpenSSH's PROTOCOL.agent, section 1). The answer
    /// does not matter.
    pub(super) async fn bind(
        &self,
        agent: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        let bound = self.session.client(|client| {
            let key = client.host_key()?;
            let strings =
                [b"session-bind@openssh.com", key.blob.as_slice(), client.session_id(), &key.signature];
            let mut request = vec![AGENT_EXTENSION];
            for string in strings {
                request.extend_from_slice(&u32::try_from(string.len()).ok()?.to_be_bytes());
                request.extend_from_slice(string);
            }
            // The session is not forwarded.
            request.push(0);
            Some(request)
        });
        let Some(request) = bound else { return Ok(()) };
        agent.write_u32(request.len() as u32).await?;
        agent.write_all(&request).await?;
        let mut answer = vec![0; agent.read_u32().await?.min(AGENT_ANSWER_BYTES_MAX) as usize];
        agent.read_exact(&mut answer).await?;
        Ok(())
    }

    pub(super) async fn rsa_hash(&self) -> Option<HashAlg> {
        let names = self.session.signature_algorithms(ALGORITHMS_TIMEOUT).await?;
        let has = |name: &str| names.iter().any(|known| known == name);
        [("rsa-sha2-512", HashAlg::Sha512), ("rsa-sha2-256", HashAlg::Sha256)]
            .into_iter()
            .find_map(|(name, hash)| has(name).then_some(hash))
    }

    pub(super) async fn authenticate<S: russh::Signer>(
        &self,
        user: &str,
        shown: Shown,
        hash: Option<HashAlg>,
        signer: &mut S,
    ) -> Option<AuthResult> {
        let (key, identity) = login_key(shown, hash)?;
        let mut reply = self.session.probe(user, &key).await.ok()?;
        if reply == LoginReply::Acceptable {
            let signature = self.signature(user, &key, &identity, hash, signer).await?;
            reply = self.session.login(user, &key, &signature).await.ok()?;
        }
        result_of(reply)
    }

    async fn signature<S: russh::Signer>(
        &self,
        user: &str,
        key: &LoginKey,
        identity: &AgentIdentity,
        hash: Option<HashAlg>,
        signer: &mut S,
    ) -> Option<Vec<u8>> {
        let data = self.session.client(|client| client.to_sign(user, key));
        let signed = signer.auth_sign(identity, hash, data.clone()).await.ok()?;
        // The signature follows the data, with its length in front.
        signed.strip_prefix(data.as_slice())?.get(LENGTH_BYTES..).map(<[u8]>::to_vec)
    }

    /// Signs a login without asking the server if it would accept the key.
    pub(super) async fn sign<S: russh::Signer>(
        &self,
        user: &str,
        shown: Shown,
        hash: Option<HashAlg>,
        signer: &mut S,
    ) -> Option<Signed> {
        let (key, identity) = login_key(shown, hash)?;
        let signature = self.signature(user, &key, &identity, hash, signer).await?;
        Some(Signed { key, signature })
    }

    /// Logs in.
    pub(super) async fn log_in(&self, user: &str, signed: &Signed) -> Result<AuthResult, SshError> {
        let reply = self.session.login(user, &signed.key, &signed.signature).await?;
        result_of(reply).ok_or(SshError::Closed)
    }

    /// Logs in, opens a channel, runs `command` and sends its input, all in one flight. Returns the
    /// number of bytes of the input that were sent.
    pub(super) fn start(
        &self,
        user: &str,
        signed: &Signed,
        command: String,
        input: &[u8],
    ) -> Result<(OwnChannel, usize), SshError> {
        let request = Request::Exec(command.into_bytes());
        let (channel, sent) = self.session.start(user, &signed.key, &signed.signature, &request, input)?;
        Ok((self.channel(channel), sent))
    }

    /// The answer to the login of [`Own::start`].
    pub(super) async fn login_result(&self) -> Result<AuthResult, SshError> {
        result_of(self.session.login_reply().await?).ok_or(SshError::Closed)
    }

    /// The reason why the session has ended, if it has.
    pub(super) fn end(&self) -> Option<SshError> {
        self.session.end()
    }

    /// Reports if a channel was opened, so that a command may have run.
    pub(super) fn has_opened(&self) -> bool {
        self.session.client(ksync_ssh::Client::has_opened)
    }

    /// Facts about the host.
    pub(super) fn facts(&self) -> Option<HostFacts> {
        self.session.client(|client| {
            let ciphers = &client.negotiated()?.ciphers;
            let is_lean = ciphers.iter().all(|cipher| cipher == LEAN_CIPHER);
            Some(HostFacts::of(&client.facts()?, is_lean))
        })
    }

    fn channel(&self, channel: ksync_ssh::Channel) -> OwnChannel {
        let (reader, writer) = channel.split();
        OwnChannel {
            reader: OwnReader { own: self.clone(), reader },
            writer: OwnWriter { own: self.clone(), writer },
        }
    }
}

pub(super) struct OwnChannel {
    reader: OwnReader,
    writer: OwnWriter,
}

pub(super) struct OwnReader {
    own: Own,
    reader: ChannelReader,
}

pub(super) struct OwnWriter {
    own: Own,
    writer: ChannelWriter,
}

impl OwnChannel {
    pub(super) fn exec(&self, want_reply: bool, command: Vec<u8>) -> Result<(), russh::Error> {
        self.writer.request(&Request::Exec(command), want_reply)
    }

    pub(super) fn request_shell(&self, want_reply: bool) -> Result<(), russh::Error> {
        self.writer.request(&Request::Shell, want_reply)
    }

    pub(super) fn request_pty(
        &self,
        term: &str,
        columns: u32,
        rows: u32,
        modes: &[(Pty, u32)],
    ) -> Result<(), russh::Error> {
        let modes = modes.iter().map(|&(mode, value)| (mode as u8, value)).collect();
        self.writer.request(&Request::Pty { term: term.into(), columns, rows, modes }, false)
    }

    pub(super) fn eof(&self) -> Result<(), russh::Error> {
        self.writer.eof()
    }

    pub(super) async fn wait(&mut self) -> Option<ChannelMsg> {
        self.reader.wait().await
    }

    pub(super) fn split(self) -> (OwnReader, OwnWriter) {
        (self.reader, self.writer)
    }
}

impl OwnReader {
    /// Waits until a channel of [`Own::start`] is open.
    pub(super) async fn opened(&mut self) -> Result<(), OpenError> {
        match self.reader.next().await {
            Some(ChannelEvent::Opened) => Ok(()),
            Some(ChannelEvent::Refused { code, message }) => Err(OpenError::Refused { code, message }),
            _ => Err(OpenError::Ssh(self.own.end().unwrap_or(SshError::Closed))),
        }
    }

    pub(super) async fn wait(&mut self) -> Option<ChannelMsg> {
        let event = self.reader.next().await;
        if event.is_none() {
            self.own.settle();
        }
        event.map(message)
    }
}

impl OwnWriter {
    fn request(&self, request: &Request, want_reply: bool) -> Result<(), russh::Error> {
        self.writer.request(request, want_reply).map_err(|error| self.own.failed(error))
    }

    pub(super) async fn data(&self, bytes: &[u8]) -> Result<(), russh::Error> {
        self.writer.send(bytes).await.map_err(|error| self.own.failed(error))
    }

    pub(super) fn eof(&self) -> Result<(), russh::Error> {
        self.writer.eof().map_err(|error| self.own.failed(error))
    }

    pub(super) fn close(&self) -> Result<(), russh::Error> {
        self.writer.close().map_err(|error| self.own.failed(error))
    }

    pub(super) fn window_change(&self, columns: u32, rows: u32) -> Result<(), russh::Error> {
        self.request(&Request::WindowChange { columns, rows }, false)
    }
}
