//! Each algorithm by itself.

use ksync_ssh::{Algorithms, CIPHERS, Config, ConnectError, KEY_EXCHANGES, MACS, SshError};

use crate::host::{HOST_KEYS, Host, connect, run, try_connect};

/// Methods that the sshd of Debian 12 does not have.
const NOT_IN_SSHD: [&str; 1] = ["mlkem768x25519-sha256"];

fn config(change: impl FnOnce(&mut Algorithms)) -> Config {
    let mut config = Config::default();
    change(&mut config.algorithms);
    config
}

#[tokio::test]
async fn each_key_exchange_works_with_sshd() {
    let Some(host) = Host::with("") else { return };
    for name in KEY_EXCHANGES {
        let only = config(|algorithms| algorithms.key_exchanges = vec![(*name).to_owned()]);
        let is_missing = match try_connect(host.address(), only.clone()).await {
            Err(ConnectError::Ssh(SshError::NoCommon { .. })) => true,
            connected => connected.is_err(),
        };
        if is_missing {
            assert!(NOT_IN_SSHD.contains(name), "{name}");
            continue;
        }
        let session = host.session(only).await;
        assert_eq!(session.client(|client| client.negotiated().unwrap().key_exchange.clone()), *name);
        assert_eq!(run(&session, "echo hi", b"").await.text(), "hi\n", "{name}");
    }
}

#[tokio::test]
async fn each_cipher_and_mac_works_with_sshd() {
    let Some(host) = Host::with("RekeyLimit 200K") else { return };
    let input: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    for cipher in CIPHERS {
        let macs: &[&str] = if cipher.ends_with("-ctr") { MACS } else { &MACS[..1] };
        for mac in macs {
            let session = host
                .session(config(|algorithms| {
                    algorithms.key_exchanges = vec!["curve25519-sha256".to_owned()];
                    algorithms.ciphers = vec![(*cipher).to_owned()];
                    algorithms.macs = vec![(*mac).to_owned()];
                }))
                .await;
            let output = run(&session, "cat", &input).await;
            assert!(output.stdout == input && output.status == Some(0), "{cipher} {mac}");
        }
    }
}

#[tokio::test]
async fn each_type_of_host_key_is_verified() {
    let Some(host) = Host::with("") else { return };
    for (index, (_, name)) in HOST_KEYS.into_iter().enumerate() {
        for name in [name, if name == "rsa-sha2-512" { "rsa-sha2-256" } else { name }] {
            let session =
                connect(host.address(), config(|algorithms| algorithms.host_keys = vec![name.to_owned()]))
                    .await;
            let key = session.client(|client| client.host_key().cloned()).expect("a key");
            assert_eq!(key.algorithm, name);
            assert!(key.blob == host.public(&format!("host-key-{index}")), "{name}");
        }
    }
}
