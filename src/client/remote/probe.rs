//! A second question to a login shell that does not run the agent: does it run commands at all?
//!
//! A start file of the shell may exec another program, and a ForceCommand may be a menu. Such a
//! program takes the bytes that are meant for the agent, and answers nothing. ksync must not end
//! its input, because a slow shell would then get no agent. It does so on another channel instead.
//! There the program ends, and the command has not been run. A start file that only reads a line
//! goes on there, and the command is run.

use std::sync::{Arc, Weak};
use std::time::Duration;

use russh::ChannelMsg;
use tokio::time::{Instant, sleep};

use crate::log::debug;
use crate::remote::error::ShellFault;
use crate::remote::session::Session;

/// Silence of the shell after which ksync asks. Start files of most shells take less than a second.
const ASK_AFTER: Duration = Duration::from_secs(2);

/// Round trips that starting an agent takes at most, beside the work on the other side.
const ROUND_TRIPS: u32 = 4;

/// Time for the agent to start, after another shell has answered. That shell found no input, so the
/// agent's one must be waiting for some.
const AGENT_STARTS_WITHIN: Duration = Duration::from_secs(5);

/// The same, as a multiple of the time that the other shell took.
const AGENT_PER_PROBE: u32 = 10;

/// The answer of a shell that runs commands.
const ANSWER: &[u8] = b"KSYNC-HERE";

/// The command. The answer does not stand in it as such, for the sake of programs that repeat it.
const COMMAND: &str = "exec sh -c 'printf %s-%s KSYNC HERE'";

/// Output of the shell that ksync searches for the answer, in bytes.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// A question that can be asked on a session, if the session still lives.
pub(super) struct Probe {
    session: Weak<Session>,
    after: Duration,
}

impl Probe {
    pub(super) fn new(session: &Arc<Session>, round_trip: Duration) -> Self {
        Self { session: Arc::downgrade(session), after: ASK_AFTER + ROUND_TRIPS * round_trip }
    }

    /// Asks after a while, and returns once it is clear that the agent will not start. Otherwise,
    /// and if nothing is known, this waits for ever.
    pub(super) async fn finds_no_agent(self) -> ShellFault {
        sleep(self.after).await;
        let begin = Instant::now();
        let runs = self.asks().await;
        let took = begin.elapsed();
        debug!("agent step=probe runs_commands={runs:?} ms={}", took.as_millis());
        match runs {
            Some(false) => ShellFault::RunsNothing,
            Some(true) => {
                sleep(AGENT_STARTS_WITHIN.max(AGENT_PER_PROBE * took)).await;
                ShellFault::WaitsForInput
            }
            None => std::future::pending().await,
        }
    }

    /// True if the shell ran the command; `None` if it cannot be asked.
    async fn asks(&self) -> Option<bool> {
        let mut channel = {
            let session = self.session.upgrade()?;
            session.open().await.ok()?
        };
        channel.exec(false, COMMAND).await.ok()?;
        channel.eof().await.ok()?;
        let mut output = Vec::new();
        loop {
            match channel.wait().await? {
                ChannelMsg::Data { data } => {
                    output.extend_from_slice(&data);
                    if output.windows(ANSWER.len()).any(|part| part == ANSWER) {
                        return Some(true);
                    }
                    if output.len() > OUTPUT_BYTES_MAX {
                        return Some(false);
                    }
                }
                ChannelMsg::Close => return Some(false),
                _ => {}
            }
        }
    }
}
