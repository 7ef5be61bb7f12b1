//! `ksync keep`: the processes that keep connections for the next runs.

use ksync::sync::keeper::{self, Parameters, Status};
use serde_json::json;

use crate::endpoints::endpoint;
use crate::list::visible;
use crate::report::CliError;
use crate::run::block_on;
use crate::verbs::{KeepVerb, KeepVerbArgs};
use crate::{out, request};

/// Runs the verb.
pub(crate) fn run(args: &KeepVerbArgs) -> Result<u8, CliError> {
    match &args.verb {
        KeepVerb::List { json } => list(*json),
        KeepVerb::Stop { endpoint } => stop(endpoint.as_deref(), args),
        KeepVerb::Serve => Ok(serve()),
    }
}

fn list(is_json: bool) -> Result<u8, CliError> {
    let kept = block_on(async { Ok(keeper::list().await) })?;
    for status in kept.iter().filter_map(|kept| kept.status.as_ref()) {
        let Status { endpoint, pid, age_seconds, idle_seconds, served, keep_seconds } = status;
        if is_json {
            out::result(
                &json!({
                    "v": 1, "endpoint": endpoint, "pid": pid, "age_seconds": age_seconds,
                    "idle_seconds": idle_seconds, "served": served, "keep_seconds": keep_seconds,
                })
                .to_string(),
            );
        } else {
            out::result(&format!(
                "{}  pid {pid}, connected for {}, idle for {} of {}, {served} served",
                visible(endpoint),
                time(*age_seconds),
                time(*idle_seconds),
                time(*keep_seconds),
            ));
        }
    }
    let silent = kept.iter().filter(|kept| kept.status.is_none()).count();
    if silent > 0 {
        let noun = if silent == 1 {
            "process that keeps a connection does"
        } else {
            "processes that keep connections do"
        };
        out::note(&format!("ksync: {silent} {noun} not answer\n  hint: Run ksync keep stop: it ends them."));
    }
    Ok(0)
}

/// A time in its largest whole unit.
fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn stop(text: Option<&std::ffi::OsStr>, args: &KeepVerbArgs) -> Result<u8, CliError> {
    let connect_options = request::access_options(&args.access);
    let endpoint = text.map(endpoint).transpose()?.map(|named| ksync::sync::resolve(named, &connect_options));
    let stopped = block_on(async {
        Ok(keeper::stop(endpoint.as_ref().map(|endpoint| (endpoint, &connect_options))).await)
    })?;
    out::note(&match stopped {
        0 => "ksync: no connection is kept".to_owned(),
        1 => "ksync: ended 1 kept connection".to_owned(),
        stopped => format!("ksync: ended {stopped} kept connections"),
    });
    Ok(0)
}

/// Serves the next runs. There is nobody to tell why it ends.
fn serve() -> u8 {
    keeper::detach();
    let Ok(parameters) = Parameters::read() else { return 1 };
    let served = block_on(async {
        keeper::serve(parameters, ksync::agent(), ksync::bridge())
            .await
            .map_err(|error| CliError::caused(crate::report::NOT_STARTED, &error))
    });
    u8::from(served.is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_its_largest_whole_unit() {
        let shown = [0, 119, 120, 7199, 7200, 90_000].map(time);
        assert_eq!(shown, ["0 s", "119 s", "2 min", "119 min", "2 h", "25 h"]);
    }
}
