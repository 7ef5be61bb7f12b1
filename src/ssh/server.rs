//! A scripted server for tests: it plays the server's part of one connection, packet by packet.

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::kem::{EncapsulationKey, ML_KEM_768};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

use crate::cipher::{Cipher, Material};
use crate::encoding::{
    CHANNEL_CLOSE, CHANNEL_DATA, CHANNEL_EOF, CHANNEL_OPEN, CHANNEL_OPEN_CONFIRMATION, CHANNEL_REQUEST,
    CHANNEL_SUCCESS, CHANNEL_WINDOW_ADJUST, DISCONNECT, EXT_INFO, KEX_ECDH_INIT, KEX_ECDH_REPLY, KEXINIT,
    Message, NEWKEYS, Reader, SERVICE_ACCEPT, SERVICE_REQUEST, UNIMPLEMENTED, USERAUTH_FAILURE,
    USERAUTH_PK_OK, USERAUTH_REQUEST, USERAUTH_SUCCESS,
};
use crate::kex::{Ephemeral, Method, Secret};
use crate::mac;
use crate::packet::{PacketReader, PacketWriter};

pub(crate) const ID: &str = "SSH-2.0-OpenSSH_9.9 test";

/// Bytes that each command may be sent, from its start on.
const WINDOW: u32 = 2 << 20;

pub(crate) struct Server {
    reader: PacketReader,
    writer: PacketWriter,
    client_id: Option<Vec<u8>>,
    key_exchange: String,
    cipher: String,
    /// The MAC, for ciphers that need one.
    mac: String,
    pub(crate) is_strict: bool,
    pub(crate) key: Ed25519KeyPair,
    /// Signs something else than it should.
    pub(crate) lies: bool,
    kexinit: Vec<u8>,
    client_kexinit: Vec<u8>,
    secret: Option<(Material, Material)>,
    session_id: Vec<u8>,
    is_keyed: bool,
    /// The user key that is let in, and if the user is.
    pub(crate) lets_in: Vec<u8>,
    is_logged_in: bool,
    channels: u32,
    pub(crate) first_channel: u32,
    /// Numbers of the packets that arrived.
    pub(crate) arrived: Vec<u8>,
    /// Packets that were sent, each by itself.
    pub(crate) sent: Vec<Vec<u8>>,
    /// The other side's packets wait while this side exchanges keys anew.
    held: Vec<Vec<u8>>,
    is_exchanging: bool,
    /// Number of packets that were sent.
    pub(crate) packets: usize,
    /// Keys are exchanged anew behind this many packets.
    pub(crate) rekeys_behind: Option<usize>,
    /// Behind this many packets nothing follows, or DISCONNECT and then nothing.
    pub(crate) ends_behind: Option<(usize, End)>,
}

/// The end of a server's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Silence,
    Disconnect,
}

pub(crate) fn host_key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub(crate) fn blob(key: &Ed25519KeyPair) -> Vec<u8> {
    Message::default().string("ssh-ed25519").string(key.public_key().as_ref()).into_bytes()
}

/// The server's answer in a key exchange, and the secret that follows.
fn answer(method: Method, theirs: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut answer, mut secret) = (Vec::new(), Vec::new());
    let quantum_bytes = theirs.len().saturating_sub(32);
    match method {
        Method::MlKem768X25519 => {
            let key = EncapsulationKey::new(&ML_KEM_768, &theirs[..quantum_bytes]).unwrap();
            let (ciphertext, shared) = key.encapsulate().unwrap();
            answer.extend_from_slice(ciphertext.as_ref());
            secret.extend_from_slice(shared.as_ref());
        }
        Method::Sntrup761X25519 => {
            let key = sntrup761::EncapsulationKey::try_from(&theirs[..quantum_bytes]).unwrap();
            let (ciphertext, shared) = key.encapsulate_deterministic([3; 32]);
            answer.extend_from_slice(ciphertext.as_ref());
            secret.extend_from_slice(shared.as_ref());
        }
        // Both sides of a curve do the same.
        Method::X25519 | Method::P256 | Method::P384 | Method::P521 => {
            let ours = Ephemeral::generate(method).unwrap();
            return (ours.public.clone(), ours.agree(theirs).unwrap());
        }
    }
    let curve = PrivateKey::generate(&X25519).unwrap();
    answer.extend_from_slice(curve.compute_public_key().unwrap().as_ref());
    let public = UnparsedPublicKey::new(&X25519, &theirs[quantum_bytes..]);
    agree(&curve, public, (), |shared| {
        secret.extend_from_slice(shared);
        Ok(())
    })
    .unwrap();
    (answer, Message::default().string(method.hash(&secret)).into_bytes())
}

impl Server {
    pub(crate) fn new(key_exchange: &str, cipher: &str, is_strict: bool) -> Self {
        Self::with_mac(key_exchange, cipher, "hmac-sha2-256-etm@openssh.com", is_strict)
    }

    pub(crate) fn with_mac(key_exchange: &str, cipher: &str, mac: &str, is_strict: bool) -> Self {
        let mut server = Self {
            reader: PacketReader::new(),
            writer: PacketWriter::new(),
            client_id: None,
            key_exchange: key_exchange.into(),
            cipher: cipher.into(),
            mac: mac.into(),
            is_strict,
            key: host_key(1),
            lies: false,
            kexinit: Vec::new(),
            client_kexinit: Vec::new(),
            secret: None,
            session_id: Vec::new(),
            is_keyed: false,
            lets_in: b"right".to_vec(),
            is_logged_in: false,
            channels: 0,
            first_channel: 0,
            arrived: Vec::new(),
            sent: vec![format!("{ID}\r\n").into_bytes()],
            held: Vec::new(),
            is_exchanging: false,
            packets: 0,
            rekeys_behind: None,
            ends_behind: None,
        };
        server.send_kexinit();
        server
    }

    /// Everything that was sent since the last call.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent).concat()
    }

    pub(crate) fn send(&mut self, message: Vec<u8>) {
        if self.is_exchanging && !matches!(message[0], KEXINIT | KEX_ECDH_REPLY | NEWKEYS) {
            self.held.push(message);
            return;
        }
        let message = match self.ends_behind {
            Some((packets, End::Disconnect)) if packets == self.packets => {
                Message::new(DISCONNECT).u32(2).string("enough").string("").into_bytes()
            }
            Some((packets, _)) if packets <= self.packets => return,
            _ => message,
        };
        self.write(&message);
        if self.rekeys_behind == Some(self.packets) && self.is_keyed && !self.is_exchanging {
            self.send_kexinit();
        }
    }

    fn write(&mut self, message: &[u8]) {
        self.writer.write(message).unwrap();
        self.sent.push(std::mem::take(&mut self.writer.out));
        self.packets += 1;
    }

    pub(crate) fn send_kexinit(&mut self) {
        let strict = if self.is_strict { "kex-strict-s-v00@openssh.com" } else { "x" };
        let message = Message::new(KEXINIT).raw(&[9; 16]).names(&[self.key_exchange.as_str(), strict]);
        let message = message.names(&["ssh-ed25519"]).names(&[&self.cipher]).names(&[&self.cipher]);
        let macs = [self.mac.as_str()];
        let none: [&str; 0] = [];
        let message = message.names(&macs).names(&macs).names(&["none"]).names(&["none"]);
        self.kexinit = message.names(&none).names(&none).boolean(false).u32(0).into_bytes();
        self.send(self.kexinit.clone());
        self.is_exchanging = true;
    }

    /// Begins another key exchange, unless one is under way.
    pub(crate) fn change_keys(&mut self) {
        if self.is_keyed && !self.is_exchanging {
            self.send_kexinit();
        }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.reader.buffer.extend_from_slice(bytes);
        if self.client_id.is_none() {
            let Some(end) = self.reader.buffer.iter().position(|&byte| byte == b'\n') else { return };
            let line = self.reader.buffer.split_to(end + 1);
            self.client_id = Some(line[..end - 1].to_vec());
        }
        while let Some(payload) = self.reader.next().unwrap() {
            self.arrived.push(payload[0]);
            self.take(&payload);
        }
    }

    fn take(&mut self, payload: &[u8]) {
        let mut reader = Reader::new(&payload[1..]);
        match payload[0] {
            KEXINIT => {
                if !self.is_exchanging {
                    self.send_kexinit();
                }
                self.client_kexinit = payload.to_vec();
            }
            KEX_ECDH_INIT => self.on_init(reader.string().unwrap()),
            NEWKEYS => {
                let (up, _) = self.secret.take().unwrap();
                self.reader.change(up.opening().unwrap(), self.is_strict);
            }
            SERVICE_REQUEST => {
                self.send(Message::new(SERVICE_ACCEPT).string(reader.string().unwrap()).into_bytes());
            }
            USERAUTH_REQUEST => self.on_login(reader),
            // As sshd answers what comes before a login.
            number if !self.is_logged_in => {
                assert!(number >= 80);
                self.send(Message::new(UNIMPLEMENTED).u32(0).into_bytes());
            }
            CHANNEL_OPEN => {
                reader.string().unwrap();
                let number = self.first_channel + self.channels;
                self.channels += 1;
                let message = Message::new(CHANNEL_OPEN_CONFIRMATION).u32(reader.u32().unwrap()).u32(number);
                self.send(message.u32(0).u32(32 << 10).into_bytes());
            }
            CHANNEL_REQUEST => {
                let to = reader.u32().unwrap() - self.first_channel;
                reader.string().unwrap();
                self.send(Message::new(CHANNEL_WINDOW_ADJUST).u32(to).u32(WINDOW).into_bytes());
                if reader.boolean().unwrap() {
                    self.send(Message::new(CHANNEL_SUCCESS).u32(to).into_bytes());
                }
                self.send(Message::new(CHANNEL_DATA).u32(to).string(reader.string().unwrap()).into_bytes());
            }
            CHANNEL_DATA => {
                let to = reader.u32().unwrap() - self.first_channel;
                let data = reader.string().unwrap();
                self.send(Message::new(CHANNEL_DATA).u32(to).string(data).into_bytes());
                let count = data.len() as u32;
                self.send(Message::new(CHANNEL_WINDOW_ADJUST).u32(to).u32(count).into_bytes());
            }
            CHANNEL_EOF => {
                let to = reader.u32().unwrap() - self.first_channel;
                let status =
                    Message::new(CHANNEL_REQUEST).u32(to).string("exit-status").boolean(false).u32(7);
                self.send(status.into_bytes());
                self.send(Message::new(CHANNEL_EOF).u32(to).into_bytes());
                self.send(Message::new(CHANNEL_CLOSE).u32(to).into_bytes());
            }
            _ => {}
        }
    }

    fn on_init(&mut self, theirs: &[u8]) {
        let method = Method::of(&self.key_exchange).unwrap();
        let (answer, shared) = answer(method, theirs);
        let blob = blob(&self.key);
        let message = Message::default().string(self.client_id.as_ref().unwrap()).string(ID);
        let message = message.string(&self.client_kexinit).string(&self.kexinit).string(&blob);
        let hash = method.hash(&message.string(theirs).string(&answer).raw(&shared).into_bytes());
        let signed = if self.lies { [0; 32].to_vec() } else { hash.clone() };
        let signature = self.key.sign(&signed);
        let signature = Message::default().string("ssh-ed25519").string(signature.as_ref()).into_bytes();
        let reply = Message::new(KEX_ECDH_REPLY).string(&blob).string(&answer).string(signature);
        self.send(reply.into_bytes());
        if self.session_id.is_empty() {
            self.session_id.clone_from(&hash);
        }
        let secret = Secret { method, shared, hash };
        let cipher = Cipher::of(&self.cipher).unwrap();
        let mac = cipher.needs_mac().then(|| mac::Method::of(&self.mac).unwrap());
        let material = |iv, key, mac_key| Material {
            cipher,
            mac,
            iv: secret.derive(iv, &self.session_id, cipher.iv_bytes()),
            key: secret.derive(key, &self.session_id, cipher.key_bytes()),
            mac_key: secret.derive(mac_key, &self.session_id, mac.map_or(0, |mac| mac.key_bytes)),
        };
        let (up, down) = (material(b'A', b'C', b'E'), material(b'B', b'D', b'F'));
        self.send(vec![NEWKEYS]);
        self.writer.change(down.sealing().unwrap(), self.is_strict);
        self.secret = Some((up, down));
        self.is_exchanging = false;
        if !std::mem::replace(&mut self.is_keyed, true) {
            let extensions =
                Message::new(EXT_INFO).u32(1).string("server-sig-algs").string("ssh-ed25519,rsa-sha2-512");
            self.send(extensions.into_bytes());
        }
        for message in std::mem::take(&mut self.held) {
            self.send(message);
        }
    }

    fn on_login(&mut self, mut reader: Reader<'_>) {
        for _ in 0..3 {
            reader.string().unwrap();
        }
        let is_signed = reader.boolean().unwrap();
        let (algorithm, key) = (reader.string().unwrap(), reader.string().unwrap());
        if key != self.lets_in {
            self.send(Message::new(USERAUTH_FAILURE).names(&["publickey"]).boolean(false).into_bytes());
        } else if is_signed {
            self.is_logged_in = true;
            self.send(vec![USERAUTH_SUCCESS]);
        } else {
            self.send(Message::new(USERAUTH_PK_OK).string(algorithm).string(key).into_bytes());
        }
    }
}
