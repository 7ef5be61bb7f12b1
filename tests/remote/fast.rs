//! Connections in the fast order to a host that is remembered, and what they do where it has
//! changed.

use std::io::{Read, Write};
use std::time::Duration;

use futures_util::future::join_all;
use ksync::remote::{
    Agent, AgentImage, Connection, ErrorKind, HostFacts, Keys, RemoteError, Target, connect, remember,
};

use crate::server::{ECHO, Server, echoes, talk};
use crate::world::link::{Cut, Flow, Link};
use crate::world::service::make_key;
use crate::world::{noise, wait_for};

/// Round trips until an agent is started, over TCP: TCP and key exchange; in order six more.
const FAST: u32 = 2;
const IN_ORDER: u32 = 7;

/// Attempts of a busy machine.
const ATTEMPTS: u32 = 5;

/// Bytes of a round: more than one write, and fewer than what is kept for a missing agent.
const ROUND_BYTES: usize = 50_000;

/// A link to the server, and a target over it that remembers.
fn remembering(server: &Server) -> (Link, Target) {
    let link = Link::to(server.address());
    let target = Target { facts: Some(server.path("facts")), ..server.target_at(link.address()) };
    (link, target)
}

fn image(server: &mut Server) -> AgentImage {
    server.image(ECHO)
}

async fn agent_says(connection: &Connection, image: &AgentImage) -> Result<(), RemoteError> {
    echoes(connection.agent(image.clone()).await?, noise(1, ROUND_BYTES)).await;
    Ok(())
}

/// Connects and starts the agent. Returns the round trips until that.
async fn round(target: &Target, image: &AgentImage) -> Result<u32, RemoteError> {
    let connection = connect(target).await?;
    agent_says(&connection, image).await?;
    let round_trips = connection.round_trips();
    connection.close().await;
    Ok(round_trips)
}

/// Asserts that the fast order takes one connection. A machine that is too busy for its deadlines
/// gets another attempt, with the same facts.
async fn assert_fast(server: &Server, link: &Link, target: &Target, image: &AgentImage) {
    let known = facts(server);
    for _ in 0..ATTEMPTS {
        link.reset();
        if round(target, image).await.unwrap() == FAST && link.carried().connections == 1 {
            return;
        }
        std::fs::write(server.path("facts"), &known).unwrap();
    }
    panic!("{known} {}", server.text("sshd.log"));
}

/// A server that is remembered, over one link.
async fn remembered(config: &str) -> Option<(Server, Link, Target, AgentImage)> {
    let mut server = Server::with(config)?;
    let image = image(&mut server);
    let (link, target) = remembering(&server);
    assert_eq!(round(&target, &image).await.unwrap(), IN_ORDER);
    for _ in 0..2 {
        assert_fast(&server, &link, &target, &image).await;
    }
    link.reset();
    Some((server, link, target, image))
}

fn facts(server: &Server) -> String {
    server.text("facts")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_host_answers_after_three_round_trips() {
    let Some((server, _, target, image)) = remembered("").await else { return };
    assert!(facts(&server).contains("SSH-2.0-OpenSSH_"));
    let link = Link::delayed(server.address(), Duration::from_millis(50));
    // The facts of the other address, as if it were this one.
    let here = Target { facts: target.facts.clone(), ..server.target_at(link.address()) };
    round(&here, &image).await.unwrap();
    let known = facts(&server);
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        wait_for("the end of the last connection", || link.is_quiet().then_some(()));
        link.reset();
        let connection = connect(&here).await.unwrap();
        let mut agent = connection.agent(image.clone()).await.unwrap();
        let first = tokio::task::spawn_blocking(move || agent.reader.read_exact(&mut [0; 8]));
        first.await.unwrap().unwrap();
        seen.push(link.round_trips());
        if seen.ends_with(&[3]) {
            return;
        }
        connection.close().await;
        std::fs::write(server.path("facts"), &known).unwrap();
    }
    panic!("{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_further_agents_run_over_a_fast_connection() {
    let Some((_server, _, target, image)) = remembered("").await else { return };
    let connection = connect(&target).await.unwrap();
    let mut lines = Vec::new();
    let status = connection.run(b"echo hi; exit 3", &mut |line| lines.push(line.to_vec())).await.unwrap();
    assert_eq!((status, lines), (3, vec![b"hi".to_vec()]));
    let agents = join_all((0..4).map(|_| connection.agent(image.clone()))).await;
    for agent in agents {
        echoes(agent.unwrap(), noise(2, 1000)).await;
    }
    assert!(!connection.is_closed());
    connection.close().await;
    // One that is never used ends, too.
    connect(&target).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_fast_connections_at_once_work() {
    let Some((server, link, target, image)) = remembered("").await else { return };
    let known = facts(&server);
    for round_trips in join_all((0..10).map(|_| round(&target, &image))).await {
        assert!([FAST, IN_ORDER].contains(&round_trips.unwrap()));
    }
    std::fs::write(server.path("facts"), known).unwrap();
    assert_fast(&server, &link, &target, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rounds_pass_a_server_that_changes_its_keys() {
    let Some((server, _, target, image)) = remembered("RekeyLimit 1M\nBanner /etc/passwd").await else {
        return;
    };
    let connection = connect(&target).await.unwrap();
    echoes(connection.agent(image).await.unwrap(), noise(1, 20_000_000)).await;
    assert!(server.text("sshd.log").contains("Accepted publickey"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_changed_takes_one_connection_more_once() {
    for config in [
        "KexAlgorithms ecdh-sha2-nistp256",
        "HostKeyAlgorithms ecdsa-sha2-nistp256",
        "Ciphers chacha20-poly1305@openssh.com",
    ] {
        let Some(mut server) = Server::new() else { return };
        let image = image(&mut server);
        let (link, target) = remembering(&server);
        let both = [server.text("host.pub"), server.text("host_ecdsa.pub")].concat();
        let target = Target { host_keys: ksync::remote::HostKeys::Exactly(both), ..target };
        round(&target, &image).await.unwrap();
        assert_fast(&server, &link, &target, &image).await;
        server.start(config);
        link.reset();
        let seen = (round(&target, &image).await.unwrap(), link.carried().connections);
        assert_eq!(seen, (IN_ORDER, 2), "{config}: {}", facts(&server));
        for _ in 0..2 {
            assert_fast(&server, &link, &target, &image).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_ciphers_of_the_fast_order_is_met_in_order_until_it_has_some() {
    let Some((mut server, link, target, image)) = remembered("").await else { return };
    server.start("Ciphers aes256-ctr");
    link.reset();
    let seen = (round(&target, &image).await.unwrap(), link.carried().connections);
    assert_eq!(seen, (IN_ORDER, 2), "{}", facts(&server));
    for _ in 0..2 {
        link.reset();
        let seen = (round(&target, &image).await.unwrap(), link.carried().connections);
        assert_eq!(seen, (IN_ORDER, 1), "{}", facts(&server));
    }
    server.start("");
    assert_eq!(round(&target, &image).await.unwrap(), IN_ORDER);
    assert_fast(&server, &link, &target, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_version_is_met_in_the_fast_order_at_once() {
    let Some((mut server, link, target, image)) = remembered("").await else { return };
    server.start("VersionAddendum another");
    assert_fast(&server, &link, &target, &image).await;
    assert!(facts(&server).contains(" another"), "{}", facts(&server));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_another_key_gets_nothing_and_is_not_tried_again() {
    let Some((mut server, link, target, _)) = remembered("").await else { return };
    std::fs::copy(server.path("other"), server.path("host")).unwrap();
    std::fs::copy(server.path("other.pub"), server.path("host.pub")).unwrap();
    server.start("LogLevel DEBUG1");
    let error = connect(&target).await.map(drop).unwrap_err();
    assert!(matches!(error, RemoteError::HostKey { .. }), "{error:?}");
    assert_eq!(link.carried().connections, 1);
    let log = server.text("sshd.log");
    assert!(log.contains("SSH2_MSG_KEXINIT received") && !log.contains("SSH2_MSG_NEWKEYS received"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_key_is_offered_on_the_same_connection_where_one_was_removed() {
    let Some((server, link, target, image)) = remembered("").await else { return };
    let target = Target { keys: Keys::named(vec![server.path("key"), server.path("other")]), ..target };
    std::fs::copy(server.path("other.pub"), server.path("key.pub")).unwrap();
    let before = facts(&server);
    assert_fast(&server, &link, &target, &image).await;
    // The key that was let in instead is remembered.
    assert_ne!(facts(&server), before);
    assert_fast(&server, &link, &target, &image).await;
    // With no key left, the error is the usual one.
    std::fs::write(server.path("key.pub"), "").unwrap();
    let error = round(&target, &image).await.unwrap_err();
    assert!(error.to_string().ends_with("it accepted none of 2 keys (it accepts: publickey)"), "{error}");
    let target = Target { keys: Keys::named(vec![server.path("key")]), ..target };
    let error = round(&target, &image).await.unwrap_err();
    assert!(error.to_string().ends_with("it did not accept the key (it accepts: publickey)"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_one_key_only_ends_as_it_does_in_order() {
    let Some((server, link, target, image)) = remembered("MaxAuthTries 1").await else { return };
    std::fs::write(server.path("key.pub"), "").unwrap();
    let fast = round(&target, &image).await.unwrap_err().to_string();
    assert!(link.carried().connections <= 2);
    let in_order = Target { facts: None, ..target.clone() };
    assert_eq!(fast, round(&in_order, &image).await.unwrap_err().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_channels_and_commands_are_told_as_in_order() {
    for config in ["MaxSessions 0", "MaxSessions 1", "ForceCommand cat", "ForceCommand exit 7"] {
        let Some((mut server, _, target, image)) = remembered("").await else { return };
        server.start(config);
        let mut told = Vec::new();
        for target in [target.clone(), Target { facts: None, ..target }] {
            let connection = connect(&target).await.unwrap();
            // The first of two agents runs where one session is allowed.
            let agents = [connection.agent(image.clone()).await, connection.agent(image.clone()).await];
            let mut errors = Vec::new();
            for agent in agents {
                errors.push(match agent {
                    Ok(agent) => {
                        let (heard, end) = talk(agent, noise(1, 100)).await;
                        let error = end.error.map(|error| error.to_string());
                        (heard.is_ok(), error, end.exit_status)
                    }
                    Err(error) => (false, Some(error.to_string()), None),
                });
            }
            told.push(errors);
        }
        assert_eq!(told[0], told[1], "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_link_is_given_up_for_a_connection_in_order() {
    let Some((server, link, target, image)) = remembered("").await else { return };
    link.set_flow(Flow::Vanishes);
    let second = async {
        // The first connection stays useless.
        while link.carried().connections == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        link.set_flow(Flow::Passes);
    };
    let (seen, ()) = tokio::join!(round(&target, &image), second);
    assert_eq!((seen.unwrap(), link.carried().connections), (IN_ORDER, 2));
    // One silence is no reason to do without the fast order.
    assert_fast(&server, &link, &target, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_gone_or_damaged_is_installed_over_a_fast_connection() {
    let Some((server, _, target, image)) = remembered("").await else { return };
    let file = server.agents().join(format!("agent-{}", image.sha256));
    let harms: [&dyn Fn(); 3] = [
        &|| std::fs::remove_dir_all(server.agents()).unwrap(),
        &|| std::fs::write(&file, "damaged").unwrap(),
        &|| std::fs::write(&file, "").unwrap(),
    ];
    for harm in harms {
        harm();
        for is_installed in [true, false] {
            let connection = connect(&target).await.unwrap();
            let Agent { mut reader, mut writer, end, installed, .. } =
                connection.agent(image.clone()).await.unwrap();
            let words = noise(3, ROUND_BYTES);
            let (sent, length) = (words.clone(), words.len());
            let heard = tokio::task::spawn_blocking(move || {
                writer.write_all(&sent).unwrap();
                drop(writer);
                let mut heard = Vec::new();
                reader.read_to_end(&mut heard).map(|_| heard)
            });
            let heard = heard.await.unwrap().unwrap();
            assert!(heard.ends_with(&words) && heard.len() == length + 8);
            assert_eq!(installed.sent_bytes().unwrap().is_some(), is_installed);
            assert_eq!(end.wait().await.exit_status, Some(0));
            connection.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_another_directory_is_found_there() {
    let Some((server, link, target, image)) = remembered("").await else { return };
    std::fs::remove_dir_all(server.agents()).unwrap();
    // Nothing can be made there, so the agent goes to another directory.
    std::fs::write(server.agents(), "").unwrap();
    for _ in 0..3 {
        assert_fast(&server, &link, &target, &image).await;
    }
    assert!(facts(&server).contains(&format!("elsewhere:{}", image.sha256)), "{}", facts(&server));
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_of_provisioning_make_the_first_connection_fast() {
    let Some(mut server) = Server::new() else { return };
    let image = image(&mut server);
    let (link, target) = remembering(&server);
    let known = HostFacts::provisioned(
        "SSH-2.0-OpenSSH_9.2p1",
        "diffie-hellman-group14-sha256,curve25519-sha256",
        &server.text("host.pub"),
        &server.text("key.pub"),
    );
    remember(&target, known.unwrap());
    assert_fast(&server, &link, &target, &image).await;
    // Facts that are wrong cost a connection.
    for host_key in ["ssh-ed25519", "ecdsa-sha2-nistp256"] {
        let wrong = facts(&server).replace("sntrup761x25519-sha512@openssh.com", "ecdh-sha2-nistp256");
        std::fs::write(server.path("facts"), wrong.replace("ssh-ed25519", host_key)).unwrap();
        link.reset();
        round(&target, &image).await.unwrap();
        assert!(link.carried().connections <= 2, "{host_key}");
    }
    assert_fast(&server, &link, &target, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_and_ecdsa_keys_are_remembered() {
    let Some(mut server) = Server::new() else { return };
    let image = image(&mut server);
    let (link, target) = remembering(&server);
    for kind in ["rsa", "ecdsa"] {
        make_key(&server, "user", kind);
        std::fs::copy(server.path("user.pub"), server.path("key.pub")).unwrap();
        let target = Target { keys: Keys::named(vec![server.path("user")]), ..target.clone() };
        round(&target, &image).await.unwrap();
        assert_fast(&server, &link, &target, &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_login_cut_at_any_byte_goes_on_in_order_or_is_a_lost_connection() {
    const STEP: usize = 173;
    let Some((server, link, target, image)) = remembered("").await else { return };
    let known = facts(&server);
    let mut went_on = 0;
    for cuts in [Cut::UpAfter as fn(u64) -> Cut, Cut::DownAfter] {
        for place in (0..).step_by(STEP) {
            // Two cuts in a row would count against the host.
            std::fs::write(server.path("facts"), &known).unwrap();
            link.reset();
            link.cut_next(cuts(place));
            let connection = connect(&target).await.unwrap();
            let agent = connection.agent(image.clone()).await;
            let agent = agent.unwrap_or_else(|error| panic!("cut at {place}: {error:?}"));
            let (heard, end) = talk(agent, noise(1, 100)).await;
            let is_second = link.carried().connections == 2;
            went_on += u32::from(is_second);
            match heard {
                Ok(_) if !is_second => break,
                Ok(heard) => assert!(heard.ends_with(&noise(1, 100)), "cut at {place}"),
                // The command may have run.
                Err(_) => {
                    let kind = end.error.expect("an error").kind();
                    assert!(matches!(kind, ErrorKind::Socket | ErrorKind::Timeout), "{place}: {kind:?}");
                }
            }
        }
    }
    assert!(went_on > 10, "{went_on}");
}
