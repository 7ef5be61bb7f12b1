//! The transport: identification, key exchange with the check of the host key, and rekeying (RFC
//! 4253, and OpenSSH's strict key exchange).
//!
//! One place, [`Transport::trust`], lets bytes out behind the server's KEX_ECDH_REPLY. It runs
//! after the caller has accepted the host key of the first exchange. Later exchanges must show the
//! same key. Until then [`Transport::send`] keeps what the layers above send.

use bytes::{Bytes, BytesMut};

use crate::cipher::{Cipher, Material, Opening};
use crate::encoding::{
    DEBUG, DISCONNECT, EXT_INFO, IGNORE, KEX_ECDH_INIT, KEX_ECDH_REPLY, KEXINIT, Message, NEWKEYS, Reader,
    SERVICE_ACCEPT, UNIMPLEMENTED,
};
use crate::error::SshError;
use crate::hostkey::{self, HostKey};
use crate::kex::{Ephemeral, Method, Secret};
use crate::mac;
use crate::negotiation::{Algorithms, Negotiated, Offer, negotiate, retain_known};
use crate::packet::{PacketReader, PacketWriter, Traffic};

/// Longest line before and in the server's identification, and number of lines before it. OpenSSH's
/// client has the same limits.
const ID_BYTES_MAX: usize = 8192;
const ID_LINES_MAX: usize = 1024;

/// Bytes of messages that wait for the end of a key exchange, with what each costs beside its
/// content.
const HELD_BYTES_MAX: usize = 4 << 20;
const HELD_BYTES_EACH: usize = 64;

/// Extensions that a server may announce, and the messages in which it does.
const EXTENSIONS_MAX: u32 = 64;
const EXT_INFOS_MAX: usize = 2;

/// Traffic of one direction after which the keys are changed.
#[derive(Debug, Clone, Copy)]
pub struct RekeyLimit {
    /// The bytes: RFC 4253 recommends 1 GiB.
    pub bytes: u64,
    /// The packets: sequence numbers of chacha20-poly1305 must not repeat within 2^32.
    pub packets: u64,
}

impl Default for RekeyLimit {
    fn default() -> Self {
        Self { bytes: 1 << 30, packets: 1 << 31 }
    }
}

impl RekeyLimit {
    const fn is_reached(&self, traffic: Traffic) -> bool {
        traffic.bytes >= self.bytes || traffic.packets >= self.packets
    }
}

/// A key exchange under way.
struct Exchange {
    /// Our KEXINIT.
    ours: (Offer, Vec<u8>),
    ephemeral: Option<Ephemeral>,
    /// Once the server's KEXINIT has arrived: it, and the choice.
    theirs: Option<(Vec<u8>, Negotiated)>,
    /// The next packet is of a method that was not chosen.
    skips_next: bool,
    /// Once the server has answered: the secret that the host key signed.
    secret: Option<Secret>,
    /// Once our NEWKEYS is sent: the keys for the server's packets behind its own.
    opening: Option<Opening>,
}

/// Input that the transport hands to the layers above.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The host proved that it has this key. Nothing more is read before [`Transport::trust`].
    HostKey,
    /// A message of the layers above.
    Message(Bytes),
}

pub(crate) struct Transport {
    id: String,
    server_id: Option<Vec<u8>>,
    id_lines: usize,
    reader: PacketReader,
    writer: PacketWriter,
    algorithms: Algorithms,
    exchange: Option<Exchange>,
    /// No exchange has ended yet.
    is_first: bool,
    session_id: Vec<u8>,
    host_key: Option<HostKey>,
    negotiated: Option<Negotiated>,
    /// The server's first list of key exchanges. The host key signed it.
    offered: Vec<String>,
    is_strict: bool,
    held: Vec<Vec<u8>>,
    held_bytes: usize,
    rekey_limit: RekeyLimit,
    signature_algorithms: Option<Vec<String>>,
    ext_infos: usize,
    /// The only method of the first exchange, if its first packet was sent at once.
    is_early: bool,
}

impl Transport {
    /// Writes the identification and KEXINIT. `is_early` also sends the first packet of the
    /// exchange, for which `algorithms` must leave one method only.
    pub(crate) fn new(
        id: &str,
        mut algorithms: Algorithms,
        rekey_limit: RekeyLimit,
        is_early: bool,
    ) -> Result<Self, SshError> {
        retain_known(&mut algorithms);
        let mut transport = Self {
            id: id.to_owned(),
            server_id: None,
            id_lines: 0,
            reader: PacketReader::new(),
            writer: PacketWriter::new(),
            algorithms,
            exchange: None,
            is_first: true,
            session_id: Vec::new(),
            host_key: None,
            negotiated: None,
            offered: Vec::new(),
            is_strict: false,
            held: Vec::new(),
            held_bytes: 0,
            rekey_limit,
            signature_algorithms: None,
            ext_infos: 0,
            is_early,
        };
        transport.writer.out.extend_from_slice(format!("{id}\r\n").as_bytes());
        transport.begin()?;
        if is_early {
            let name = transport.algorithms.key_exchanges.first().cloned().unwrap_or_default();
            transport.send_ephemeral(&name)?;
        }
        Ok(transport)
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.reader.buffer.extend_from_slice(bytes);
    }

    /// Takes over bytes that arrived, behind those that wait.
    pub(crate) fn lend(&mut self, bytes: &mut BytesMut) {
        if self.reader.buffer.is_empty() {
            std::mem::swap(&mut self.reader.buffer, bytes);
        } else {
            self.push(bytes);
        }
        bytes.clear();
    }

    /// Gives back the bytes that were not read.
    pub(crate) const fn give_back(&mut self, bytes: &mut BytesMut) {
        std::mem::swap(&mut self.reader.buffer, bytes);
    }

    /// Bytes that were pushed and not read yet.
    pub(crate) fn unread_bytes(&self) -> usize {
        self.reader.buffer.len()
    }

    pub(crate) const fn output(&mut self) -> &mut Vec<u8> {
        &mut self.writer.out
    }

    pub(crate) const fn host_key(&self) -> Option<&HostKey> {
        self.host_key.as_ref()
    }

    pub(crate) const fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    pub(crate) fn session_id(&self) -> &[u8] {
        &self.session_id
    }

    pub(crate) fn server_id(&self) -> &[u8] {
        self.server_id.as_deref().unwrap_or_default()
    }

    pub(crate) fn offered(&self) -> &[String] {
        &self.offered
    }

    pub(crate) fn signature_algorithms(&self) -> Option<&[String]> {
        self.signature_algorithms.as_deref()
    }

    /// Reports if sent messages wait for new keys.
    pub(crate) const fn is_held(&self) -> bool {
        match &self.exchange {
            Some(exchange) => exchange.opening.is_none(),
            None => false,
        }
    }

    /// Sends a message of the layers above, or keeps it until our side has new keys.
    pub(crate) fn send(&mut self, message: Vec<u8>) -> Result<(), SshError> {
        if self.is_held() {
            self.held_bytes += message.len() + HELD_BYTES_EACH;
            if self.held_bytes > HELD_BYTES_MAX {
                return Err(SshError::TooMuch("it asks without end and exchanges no keys"));
            }
            self.held.push(message);
            return Ok(());
        }
        self.writer.write(&message)?;
        self.rekey_if_due()
    }

    /// Sends a message whose data follows its head. Nothing may be held: data would pile up.
    pub(crate) fn send_data(&mut self, head: &[u8], data: &[u8]) -> Result<(), SshError> {
        self.writer.write_parts([head, data])?;
        self.rekey_if_due()
    }

    /// Sends DISCONNECT, at any time.
    pub(crate) fn disconnect(&mut self, code: u32, text: &str) -> Result<(), SshError> {
        let message = Message::new(DISCONNECT).u32(code).string(text).string("").into_bytes();
        self.writer.write(&message)
    }

    fn rekey_if_due(&mut self) -> Result<(), SshError> {
        let is_due = [self.writer.traffic, self.reader.traffic]
            .into_iter()
            .any(|traffic| self.rekey_limit.is_reached(traffic));
        if is_due && self.exchange.is_none() { self.begin() } else { Ok(()) }
    }

    /// Sends KEXINIT.
    fn begin(&mut self) -> Result<(), SshError> {
        let mut cookie = [0; 16];
        aws_lc_rs::rand::fill(&mut cookie)?;
        let offer = Offer::of(&self.algorithms, self.is_first);
        let payload = offer.encode(cookie);
        self.writer.write(&payload)?;
        self.exchange = Some(Exchange {
            ours: (offer, payload),
            ephemeral: None,
            theirs: None,
            skips_next: false,
            secret: None,
            opening: None,
        });
        Ok(())
    }

    fn send_ephemeral(&mut self, key_exchange: &str) -> Result<(), SshError> {
        let method = Method::of(key_exchange).ok_or(SshError::Crypto)?;
        let ephemeral = Ephemeral::generate(method)?;
        self.writer.write(&Message::new(KEX_ECDH_INIT).string(&ephemeral.public).into_bytes())?;
        self.exchange.as_mut().ok_or(SshError::Crypto)?.ephemeral = Some(ephemeral);
        Ok(())
    }

    /// Handles what was pushed, up to the next thing that the layers above have to know.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, SshError> {
        if self.server_id.is_none() && !self.read_id()? {
            return Ok(None);
        }
        loop {
            if self.exchange.as_ref().is_some_and(|exchange| exchange.secret.is_some()) {
                // The caller has not accepted the host key yet.
                return Ok(None);
            }
            let Some(payload) = self.reader.next()? else { return Ok(None) };
            if let Some(incoming) = self.take(payload)? {
                return Ok(Some(incoming));
            }
            self.rekey_if_due()?;
        }
    }

    fn read_id(&mut self) -> Result<bool, SshError> {
        loop {
            let buffer = &mut self.reader.buffer;
            let Some(end) = buffer.iter().position(|&byte| byte == b'\n') else {
                return if buffer.len() > ID_BYTES_MAX { Err(SshError::NotSsh) } else { Ok(false) };
            };
            let line = buffer.split_to(end + 1);
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            self.id_lines += 1;
            if line.len() > ID_BYTES_MAX || self.id_lines > ID_LINES_MAX {
                return Err(SshError::NotSsh);
            }
            if line.starts_with(b"SSH-") {
                if !line.starts_with(b"SSH-2.0-") && !line.starts_with(b"SSH-1.99-") {
                    return Err(SshError::NotSsh);
                }
                self.server_id = Some(line.to_vec());
                return Ok(true);
            }
        }
    }

    fn take(&mut self, payload: Bytes) -> Result<Option<Incoming>, SshError> {
        let number = payload.first().copied().unwrap_or_default();
        if number == DISCONNECT {
            let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
            return Err(SshError::Disconnected { code: reader.u32()?, message: reader.text()? });
        }
        if let Some(exchange) = &mut self.exchange
            && std::mem::take(&mut exchange.skips_next)
        {
            return Ok(None);
        }
        let has_begun = self.exchange.as_ref().is_some_and(|exchange| exchange.theirs.is_some());
        let is_of_exchange = matches!(number, KEXINIT | NEWKEYS | KEX_ECDH_REPLY);
        if self.is_first && self.is_strict && !is_of_exchange {
            return Err(SshError::NotStrict(number));
        }
        match number {
            KEXINIT => self.on_kexinit(&payload)?,
            KEX_ECDH_REPLY => return self.on_reply(&payload),
            NEWKEYS => self.on_newkeys(&payload)?,
            IGNORE | DEBUG => {}
            // Between its KEXINIT and its NEWKEYS the server may send nothing else.
            _ if has_begun || self.is_first => return Err(SshError::OutOfOrder(number)),
            EXT_INFO => self.on_ext_info(&payload)?,
            UNIMPLEMENTED | SERVICE_ACCEPT | 50.. => return Ok(Some(Incoming::Message(payload))),
            _ => return Err(SshError::OutOfOrder(number)),
        }
        Ok(None)
    }

    fn on_kexinit(&mut self, payload: &[u8]) -> Result<(), SshError> {
        if self.exchange.is_none() {
            self.begin()?;
        }
        let theirs = Offer::parse(payload)?;
        if self.is_first {
            self.is_strict = theirs.is_strict_server();
            if self.is_strict && self.reader.last() != 0 {
                return Err(SshError::NotStrict(KEXINIT));
            }
            self.offered.clone_from(&theirs.key_exchanges);
        }
        let is_strict = self.is_strict;
        let exchange = self.exchange.as_mut().ok_or(SshError::OutOfOrder(KEXINIT))?;
        if exchange.theirs.is_some() {
            return Err(SshError::OutOfOrder(KEXINIT));
        }
        let negotiated = negotiate(&exchange.ours.0, &theirs, is_strict)?;
        exchange.skips_next = theirs.has_wrong_guess(&exchange.ours.0);
        let key_exchange = negotiated.key_exchange.clone();
        exchange.theirs = Some((payload.to_vec(), negotiated));
        if exchange.ephemeral.is_none() {
            self.send_ephemeral(&key_exchange)?;
        } else if self.is_early && !is_strict {
            return Err(SshError::Guess("it has no strict key exchange any more"));
        }
        Ok(())
    }

    fn on_reply(&mut self, payload: &[u8]) -> Result<Option<Incoming>, SshError> {
        let out_of_order = SshError::OutOfOrder(KEX_ECDH_REPLY);
        let Some(exchange) = &mut self.exchange else { return Err(out_of_order) };
        let (Some((their_init, negotiated)), Some(ephemeral)) = (&exchange.theirs, exchange.ephemeral.take())
        else {
            return Err(out_of_order);
        };
        let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
        let (blob, answer, signature) = (reader.string()?, reader.string()?, reader.string()?);
        let shared = ephemeral.agree(answer)?;
        let server_id = self.server_id.as_deref().unwrap_or_default();
        let message = Message::default().string(&self.id).string(server_id).string(&exchange.ours.1);
        let message = message.string(their_init).string(blob).string(&ephemeral.public).string(answer);
        let method = ephemeral.method;
        let hash = method.hash(&message.raw(&shared).into_bytes());
        let algorithm = negotiated.host_key.clone();
        let key = HostKey { algorithm, blob: blob.to_vec(), signature: signature.to_vec() };
        hostkey::verify(&key, &hash)?;
        exchange.secret = Some(Secret { method, shared, hash });
        match &self.host_key {
            None => {
                self.host_key = Some(key);
                Ok(Some(Incoming::HostKey))
            }
            Some(first) if first.blob == key.blob => {
                self.trust()?;
                Ok(None)
            }
            Some(_) => Err(SshError::HostKeyChanged),
        }
    }

    /// Goes on behind the server's KEX_ECDH_REPLY: sends NEWKEYS, and everything that waited.
    ///
    /// The one place that sends anything there.
    pub(crate) fn trust(&mut self) -> Result<(), SshError> {
        let exchange = self.exchange.as_mut().ok_or(SshError::OutOfOrder(NEWKEYS))?;
        let (Some(secret), Some((_, negotiated))) = (exchange.secret.take(), exchange.theirs.as_ref()) else {
            return Err(SshError::OutOfOrder(NEWKEYS));
        };
        if self.session_id.is_empty() {
            self.session_id.clone_from(&secret.hash);
        }
        let (session_id, is_strict) = (&self.session_id, self.is_strict);
        let material = |direction: usize, iv: u8, key: u8, mac_key: u8| {
            let name = negotiated.ciphers.get(direction);
            let cipher = name.and_then(|name| Cipher::of(name)).ok_or(SshError::Crypto)?;
            let mac = negotiated.macs.get(direction).and_then(Option::as_ref);
            let mac = mac.and_then(|name| mac::Method::of(name));
            Ok::<_, SshError>(Material {
                cipher,
                mac,
                iv: secret.derive(iv, session_id, cipher.iv_bytes()),
                key: secret.derive(key, session_id, cipher.key_bytes()),
                mac_key: secret.derive(mac_key, session_id, mac.map_or(0, |mac| mac.key_bytes)),
            })
        };
        let (up, down) = (material(0, b'A', b'C', b'E')?, material(1, b'B', b'D', b'F')?);
        self.writer.write(&[NEWKEYS])?;
        self.writer.change(up.sealing()?, is_strict);
        exchange.opening = Some(down.opening()?);
        self.negotiated.get_or_insert_with(|| negotiated.clone());
        self.held_bytes = 0;
        for message in std::mem::take(&mut self.held) {
            self.writer.write(&message)?;
        }
        Ok(())
    }

    fn on_newkeys(&mut self, payload: &[u8]) -> Result<(), SshError> {
        let exchange = self.exchange.take().filter(|_| payload.len() == 1);
        let opening = exchange.and_then(|exchange| exchange.opening);
        self.reader.change(opening.ok_or(SshError::OutOfOrder(NEWKEYS))?, self.is_strict);
        self.is_first = false;
        Ok(())
    }

    fn on_ext_info(&mut self, payload: &[u8]) -> Result<(), SshError> {
        self.ext_infos += 1;
        if self.ext_infos > EXT_INFOS_MAX {
            return Err(SshError::OutOfOrder(EXT_INFO));
        }
        let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
        let count = reader.u32()?;
        if count > EXTENSIONS_MAX {
            return Err(SshError::TooMuch("extensions"));
        }
        for _ in 0..count {
            let (name, mut value) = (reader.string()?, Reader::new(reader.string()?));
            if name == b"server-sig-algs" {
                let names = value.take(value.rest().len())?;
                let names = String::from_utf8_lossy(names);
                self.signature_algorithms = Some(names.split(',').map(str::to_owned).collect());
            }
        }
        Ok(())
    }
}
