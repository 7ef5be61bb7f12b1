//! A validator for the published schemas, with the keywords that they use. An unknown keyword is an
//! error, so that no rule of a schema is ignored.

use serde_json::Value;

/// The schema of the lines of `--json`.
pub(crate) const EVENTS: &str = include_str!("../../fixtures/schema/events.json");

/// Asserts that each line of an output that is an event has the form that the schema gives it.
#[track_caller]
pub(crate) fn check_events(output: &str) {
    let is_event =
        |line: &&str| line.starts_with('{') && line.contains("\"event\":") && line.contains("\"v\":");
    let mut lines = output.lines().filter(is_event).peekable();
    if lines.peek().is_none() {
        return;
    }
    let schema: Value = serde_json::from_str(EVENTS).expect("the schema");
    for line in lines {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        // The alternatives differ by the event, and one has a better message than all.
        let name = event["event"].as_str().unwrap_or_default();
        let one = &schema["$defs"][name];
        assert!(one.is_object(), "no event {name} in the schema: {line}");
        let faults = faults(&schema, one, &event);
        assert!(faults.is_empty(), "{faults:?} in {line}");
    }
}

/// The faults of a value under a schema.
pub(crate) fn faults(root: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (keyword, rule) in schema.as_object().into_iter().flatten() {
        let is_kept = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" => true,
            "$ref" => {
                let name = rule.as_str().and_then(|rule| rule.strip_prefix("#/$defs/")).expect("a reference");
                found.extend(faults(root, &root["$defs"][name], value));
                true
            }
            "oneOf" => {
                let fits = |one: &&Value| faults(root, one, value).is_empty();
                rule.as_array().expect("alternatives").iter().filter(fits).count() == 1
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|one| is_of(one, value)),
                one => is_of(one, value),
            },
            "const" => value == rule,
            "enum" => rule.as_array().expect("values").contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().expect("a number")),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().expect("a number")),
            "required" => {
                let names = rule.as_array().expect("names").iter();
                names.into_iter().all(|name| value.get(name.as_str().expect("a name")).is_some())
            }
            "properties" => {
                for (name, property) in rule.as_object().expect("properties") {
                    let inside = value.get(name).map(|value| faults(root, property, value));
                    found.extend(inside.into_iter().flatten().map(|fault| format!("{name}: {fault}")));
                }
                true
            }
            "additionalProperties" => {
                assert_eq!(rule, &Value::Bool(false));
                let known = &schema["properties"];
                value.as_object().is_none_or(|object| object.keys().all(|name| known.get(name).is_some()))
            }
            "items" => {
                for value in value.as_array().into_iter().flatten() {
                    found.extend(faults(root, rule, value));
                }
                true
            }
            other => panic!("the keyword {other} is not known here"),
        };
        if !is_kept {
            found.push(format!("{keyword} {rule}"));
        }
    }
    found
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("the type {other} is not known here"),
    }
}
