//! Login shells and forced commands that do not run what ksync asks for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync::remote::{ErrorKind, RemoteError, ShellFault, Target, connect};

use crate::server::{ECHO, MAGIC, Server, echoes, talk};
use crate::world::noise;

/// The first bytes of a client: the magic word, and a frame.
fn hello() -> Vec<u8> {
    [MAGIC, &[40, 0, 0, 0], &noise(1, 40)].concat()
}

/// The error of an agent, and the time until it came.
async fn error_of(server: &mut Server, contimeout: Duration) -> (Arc<RemoteError>, Duration) {
    let target = Target { connect_timeout: contimeout, ..server.target() };
    let connection = connect(&target).await.unwrap();
    let begin = Instant::now();
    let agent = connection.agent(server.image(ECHO)).await.unwrap();
    let (heard, end) = talk(agent, hello()).await;
    assert!(heard.is_err());
    connection.close().await;
    (end.error.expect("an error"), begin.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_the_place_of_the_shell_is_recognised_at_once() {
    let Some(mut server) = Server::new() else { return };
    for program in ["cat", "/bin/sh", "cat >/dev/null", "while read -r line; do :; done", "wc -c"] {
        server.start(&format!("ForceCommand {program}"));
        let (error, after) = error_of(&mut server, Duration::from_secs(60)).await;
        assert!(
            matches!(&*error, RemoteError::NotRun { fault: ShellFault::RunsNothing, .. }),
            "{program}: {error:?}"
        );
        assert!(after < Duration::from_secs(12), "{program}: {after:?}");
        assert_eq!(error.kind(), ErrorKind::CouldNotStart);
        assert!(error.hint().contains("ForceCommand") && !error.is_retryable(), "{}", error.hint());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_shell_is_given_half_of_the_timeout() {
    let Some(mut server) = Server::with("ForceCommand sleep 1000") else { return };
    let (error, after) = error_of(&mut server, Duration::from_secs(8)).await;
    assert!(matches!(&*error, RemoteError::NotRun { fault: ShellFault::Silent(_), .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "could not start the agent on 127.0.0.1:{}: its login shell did not run the command within 4 s",
            server.port()
        )
    );
    assert!(after >= Duration::from_secs(4) && after < Duration::from_secs(8), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_takes_the_input_before_the_command_is_recognised() {
    let Some(mut server) = Server::with("ForceCommand cat >/dev/null; eval \"$SSH_ORIGINAL_COMMAND\"") else {
        return;
    };
    let (error, after) = error_of(&mut server, Duration::from_secs(60)).await;
    assert!(matches!(&*error, RemoteError::NotRun { fault: ShellFault::WaitsForInput, .. }), "{error:?}");
    assert!(after < Duration::from_secs(20), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_shell_is_waited_for() {
    let Some(mut server) = Server::with("ForceCommand sleep 5; eval \"$SSH_ORIGINAL_COMMAND\"") else {
        return;
    };
    let image = server.image(ECHO);
    let connection = server.connect().await;
    echoes(connection.agent(image).await.unwrap(), hello()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_a_connection_of_its_own_if_the_server_allows_no_further_channel() {
    let Some(mut server) = Server::with("MaxSessions 1") else { return };
    let image = server.image(ECHO);
    let connection = server.connect().await;
    let agent = connection.agent(image).await.unwrap();
    let mut said = Vec::new();
    let status =
        connection.run(b"echo out; echo err >&2; exit 3", &mut |line| said.push(line.to_vec())).await;
    assert_eq!(status.unwrap(), 3);
    said.sort();
    assert_eq!(said, [b"err".to_vec(), b"out".to_vec()]);
    // The first connection still works.
    echoes(agent, hello()).await;
}
