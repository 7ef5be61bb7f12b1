//! The recipe that people follow today, step by step with its own programs, on a session of the
//! emulated platform: a key, a session, its setup, an upload, a download, sftp, rsync, the end.
//!
//! The commands are the recipe's own words. Two programs stand between them and the platform:
//! `kernel` makes the API calls of the official CLI (see `kernel.sh`), and `websocat` leads
//! `wss://` URLs through a relay that adds TLS, because the websocat of the tests has none.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::world::skip::{needs_programs, program};
use crate::world::{Emulator, Run, World, noise};

const KERNEL: &str = include_str!("kernel.sh");

/// The official CLI's script. The root of an emulated VM may be a directory of this machine.
const OFFICIAL: &str = include_str!("../provision/official.sh");

/// The recipe's options for everything that uses ssh.
const OPTIONS: &str = r#"-o "ProxyCommand=websocat --binary wss://${VM_DOMAIN}:2222" \
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i "$KEY""#;

/// The platform, the recipe's programs, and the shell variables of its steps so far.
struct Recipe {
    world: World,
    emulator: Emulator,
    variables: Vec<(&'static str, String)>,
    runtime: Runtime,
}

impl Recipe {
    fn start() -> Option<Recipe> {
        let peers =
            ["bash", "ssh", "scp", "sftp", "rsync", "websocat", "jq", "ssh-keygen", "curl", "sha256sum"];
        if !needs_programs(&peers) {
            return None;
        }
        let world = World::new();
        let emulator = Emulator::new(&world);
        let websocat = program("websocat").expect("websocat").display().to_string();
        // Without the option, websocat may keep bytes that did not fit into a full pipe.
        let websocat = format!(
            "#!/bin/sh\nexec {websocat} --no-async-stdio \"$1\" \"$(echo \"$2\" | sed \"s|wss://$VM_DOMAIN:2222|ws://$RELAY|\")\"\n"
        );
        for (name, text) in [("bin/kernel", KERNEL), ("bin/websocat", &websocat)] {
            // A shell writes it: a fork of another test could inherit the open file, and a program
            // that is open for writing cannot run.
            let mut sh = world.command("sh");
            sh.args(["-ec", "mkdir -p bin; printf %s \"$1\" >\"$2\"; chmod 755 \"$2\"", "sh", text, name]);
            Run::of(sh).ok();
        }
        let official = OFFICIAL.replace("/root/.ssh", "${KSYNC_SANDBOX_ROOT-}/root/.ssh");
        let key = world.path("kernel-scp-key").display().to_string();
        let there = world.path("there").display().to_string();
        let variables = vec![("OFFICIAL", official), ("KEY", key), ("THERE", there)];
        let runtime = Runtime::new().expect("a runtime");
        Some(Recipe { world, emulator, variables, runtime })
    }

    /// Runs commands of the recipe.
    fn run(&self, commands: &str) -> Run {
        let mut bash = self.world.command("bash");
        bash.args(["-euo", "pipefail", "-c", &commands.replace("$OPTIONS", OPTIONS)]);
        bash.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let path = std::env::join_paths(
            [self.world.path("bin"), Path::new(env!("CARGO_BIN_EXE_ksync")).parent().unwrap().to_owned()]
                .into_iter()
                .chain(std::env::split_paths(&crate::world::path())),
        );
        let mut bash: Command = self.emulator.lend(bash);
        bash.env("PATH", path.expect("a path"));
        Run::of(bash)
    }

    /// Runs a step, and returns its output without the last line's end.
    #[track_caller]
    fn step(&self, commands: &str) -> String {
        self.run(commands).ok().stdout.trim_end().to_owned()
    }

    /// Runs a step whose output becomes the value of a variable.
    #[track_caller]
    fn set(&mut self, name: &'static str, commands: &str) -> String {
        let value = self.step(commands);
        self.variables.push((name, value.clone()));
        value
    }

    /// Starts the relay to a VM, which adds TLS.
    fn relay(&mut self, vm: &str) {
        let target: SocketAddr = format!("{vm}:2222").parse().expect("an address");
        let mut roots = RootCertStore::empty();
        let ca_cert = self.emulator.told["env"]["KSYNC_CA_CERT"].as_str().expect("a path");
        roots.add(CertificateDer::from_pem_file(ca_cert).expect("a certificate")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let listener = self.runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        self.variables.push(("RELAY", listener.local_addr().expect("an address").to_string()));
        self.runtime.spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                let connector = connector.clone();
                tokio::spawn(async move {
                    let Ok(outside) = TcpStream::connect(target).await else { return };
                    let name = ServerName::from(target.ip());
                    let Ok(mut outside) = connector.connect(name, outside).await else { return };
                    let _ = copy_bidirectional(&mut inside, &mut outside).await;
                });
            }
        });
    }

    fn create(&mut self) {
        self.step(r#"ssh-keygen -t ed25519 -f "$KEY" -N "" -q"#);
        let id = self.set("SESSION_ID", "kernel browsers create --timeout 300 -o json | jq -r '.session_id'");
        assert!(id.len() >= 20, "{id}");
    }

    /// The setup's output, whose fields are the same whoever made it.
    fn set_up(&mut self, setup: &str) {
        let told: Value = serde_json::from_str(&self.set("SETUP", setup)).expect("JSON");
        let names: Vec<_> = told.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(names, ["proxy_command", "session_id", "ssh_command", "ssh_key_file", "vm_domain"]);
        let id = self.variables.iter().find(|(name, _)| *name == "SESSION_ID").map(|(_, id)| id.as_str());
        assert_eq!(
            (told["session_id"].as_str(), told["ssh_key_file"].as_str()),
            (id, self.path("kernel-scp-key").as_deref())
        );
        let domain = self.set("VM_DOMAIN", r#"echo "$SETUP" | jq -r '.vm_domain'"#);
        self.relay(&domain);
    }

    fn path(&self, name: &str) -> Option<String> {
        self.world.path(name).to_str().map(str::to_owned)
    }

    fn ssh(&self, command: &str) -> String {
        self.step(&format!("ssh -o LogLevel=ERROR $OPTIONS root@localhost \"{command}\""))
    }

    /// The recipe's steps from the first transfer to the end.
    fn transfer_and_end(&self) {
        let content = noise(5, 5_000_000);
        fs::write(self.world.path("my-large-file.tar.gz"), &content).unwrap();
        self.ssh("mkdir -p $THERE");

        // Upload a file, and download it again under another name.
        let sum = self.step("sha256sum <my-large-file.tar.gz");
        self.step(r#"scp $OPTIONS ./my-large-file.tar.gz root@localhost:"$THERE"/my-large-file.tar.gz"#);
        assert_eq!(self.ssh("sha256sum <$THERE/my-large-file.tar.gz"), sum);
        self.ssh("cat $THERE/my-large-file.tar.gz $THERE/my-large-file.tar.gz >$THERE/result.zip");
        self.step(r#"scp $OPTIONS root@localhost:"$THERE"/result.zip ./result.zip"#);
        assert!(fs::read(self.world.path("result.zip")).unwrap() == [&content[..], &content[..]].concat());

        // The same with sftp.
        self.step(
            r#"printf 'cd %s\nput my-large-file.tar.gz sent\nget sent ./got\n' "$THERE" >batch
            sftp -q -b batch $OPTIONS root@localhost"#,
        );
        assert!(fs::read(self.world.path("got")).unwrap() == content);

        // A directory with rsync. VMs have none, and the recipe does not say so: a user installs
        // it with apt-get. This machine's own is installed here, by scp.
        self.step(r#"scp -q $OPTIONS "$(command -v rsync)" root@localhost:"$THERE"/rsync"#);
        self.world.tree("local-dir").with_everything();
        let rsync = r#"rsync -avz --progress --rsync-path="$THERE"/rsync -e "ssh -o \
            'ProxyCommand=websocat --binary wss://${VM_DOMAIN}:2222' -o StrictHostKeyChecking=no \
            -o UserKnownHostsFile=/dev/null -i $KEY" ./local-dir/ root@localhost:"$THERE"/remote-dir/"#;
        let said = self.step(rsync);
        assert!(said.contains("100%") && said.contains("sent "), "{said}");
        assert!(!self.step(rsync).contains("100%"));
        self.step("mkdir back; ssh -o LogLevel=ERROR $OPTIONS root@localhost \"tar -cC $THERE/remote-dir .\" | tar -xpC back");
        self.step("diff -r --no-dereference local-dir back");

        // The end: the session is gone, and nothing answers at its address.
        self.step(r#"kernel browsers delete "$SESSION_ID""#);
        self.step(r#"rm -f "$KEY" "$KEY.pub""#);
        let gone = self.run(
            r#"curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $KERNEL_API_KEY" \
            "$KERNEL_BASE_URL/browsers/$SESSION_ID""#,
        );
        assert_eq!(gone.ok().stdout, "404");
        self.run("ssh $OPTIONS -o BatchMode=yes root@localhost true").fails(255);
    }
}

#[test]
fn the_whole_recipe_works_as_it_is_written() {
    let Some(mut recipe) = Recipe::start() else { return };
    recipe.create();
    recipe.set_up(r#"kernel browsers ssh "$SESSION_ID" -i "$KEY" --setup-only -o json"#);
    assert!(recipe.step(r#"echo "$SETUP" | jq -r .proxy_command"#).starts_with("websocat --binary wss://"));
    // A second setup only adds the key again.
    recipe.step(r#"kernel browsers ssh "$SESSION_ID" -i "$KEY" --setup-only -o json"#);
    recipe.transfer_and_end();
}

#[test]
fn the_whole_recipe_works_after_a_setup_by_ksync() {
    let Some(mut recipe) = Recipe::start() else { return };
    recipe.create();
    recipe.set_up(r#"ksync session setup "$SESSION_ID" --identity "$KEY" --json"#);
    // The recipe's way to use the proxy command.
    let said = recipe.step(
        r#"ssh -o "ProxyCommand=$(echo "$SETUP" | jq -r .proxy_command)" -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i "$KEY" root@localhost 'echo in'"#,
    );
    assert_eq!(said, "in");
    recipe.transfer_and_end();
}
