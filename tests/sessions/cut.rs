//! A connection cut anywhere during the handshakes and the login is lost. It is no refused key.

use std::time::Duration;

use ksync::remote::{ErrorKind, HostKeys, Keys, Proxies, Target, Transport, connect};
use serde_json::{Value, json};

use crate::platform::{Platform, endpoint};
use crate::world::World;

/// Bytes from the client between two cuts.
const STEP: usize = 97;

/// More bytes than a login takes.
const LOGIN_BYTES_MAX: usize = 30_000;

#[test]
fn a_login_over_the_bridge_cut_at_any_byte_is_a_lost_connection() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &[]);
    platform.run(&world, &["session", "setup", &id]).ok();
    let record = world.path(format!("state/ksync/sessions/{id}.json"));
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(record).unwrap()).unwrap();
    let text = |name: &str| stored[name].as_str().unwrap().to_owned();
    let target = Target {
        transport: Transport::WebSocket {
            url: format!("wss://{}:2222", text("vm_domain")),
            ca_cert: Some(platform.env("KSYNC_CA_CERT").into()),
            proxies: Proxies::none(),
        },
        user: "root".to_owned(),
        host_keys: HostKeys::Exactly(text("host_key")),
        keys: Keys::named(vec![text("key_file").into()]),
        connect_timeout: Duration::from_secs(30),
        silence_timeout: Duration::from_secs(60),
        facts: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (lost, after) in (1..LOGIN_BYTES_MAX).step_by(STEP).enumerate() {
        platform.fault(json!({ "call": "bridge", "after_bytes": after }));
        let connected = runtime.block_on(async {
            let connection = connect(&target).await?;
            connection.close().await;
            Ok::<_, ksync::remote::RemoteError>(())
        });
        let Err(error) = connected else {
            assert!(lost > 20, "{lost} cuts before the login ended");
            return;
        };
        let is_loss = matches!(error.kind(), ErrorKind::Socket | ErrorKind::Timeout);
        assert!(is_loss, "cut after {after} bytes: {:?} {error:?}", error.kind());
    }
    panic!("a login takes more than {LOGIN_BYTES_MAX} bytes");
}

#[test]
fn a_run_whose_login_is_cut_connects_again() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    platform.run(&world, &["session", "setup", &id]).ok();
    // The connection to the known VM, and the one after its setup.
    platform.fault(json!({ "call": "bridge", "after_bytes": 3000, "times": 2 }));
    let run = platform.run(&world, &["src", &endpoint(&world, &id, "there")]).ok();
    assert!(
        run.stderr.contains("lost the connection to") && run.stderr.contains("; trying again in"),
        "{run:?}"
    );
    world.assert_same("src", "there");
    // Without an end to it, it is a lost connection.
    platform.fault(json!({ "call": "bridge", "after_bytes": 3000, "times": 99 }));
    let run = platform.run(&world, &["--retries", "1", "src", &endpoint(&world, &id, "there")]).fails(10);
    assert!(run.stderr.contains("lost the connection to"), "{run:?}");
    let hint = run.stderr.lines().last().unwrap();
    assert!(hint.contains("cuts the connection during the login") && hint.contains("ksync doctor"), "{hint}");
}
