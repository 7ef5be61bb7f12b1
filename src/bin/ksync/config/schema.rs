//! The JSON schema of the two files.

use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value, json};

use crate::config::{DEST, is_for_projects, is_for_users, is_key};

/// The schema, with one property for each key.
pub(crate) fn schema(command: &Command) -> Value {
    let mut properties = Map::new();
    properties.insert(
        DEST.to_owned(),
        json!({
            "type": "string",
            "description": "The DEST of ksync without an endpoint; the current directory is SOURCE. Only in .ksync.toml.",
        }),
    );
    let mut options: Vec<(&str, &Arg)> = command
        .get_arguments()
        .filter(|arg| is_key(arg))
        .filter_map(|arg| Some((arg.get_long()?, arg)))
        .collect();
    options.sort_by_key(|(key, _)| *key);
    for (key, option) in options.into_iter().filter(|(key, _)| is_for_users(key)) {
        properties.insert(key.to_owned(), property(key, option));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of ksync: .ksync.toml and config.toml",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

fn property(key: &str, option: &Arg) -> Value {
    let scalar = json!(["string", "number"]);
    let mut property = match option.get_action() {
        ArgAction::SetTrue | ArgAction::Count => json!({ "type": "boolean" }),
        ArgAction::Append => json!({ "type": ["string", "array"], "items": { "type": scalar } }),
        _ => json!({ "type": scalar }),
    };
    let about = option.get_help().map(ToString::to_string).unwrap_or_default();
    let only = if is_for_projects(key) { "" } else { "Not in .ksync.toml." };
    let about =
        [about.as_str(), only].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(". ");
    if let Some(property) = property.as_object_mut().filter(|_| !about.is_empty()) {
        property.insert("description".to_owned(), about.into());
    }
    property
}
