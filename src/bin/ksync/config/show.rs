//! `ksync config`: each setting and its origin.

use serde_json::json;

use crate::config::{Setting, Settings, Value, file};
use crate::out;
use crate::report::CliError;
use crate::screen::warned;
use crate::verbs::ConfigArgs;

/// Columns of `key = value` before the origin.
const KEY_COLUMNS: usize = 36;

/// Prints the settings.
pub(crate) fn run(args: &ConfigArgs) -> Result<u8, CliError> {
    let settings = Settings::load(&crate::args::command(), true)?;
    settings.warnings.iter().for_each(|warning| out::note(&warned(warning)));
    for setting in &settings.all {
        let line = if args.json { as_json(setting) } else { as_toml(setting) };
        out::result(&line);
    }
    if settings.all.is_empty() && !args.json {
        let user = file::user_file().map(|path| format!(" or {}", path.display())).unwrap_or_default();
        out::note(&format!("nothing is set: there is no setting in ./{}{user}", file::PROJECT_FILE));
    }
    Ok(0)
}

/// A line that could stand in a file. An overridden setting is a comment.
fn as_toml(setting: &Setting) -> String {
    let text = |value: &std::ffi::OsString| json!(value.to_string_lossy()).to_string();
    let value = match &setting.value {
        Value::Flag(is_on) => is_on.to_string(),
        Value::Text(values) if values.len() == 1 => values.first().map(text).unwrap_or_default(),
        Value::Text(values) => format!("[{}]", values.iter().map(text).collect::<Vec<_>>().join(", ")),
    };
    let (sign, overridden) = if setting.is_overridden { ("# ", ", overridden") } else { ("", "") };
    let line = format!("{sign}{} = {value}", setting.key);
    format!("{line:<KEY_COLUMNS$}  # {}{overridden}", setting.origin.name())
}

fn as_json(setting: &Setting) -> String {
    let value = match &setting.value {
        Value::Flag(is_on) => json!(is_on),
        Value::Text(values) => {
            let mut texts: Vec<_> = values.iter().map(|value| json!(value.to_string_lossy())).collect();
            if texts.len() == 1 { texts.remove(0) } else { json!(texts) }
        }
    };
    json!({
        "key": setting.key, "value": value, "from": setting.origin.kind(), "name": setting.origin.name(),
        "overridden": setting.is_overridden,
    })
    .to_string()
}
