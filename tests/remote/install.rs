//! Installation of the agent on all kinds of servers.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync::remote::{AgentImage, ErrorKind, RemoteError};

use crate::server::{ECHO, MAGIC, Server, chmod, echoes, pack, talk};
use crate::world::noise;
use crate::world::skip::{needs, needs_superuser, program, skip};

/// Bytes that the test writes before it can know if there is an agent: more than a first flight.
const WORDS: usize = 200_000;

fn agent_file(server: &Server, image: &AgentImage) -> std::path::PathBuf {
    server.agents().join(format!("agent-{}", image.sha256))
}

async fn is_installed_now(server: &Server, image: &AgentImage) -> bool {
    let connection = server.connect().await;
    let agent = connection.agent(image.clone()).await.unwrap();
    let installed = agent.installed.clone();
    echoes(agent, noise(1, WORDS)).await;
    connection.close().await;
    let sent = installed.sent_bytes().expect("it has answered");
    assert!(sent.is_none_or(|sent| sent == image.gzip.len() as u64), "{sent:?}");
    sent.is_some()
}

async fn install_error(server: &Server, image: AgentImage) -> Arc<RemoteError> {
    let connection = server.connect().await;
    let agent = connection.agent(image).await.unwrap();
    let (heard, end) = talk(agent, noise(1, 1000)).await;
    // The reader and the end report the same error.
    let heard = heard.unwrap_err();
    let error = end.error.expect("an error");
    assert_eq!(heard.to_string(), error.to_string());
    connection.close().await;
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_installed_once_and_then_found() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    assert!(is_installed_now(&server, &image).await);
    assert!(!is_installed_now(&server, &image).await);
    let files: Vec<_> =
        std::fs::read_dir(server.agents()).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files, [agent_file(&server, &image)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_agents_share_a_connection_and_install_at_once() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    let connection = server.connect().await;
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        all.spawn(echoes(connection.agent(image.clone()).await.unwrap(), noise(1, 300_000)));
    }
    all.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_agent_answers() {
    let Some(server) = Server::new() else { return };
    let connection = server.connect().await;
    for there in [false, true] {
        let agent = connection.agent(ksync::agent()).await.unwrap();
        let installed = agent.installed.clone();
        let (heard, _) = talk(agent, Vec::new()).await;
        assert!(heard.unwrap().starts_with(MAGIC));
        assert_eq!(installed.sent_bytes().unwrap().is_none(), there);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_wrong_hash_is_replaced() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    assert!(is_installed_now(&server, &image).await);
    let file = agent_file(&server, &image);
    let damages: [&dyn Fn(); 3] = [
        &|| std::fs::write(&file, "#!/bin/sh\ntouch \"$HOME/harm\"\n").unwrap(),
        &|| std::fs::write(&file, "").unwrap(),
        &|| {
            std::fs::rename(&file, server.path("elsewhere")).unwrap();
            symlink(server.path("elsewhere"), &file).unwrap();
        },
    ];
    for damage in damages {
        damage();
        assert!(is_installed_now(&server, &image).await);
        assert!(std::fs::symlink_metadata(&file).unwrap().is_file());
        assert!(!is_installed_now(&server, &image).await);
    }
    assert!(!server.home().join("harm").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_others_may_enter_is_not_used() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    // A directory of this user that is open to others; a link to a closed one; a file.
    let prepare: [&dyn Fn(&Path); 3] = [
        &|path| {
            std::fs::create_dir_all(path).unwrap();
            chmod(path, 0o755);
        },
        &|path| {
            let aside = path.with_file_name("aside");
            std::fs::create_dir(&aside).unwrap();
            chmod(&aside, 0o700);
            symlink(&aside, path).unwrap();
        },
        &|path| std::fs::write(path, "").unwrap(),
    ];
    for (index, prepare) in prepare.iter().enumerate() {
        prepare(&server.agents());
        assert_eq!(is_installed_now(&server, &image).await, index == 0, "found elsewhere but the first time");
        assert!(!server.agents().is_dir() || std::fs::read_dir(server.agents()).unwrap().next().is_none());
        let aside = server.agents().with_file_name(format!("old{index}"));
        std::fs::rename(server.agents(), aside).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_noexec_or_full_disk_is_passed_over() {
    let Some(mut server) = Server::new() else { return };
    if !needs_superuser() {
        return;
    }
    for options in ["noexec", "size=4k", "ro"] {
        let image = server.image(&format!("# {}\n{ECHO}", "x".repeat(20_000)));
        std::fs::create_dir_all(server.cache()).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(server.cache()).output();
        if !mount.unwrap().status.success() {
            return skip("no mount");
        }
        let connection = server.connect().await;
        let agent = connection.agent(image.clone()).await.unwrap();
        let installed = agent.installed.clone();
        let (heard, end) = talk(agent, noise(1, WORDS)).await;
        let umount = Command::new("umount").arg("-l").arg(server.cache()).status();
        assert!(umount.unwrap().success());
        assert_eq!(heard.expect(options).len(), MAGIC.len() + WORDS, "{options}");
        assert_eq!(end.exit_status, Some(0));
        // Only the upload reveals a full disk.
        let times = if options == "size=4k" { 2 } else { 1 };
        assert_eq!(installed.sent_bytes(), Some(Some(times * image.gzip.len() as u64)), "{options}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_installation_reports_the_reason_for_each_directory() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    let wrong = AgentImage { sha256: "0".repeat(64).into(), ..image };
    let error = install_error(&server, wrong).await;
    assert_eq!(error.kind(), ErrorKind::CouldNotStart);
    let text = error.to_string();
    assert!(text.starts_with("could not install the agent on 127.0.0.1:"), "{text}");
    assert!(text.contains(&format!("{}: it arrived damaged", server.agents().display())), "{text}");
    assert!(text.contains("/tmp/ksync-"), "{text}");
    assert!(std::fs::read_dir(server.agents()).unwrap().next().is_none(), "something was left behind");
    // A program for another machine.
    let error = install_error(&server, pack(b"\x7fELF of another machine")).await;
    assert!(error.to_string().contains("the agent does not run there"), "{error}");
    assert!(std::fs::read_dir(server.agents()).unwrap().next().is_none(), "something was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_agents_are_removed_and_nothing_else() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    std::fs::create_dir_all(server.agents()).unwrap();
    chmod(&server.agents(), 0o700);
    for (name, days) in [("agent-old", 31), ("agent-young", 29), ("other", 99), (".new-old", 3)] {
        let file = std::fs::File::create(server.agents().join(name)).unwrap();
        let age = Duration::from_secs((days * 24 + 1) * 3600);
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    assert!(is_installed_now(&server, &image).await);
    let mut left: Vec<_> =
        std::fs::read_dir(server.agents()).unwrap().map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [format!("agent-{}", image.sha256).as_str(), "agent-young", "other"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_of_a_login_shell_is_skipped() {
    let Some(mut server) = Server::with("Banner /etc/os-release") else { return };
    let image = server.image(ECHO);
    std::fs::write(server.home().join(".bashrc"), "echo Welcome; head -c 60000 /dev/urandom; echo to >&2\n")
        .unwrap();
    assert!(is_installed_now(&server, &image).await);
    assert!(!is_installed_now(&server, &image).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_noise_ends_with_an_error_that_quotes_the_noise() {
    let Some(mut server) = Server::with("ForceCommand yes \"Good $(printf '\\033')[2J morning\"") else {
        return;
    };
    let begin = Instant::now();
    let image = server.image(ECHO);
    let error = install_error(&server, image).await;
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(error.kind(), ErrorKind::CouldNotStart);
    let text = error.to_string();
    assert!(text.contains("Good") && !text.contains('\x1b') && text.len() < 1000, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_run_commands_is_reported() {
    let Some(mut server) =
        Server::with("ForceCommand echo 'This account is not available.'; echo why >&2; exit 7")
    else {
        return;
    };
    let image = server.image(ECHO);
    let error = install_error(&server, image).await;
    assert_eq!(
        error.to_string(),
        format!(
            "could not start the agent on 127.0.0.1:{}: the command ended with 7 before the agent answered: \
             why: This account is not available.",
            server.port()
        )
    );
}

/// The installed ones of these shells. Skips the test if there are none.
fn installed(shells: &[&'static str]) -> Vec<(&'static str, PathBuf)> {
    let found: Vec<_> = shells.iter().filter_map(|shell| Some((*shell, program(shell)?))).collect();
    needs(!found.is_empty(), format!("none of {shells:?} is installed"));
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_runs_the_bootstrap_line() {
    for (shell, path) in installed(&["dash", "bash", "busybox", "zsh", "mksh", "ksh"]) {
        let Some(mut server) = Server::new() else { return };
        let bin = server.path("bin");
        std::fs::create_dir(&bin).unwrap();
        symlink(path, bin.join("sh")).unwrap();
        let (home, cache) = (server.home(), server.cache());
        server.start(&format!(
            "SetEnv HOME={} XDG_CACHE_HOME={} PATH={}:/usr/bin:/bin LC_ALL=C.UTF-8",
            home.display(),
            cache.display(),
            bin.display()
        ));
        let image = server.image(ECHO);
        assert!(is_installed_now(&server, &image).await, "{shell}");
        assert!(!is_installed_now(&server, &image).await, "{shell}");
        assert!(agent_file(&server, &image).is_file(), "{shell}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_login_shell_passes_the_bootstrap_line_on() {
    for (shell, path) in installed(&["fish", "tcsh", "zsh", "bash"]) {
        let config = format!("ForceCommand {} -c \"$SSH_ORIGINAL_COMMAND\"", path.display());
        let Some(mut server) = Server::with(&config) else { return };
        let image = server.image(ECHO);
        assert!(is_installed_now(&server, &image).await, "{shell}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_agent_is_reported() {
    let Some(mut server) = Server::new() else { return };
    let image = server
        .image("head -c 100000 /dev/zero | tr '\\0' x >&2; printf '\\nlast \\033[2Jwords\\n' >&2; exit 3");
    let connection = server.connect().await;
    let (heard, end) = talk(connection.agent(image).await.unwrap(), Vec::new()).await;
    assert_eq!(heard.unwrap(), MAGIC);
    assert_eq!(end.exit_status, Some(3));
    assert!(end.stderr.ends_with("x\nlast \\u{1b}[2Jwords"), "{}", end.stderr);
    assert!(end.stderr.len() <= 8 * 1024 + 10 && end.error.is_none());
    let image = server.image("kill -9 $$");
    let (_, end) = talk(connection.agent(image).await.unwrap(), Vec::new()).await;
    assert_eq!((end.exit_status, end.signal.as_deref()), (None, Some("KILL")));
}
