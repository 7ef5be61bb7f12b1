//! A session's VM over `wss:` and SSH, with ksync as the client.

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use serde_json::json;

use crate::client::{Cloud, text};
use crate::world::{Run, World};

/// A client with a key, and a VM that may know it.
struct Pair {
    cloud: Cloud,
    world: World,
    id: String,
    address: String,
    public_key: String,
    host_key: String,
}

impl Pair {
    fn new() -> Pair {
        let (cloud, world) = (Cloud::new(), World::new());
        let id = cloud.session();
        let address = text(&cloud.inside(&id)["ssh_address"]);
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).expect("a key");
        let file = world.tree(".");
        file.file("key", key.to_openssh(LineEnding::LF).expect("a text").as_bytes());
        std::fs::set_permissions(world.path("key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("a mode");
        let public_key = key.public_key().to_openssh().expect("a text");
        let host_key = cloud.sh(&id, "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout;
        let host_key = host_key.trim().to_owned();
        Pair { cloud, world, id, address, public_key, host_key }
    }

    /// A short form of `ksync session setup`.
    fn authorize(&self, mode: &str) {
        let line = format!(
            "umask 077; echo '{}' >>~/.ssh/authorized_keys; chmod {mode} ~/.ssh/authorized_keys",
            self.public_key
        );
        assert_eq!(self.cloud.sh(&self.id, &line).exit_code, 0);
    }

    /// Asserts that the VM has what was uploaded.
    #[track_caller]
    fn assert_same(&self) {
        self.world.assert_same("src", format!("{}/srv/dst", self.cloud.root(&self.id)));
    }

    fn upload(&self) -> Run {
        self.upload_with(&[])
    }

    fn upload_with(&self, options: &[&str]) -> Run {
        let ca = self.cloud.platform().ca_cert();
        let endpoint = format!("wss://{}/srv/dst", self.address);
        let mut command =
            self.world.ksync(["src", &endpoint, "--identity", "key", "--host-key", &self.host_key]);
        command.arg("--ca-cert").arg(ca).args(options);
        Run::of(command)
    }
}

#[test]
fn a_key_works_only_from_a_file_that_others_cannot_write() {
    let pair = Pair::new();
    pair.world.tree("src").with_everything();
    assert!(!pair.upload().status.success());
    pair.authorize("666");
    assert!(!pair.upload().status.success());
    pair.authorize("600");
    pair.upload().ok();
    pair.assert_same();
}

#[test]
fn ssh_does_not_stop_the_clock() {
    let pair = Pair::new();
    pair.authorize("600");
    pair.world.tree("src").file("a", "1");
    pair.upload().ok();
    assert_eq!(pair.cloud.stage(&pair.id), "quiet");
    pair.cloud.pass(70.0);
    assert_eq!(pair.cloud.stage(&pair.id), "gone");
    assert!(!pair.upload().status.success());
}

#[test]
fn a_byte_fault_breaks_exactly_one_connection() {
    let pair = Pair::new();
    pair.authorize("600");
    pair.world.tree("src").file("large", crate::world::noise(1, 3_000_000));
    pair.cloud.fault(&json!({ "call": "bridge", "after_bytes": 500_000 }));
    pair.upload_with(&["--retries", "0"]).fails(10);
    pair.upload().ok();
    pair.assert_same();
}

#[test]
fn a_time_fault_breaks_exactly_one_connection() {
    let pair = Pair::new();
    pair.authorize("600");
    pair.world.tree("src").file("a", "1");
    pair.cloud.fault(&json!({ "call": "bridge", "after_seconds": 0 }));
    pair.upload_with(&["--retries", "0"]).fails(10);
    pair.upload().ok();
}

#[test]
fn a_vm_in_standby_can_freeze_until_a_client_comes() {
    let pair = Pair::new();
    pair.authorize("600");
    pair.world.tree("src").file("a", "1");
    pair.cloud.fault(&json!({ "call": "bridge", "freezes_in_standby": true, "times": 9 }));
    pair.upload().ok();
    pair.cloud.pass(5.0);
    assert_eq!(pair.cloud.stage(&pair.id), "standby");
    pair.upload_with(&["--contimeout", "1"]).fails(35);
    let _cdp = pair.cloud.cdp(&pair.cloud.get(&format!("/browsers/{}", pair.id)).has(200).json());
    pair.upload().ok();
}
