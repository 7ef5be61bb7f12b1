//! The parameters of `ksync session create`.

use std::ffi::{OsStr, OsString};

use clap::Args;
use ksync::kernel::Parameters;
use serde_json::{Value, json};

use crate::report::CliError;
use crate::request::load;
use crate::usage::number;

/// Idle timeout of a new session, in seconds, if nothing names one.
const TIMEOUT_SECONDS: u64 = 300;

/// The options of `ksync session create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Idle time after which the session ends, 10 to 259200; by default 300
    #[arg(long, value_name = "SECONDS", value_parser = number(10..=259_200u64, "seconds, 10 to 259200"))]
    pub(crate) timeout: Option<u64>,
    /// Create it without a screen
    #[arg(long)]
    pub(crate) headless: bool,
    /// Hide the automation from websites, and solve their CAPTCHAs
    #[arg(long)]
    pub(crate) stealth: bool,
    /// Hide Chromium's address bar and tabs
    #[arg(long)]
    pub(crate) kiosk: bool,
    /// A name that no other session has at the time
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The region, such as us-east or eu-west
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// The VM's memory, such as 4GiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// The window's size in pixels, and its refresh rate if it matters: 1280x800@60
    #[arg(long, value_name = "WxH[@HZ]", value_parser = viewport)]
    pub(crate) viewport: Option<Viewport>,
    /// The proxy for Chromium: its name, id:ID, direct or default
    #[arg(long, value_name = "PROXY")]
    pub(crate) proxy: Option<String>,
    /// The browser profile to load: its name, or id:ID
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<String>,
    /// Save the profile's changes when the session ends
    #[arg(long, requires = "profile")]
    pub(crate) save_profile: bool,
    /// The page to open
    #[arg(long, value_name = "URL")]
    pub(crate) start_url: Option<String>,
    /// A tag to find the session by; may be given several times
    #[arg(long = "tag", visible_alias = "tags", value_name = "KEY=VALUE", value_parser = tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// Further parameters of the API as a JSON object, which options override; - is stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) with: Option<OsString>,
    /// Take a session of this pool, as it is
    #[arg(long, conflicts_with_all = ["timeout", "headless", "stealth", "kiosk", "region", "memory", "viewport", "proxy"])]
    pub(crate) pool: Option<String>,
    /// Print one line of JSON, with the URLs that show --json has
    #[arg(long)]
    pub(crate) json: bool,
}

/// A window's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Viewport {
    width: u32,
    height: u32,
    refresh_rate: Option<u32>,
}

fn viewport(text: &str) -> Result<Viewport, &'static str> {
    let parsed = || {
        let (size, rate) = text.split_once('@').map_or((text, None), |(size, rate)| (size, Some(rate)));
        let (width, height) = size.split_once(['x', 'X'])?;
        let refresh_rate = rate.map(str::parse).transpose().ok()?;
        Some(Viewport { width: width.parse().ok()?, height: height.parse().ok()?, refresh_rate })
    };
    parsed().ok_or("a size as in 1280x800 or 1280x800@60")
}

fn tag(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The parameters for the platform's API: those of `--with`, and the options over them.
pub(crate) fn parameters(args: &CreateArgs) -> Result<Parameters, CliError> {
    let mut parameters = args.with.as_deref().map(with).transpose()?.unwrap_or_default();
    if args.pool.is_none() && args.timeout.is_none() {
        parameters.entry("timeout_seconds").or_insert_with(|| TIMEOUT_SECONDS.into());
    }
    let flag = |is_set: bool| is_set.then_some(Value::Bool(true));
    let text = |text: &Option<String>| text.clone().map(Value::String);
    let viewport = args.viewport.map(|Viewport { width, height, refresh_rate }| match refresh_rate {
        Some(rate) => json!({ "width": width, "height": height, "refresh_rate": rate }),
        None => json!({ "width": width, "height": height }),
    });
    let proxy = args.proxy.as_deref().map(|proxy| match proxy {
        "direct" | "default" => json!({ "mode": proxy }),
        proxy => named(proxy),
    });
    let profile = args.profile.as_deref().map(|profile| {
        let mut profile = named(profile);
        if let (Value::Object(fields), true) = (&mut profile, args.save_profile) {
            fields.insert("save_changes".to_owned(), true.into());
        }
        profile
    });
    for (name, value) in [
        ("timeout_seconds", args.timeout.map(Value::from)),
        ("headless", flag(args.headless)),
        ("stealth", flag(args.stealth)),
        ("kiosk_mode", flag(args.kiosk)),
        ("name", text(&args.name)),
        ("region", text(&args.region)),
        ("memory", args.memory.as_deref().map(memory)),
        ("viewport", viewport),
        ("proxy", proxy),
        ("profile", profile),
        ("start_url", text(&args.start_url)),
    ] {
        if let Some(value) = value {
            parameters.insert(name.to_owned(), value);
        }
    }
    if !args.tags.is_empty() {
        let tags = parameters.entry("tags").or_insert_with(|| json!({}));
        if !tags.is_object() {
            *tags = json!({});
        }
        if let Value::Object(tags) = tags {
            tags.extend(args.tags.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
        }
    }
    Ok(parameters)
}

/// A thing by its name, or by its id.
fn named(text: &str) -> Value {
    match text.strip_prefix("id:") {
        Some(id) => json!({ "id": id }),
        None => json!({ "name": text }),
    }
}

/// A size of memory. A bare number is in GiB.
fn memory(text: &str) -> Value {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { format!("{text}GiB").into() } else { text.into() }
}

fn with(file: &OsStr) -> Result<Parameters, CliError> {
    let shown = file.to_string_lossy();
    serde_json::from_slice(&load(file)?).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        CliError::usage(
            format!("--with {shown} is no JSON object, from line {line}, column {column} on"),
            "Write the parameters as the API takes them: {\"stealth\": true}.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Mode, parse};
    use crate::verbs::{SessionArgs, SessionVerb};

    fn sent(line: &str) -> Result<Value, CliError> {
        let line = format!("ksync session create {line}");
        let parsed = parse(line.split_whitespace().map(OsString::from))?;
        let Mode::Session(SessionArgs { verb: SessionVerb::Create(args), .. }) = parsed else {
            panic!("{line}")
        };
        parameters(&args).map(Value::Object)
    }

    #[test]
    fn options_become_parameters_of_the_api() {
        assert_eq!(sent("").unwrap(), json!({ "timeout_seconds": 300 }));
        let all = "--timeout 90 --headless --stealth --kiosk --name n --region eu-west --memory 4 --viewport 1280x800@60 \
                   --proxy direct --profile p --save-profile --start-url https://a.b/c --tag a=b=c --tags d=";
        let expected = json!({
            "timeout_seconds": 90, "headless": true, "stealth": true, "kiosk_mode": true, "name": "n",
            "region": "eu-west", "memory": "4GiB",
            "viewport": { "width": 1280, "height": 800, "refresh_rate": 60 },
            "proxy": { "mode": "direct" }, "profile": { "name": "p", "save_changes": true },
            "start_url": "https://a.b/c", "tags": { "a": "b=c", "d": "" },
        });
        assert_eq!(sent(all).unwrap(), expected);
        let ids = sent("--proxy id:p1 --profile id:x --viewport 800X600 --memory 16GiB").unwrap();
        assert_eq!((&ids["proxy"], &ids["profile"]), (&json!({ "id": "p1" }), &json!({ "id": "x" })));
        assert_eq!(ids["viewport"], json!({ "width": 800, "height": 600 }));
        assert_eq!(
            (&ids["memory"], sent("--proxy p").unwrap()["proxy"]["name"].as_str()),
            (&json!("16GiB"), Some("p"))
        );
    }

    #[test]
    fn options_override_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("with.json");
        let shown = file.display();
        let text = json!({ "gpu": true, "headless": true, "timeout_seconds": 60, "tags": { "a": "1", "b": "2" }, "name": "x" });
        std::fs::write(&file, text.to_string()).unwrap();
        assert_eq!(sent(&format!("--with {shown}")).unwrap(), text);
        let expected = json!({
            "gpu": true, "headless": true, "timeout_seconds": 90, "tags": { "a": "1", "b": "3" }, "name": "y",
        });
        assert_eq!(sent(&format!("--with {shown} --timeout 90 --tag b=3 --name y")).unwrap(), expected);
        for text in ["", "[]", "{", "1"] {
            std::fs::write(&file, text).unwrap();
            let told = sent(&format!("--with {shown}")).unwrap_err().to_string();
            assert!(told.starts_with(&format!("ksync: --with {shown} is no JSON object")), "{told}");
        }
    }

    #[test]
    fn a_pool_session_takes_only_what_it_can_have() {
        let sent_to_pool = sent("--pool p --name n --tag a=b --start-url u --profile q").unwrap();
        assert_eq!(
            sent_to_pool,
            json!({ "name": "n", "tags": { "a": "b" }, "start_url": "u", "profile": { "name": "q" } })
        );
        for option in ["--timeout 90", "--stealth", "--region r", "--viewport 1x1", "--proxy p"] {
            let told = sent(&format!("--pool p {option}")).unwrap_err().to_string();
            assert!(told.contains("cannot be used with"), "{told}");
        }
        for (option, takes) in [
            ("--viewport 1280", "--viewport takes a size as in 1280x800 or 1280x800@60, and not \"1280\""),
            ("--viewport 1x1@", "--viewport takes a size as in 1280x800 or 1280x800@60, and not \"1x1@\""),
            ("--tag a", "--tag takes KEY=VALUE, and not \"a\""),
        ] {
            let told = sent(option).unwrap_err().to_string();
            assert!(told.starts_with(&format!("ksync: {takes}")), "{told}");
        }
    }
}
