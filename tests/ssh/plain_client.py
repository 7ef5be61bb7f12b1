"""An SSH client without the strict key exchange, as all were before CVE-2023-48795: the control of
the tests with somebody on the way. plain_client.py PORT KEY prints the output of `echo hi`.

It has one method of each kind, accepts any host key, and asks for EXT_INFO.
"""

import base64
import hashlib
import hmac
import os
import socket
import struct
import sys

from cryptography.hazmat.primitives import poly1305, serialization
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

ID = b"SSH-2.0-plain_1"
stream = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60).makefile("rwb")


def number(value):
    return struct.pack(">I", value)


def string(value):
    return number(len(value)) + value


def mpint(value):
    value = value.lstrip(b"\0")
    return string((b"\0" if value and value[0] & 0x80 else b"") + value)


def strings(data):
    while data:
        length = struct.unpack(">I", data[:4])[0]
        yield data[4:4 + length]
        data = data[4 + length:]


class Way:
    """One direction: chacha20-poly1305@openssh.com, or no cipher. The sequence number goes on."""

    def __init__(self):
        self.key, self.sequence = None, 0

    def crypt(self, key, counter, data):
        nonce = struct.pack("<Q", counter) + struct.pack(">Q", self.sequence)
        return Cipher(algorithms.ChaCha20(key, nonce), None).encryptor().update(data)

    def tag(self, data):
        return poly1305.Poly1305.generate_tag(self.crypt(self.key[:32], 0, bytes(32)), data)

    def write(self, payload):
        counted = 1 + len(payload) + (0 if self.key else 4)
        padding = 4 + -(counted + 4) % 8
        head, body = number(1 + len(payload) + padding), bytes([padding]) + payload + os.urandom(padding)
        if self.key:
            head, body = self.crypt(self.key[32:], 0, head), self.crypt(self.key[:32], 1, body)
            body += self.tag(head + body)
        self.sequence += 1
        stream.write(head + body)

    def read(self):
        stream.flush()
        head = stream.read(4)
        clear = self.crypt(self.key[32:], 0, head) if self.key else head
        length = struct.unpack(">I", clear)[0]
        if length > 1 << 18:
            sys.exit("a length that makes no sense")
        body = stream.read(length)
        if self.key:
            if not hmac.compare_digest(stream.read(16), self.tag(head + body)):
                sys.exit("a packet was changed on its way")
            body = self.crypt(self.key[:32], 1, body)
        self.sequence += 1
        return body[1:len(body) - body[0]]


up, down = Way(), Way()


def expect(*numbers):
    while (payload := down.read())[0] not in numbers:
        if payload[0] in (1, 51):
            sys.exit(f"refused: {payload}")
    return payload


lists = [b"curve25519-sha256,ext-info-c", b"ssh-ed25519"]
lists += [b"chacha20-poly1305@openssh.com"] * 2 + [b"hmac-sha2-256"] * 2 + [b"none"] * 2 + [b""] * 2
ours = b"\x14" + os.urandom(16) + b"".join(map(string, lists)) + b"\0" + number(0)
ephemeral = x25519.X25519PrivateKey.generate()
public = ephemeral.public_key().public_bytes_raw()
stream.write(ID + b"\r\n")
up.write(ours)
up.write(b"\x1e" + string(public))
stream.flush()
server_id = stream.readline().rstrip()
theirs = expect(20)
host_key, answer, _ = strings(expect(31)[1:])
shared = mpint(ephemeral.exchange(x25519.X25519PublicKey.from_public_bytes(answer)))
hashed = b"".join(map(string, (ID, server_id, ours, theirs, host_key, public, answer))) + shared
session = hashlib.sha256(hashed).digest()


def derive(letter):
    key = hashlib.sha256(shared + session + letter + session).digest()
    return key + hashlib.sha256(shared + session + key).digest()


expect(21)
down.key = derive(b"D")
up.write(b"\x15")
up.key = derive(b"C")
with open(sys.argv[2], "rb") as file:
    key = serialization.load_ssh_private_key(file.read(), None)
encoding = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
blob = base64.b64decode(key.public_key().public_bytes(*encoding).split()[1])
up.write(b"\x05" + string(b"ssh-userauth"))
login = b"\x32" + string(b"root") + string(b"ssh-connection") + string(b"publickey") + b"\1"
login += string(b"ssh-ed25519") + string(blob)
up.write(login + string(string(b"ssh-ed25519") + string(key.sign(string(session) + login))))
expect(52)
up.write(b"\x5a" + string(b"session") + number(0) + number(1 << 20) + number(1 << 15))
expect(91)
up.write(b"\x62" + number(0) + string(b"exec") + b"\0" + string(b"echo hi"))
print(expect(94)[9:].decode(), end="")
