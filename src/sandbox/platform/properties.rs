//! The properties of a browser that the emulator only keeps: it checks them, and shows them as
//! they were requested.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::answer::PlatformError;

/// JSON types of the properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flag,
    Text,
    Object,
    List,
}

/// The properties: name, type, and if a `PATCH` of a browser may change it.
const PROPERTIES: [(&str, Kind, bool); 16] = [
    ("chrome_policy", Kind::Object, false),
    ("extensions", Kind::List, false),
    ("gpu", Kind::Flag, false),
    ("kiosk_mode", Kind::Flag, false),
    ("location", Kind::Object, true),
    ("memory", Kind::Text, false),
    ("network", Kind::Object, true),
    ("profile", Kind::Object, true),
    ("proxy", Kind::Object, true),
    ("proxy_id", Kind::Text, true),
    ("region", Kind::Text, false),
    ("start_url", Kind::Text, true),
    ("telemetry", Kind::Object, true),
    ("vaults", Kind::List, false),
    ("video_memory", Kind::Text, false),
    ("viewport", Kind::Object, true),
];

/// Properties of a creation that have a type of their own (see `Create`), and cannot be changed.
const FIXED: [&str; 3] = ["headless", "stealth", "timeout_seconds"];

/// The regions, the default first, with their time zones [?].
const REGIONS: [(&str, &str); 4] = [
    ("us-east", "America/New_York"),
    ("us-west", "America/Los_Angeles"),
    ("eu-west", "Europe/London"),
    ("ap-southeast", "Asia/Singapore"),
];

/// Memory of a VM with a screen, the default first.
const MEMORY_HEADFUL: &[&str] = &["8GiB", "16GiB"];

/// Memory of a VM without a screen, the default first.
const MEMORY_HEADLESS: &[&str] = &["1GiB", "2GiB", "4GiB"];

/// Memory of a VM with a GPU, by its video memory, the default first.
const GPU_MEMORY: [(&str, &str); 2] = [("2GiB", "6GiB"), ("4GiB", "12GiB")];

/// Categories of telemetry that are on by default.
const TELEMETRY: [&str; 4] = ["captcha", "connection", "control", "system"];

/// Size of a screen without a requested size.
const VIEWPORT: (u32, u32) = (1920, 1080);

/// The properties of a session, or those that a pool gives to its sessions.
#[derive(Debug, Clone, Default)]
pub(super) struct Properties(Map<String, Value>);

impl Properties {
    /// Takes the properties from the fields of a creation. Unknown fields are ignored.
    ///
    /// # Errors
    /// 400 for a value that is not offered, 422 for one of a wrong type.
    pub(super) fn new(fields: Map<String, Value>, headless: bool) -> Result<Properties, PlatformError> {
        let mut properties = Properties::default();
        properties.replace(fields, headless)?;
        Ok(properties)
    }

    /// Replaces the given properties, as a `PATCH` of a pool does. Empty values remove.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(super) fn replace(
        &mut self,
        fields: Map<String, Value>,
        headless: bool,
    ) -> Result<(), PlatformError> {
        let mut replaced = self.clone();
        for (name, value) in known(fields)? {
            let value = if name == "telemetry" { telemetry(&value, None) } else { Some(value) };
            replaced.put(&name, value.filter(|value| !is_empty(value)));
        }
        replaced.check(headless)?;
        *self = replaced;
        Ok(())
    }

    /// Applies a `PATCH` of a browser.
    ///
    /// # Errors
    /// 400 if it concerns a property that cannot be changed, 422 for a value of a wrong type.
    pub(super) fn patch(&mut self, fields: Map<String, Value>, headless: bool) -> Result<(), PlatformError> {
        let is_fixed =
            |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null()) && !is_changeable(name);
        let mut names = PROPERTIES.iter().map(|(name, ..)| *name).chain(FIXED);
        if let Some(name) = names.find(is_fixed) {
            return Err(PlatformError::bad_request(format!("{name} cannot be changed")));
        }
        let mut patched = self.clone();
        for (name, value) in known(fields)? {
            let value = match name.as_str() {
                "location" => merged(self.0.get(&name), value),
                "network" => Some(self.network(&value)?),
                "profile" if self.0.contains_key(&name) => {
                    return Err(PlatformError::bad_request("the browser has a profile already"));
                }
                // An empty object changes nothing.
                "telemetry" if is_empty(&value) => continue,
                "telemetry" => telemetry(&value, self.0.get(&name)),
                "start_url" if is_empty(&value) => continue,
                "viewport" => Some(without(value, "force")),
                _ => Some(value),
            };
            patched.put(&name, value.filter(|value| !is_empty(value)));
        }
        patched.check(headless)?;
        *self = patched;
        Ok(())
    }

    /// The properties as they were requested.
    pub(super) fn requested(&self) -> &Map<String, Value> {
        &self.0
    }

    pub(super) fn region(&self) -> &str {
        self.text("region").unwrap_or(REGIONS[0].0)
    }

    /// Width and height of the screen in pixels.
    pub(super) fn viewport(&self) -> (u32, u32) {
        let pixels = |name| u32::try_from(self.0.get("viewport")?.get(name)?.as_u64()?).ok();
        pixels("width").zip(pixels("height")).unwrap_or(VIEWPORT)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Id or name of the selected profile.
    pub(super) fn profile(&self) -> Option<&str> {
        let profile = self.0.get("profile")?;
        profile.get("id").or_else(|| profile.get("name"))?.as_str()
    }

    /// Takes over the telemetry of a pool.
    pub(super) fn reset_telemetry(&mut self, pool: &Properties) {
        self.put("telemetry", pool.0.get("telemetry").cloned());
    }

    /// The fields of a browser's description.
    pub(super) fn describe(&self, headless: bool, created_at: &str) -> Map<String, Value> {
        let mut fields = self.0.clone();
        fields.remove("extensions");
        fields.insert("memory".to_owned(), self.memory(headless).into());
        fields.insert("region".to_owned(), self.region().into());
        fields.insert("location".to_owned(), self.location());
        if self.0.get("gpu") == Some(&json!(true)) {
            fields.insert("video_memory".to_owned(), self.video_memory().into());
        }
        if let (Some(id), Some(profile)) = (self.profile(), self.0.get("profile")) {
            // There are no profiles here, so a name is its own id, and an id its own name.
            let name = profile.get("name").and_then(Value::as_str).unwrap_or(id);
            let shown = json!({ "id": id, "name": name, "created_at": created_at });
            fields.insert("profile".to_owned(), shown);
            let saves = profile.get("save_changes").and_then(Value::as_bool).unwrap_or(false);
            fields.insert("profile_save_changes".to_owned(), saves.into());
        }
        fields
    }

    fn memory(&self, headless: bool) -> &str {
        if self.0.get("gpu") == Some(&json!(true)) {
            let memory = GPU_MEMORY.iter().find(|(video_memory, _)| *video_memory == self.video_memory());
            return memory.map_or(GPU_MEMORY[0].1, |(_, memory)| memory);
        }
        self.text("memory").or_else(|| offered(headless).first().copied()).unwrap_or_default()
    }

    fn video_memory(&self) -> &str {
        self.text("video_memory").unwrap_or(GPU_MEMORY[0].0)
    }

    /// The location in effect, with the source of each field.
    fn location(&self) -> Value {
        let zone = REGIONS.iter().find(|(region, _)| *region == self.region()).map(|(_, zone)| *zone);
        let field = |name: &str, default: &str| {
            let given = self.0.get("location").and_then(|location| location.get(name));
            let source = if given.is_some() { "override" } else { "default" };
            (given.cloned().unwrap_or_else(|| default.into()), source)
        };
        let (locale, locale_source) = field("locale", "en-US");
        let (timezone, timezone_source) = field("timezone", zone.unwrap_or_default());
        json!({
            "locale": locale, "locale_source": locale_source,
            "timezone": timezone, "timezone_source": timezone_source,
        })
    }

    /// The network configuration with another list of allowed hosts: `null` removes the list.
    fn network(&self, change: &Value) -> Result<Value, PlatformError> {
        let mut network = self.0.get("network").cloned().unwrap_or_default();
        let Some(hosts) = change.get("allowed_hosts") else { return Ok(network) };
        let Some(fields) = network.as_object_mut().filter(|fields| fields.contains_key("allowed_hosts"))
        else {
            return Err(PlatformError::bad_request("the browser was created without allowed_hosts"));
        };
        match hosts {
            Value::Null => fields.remove("allowed_hosts"),
            hosts if is_empty(hosts) => {
                return Err(PlatformError::bad_request("allowed_hosts must not be empty"));
            }
            hosts => fields.insert("allowed_hosts".to_owned(), hosts.clone()),
        };
        Ok(network)
    }

    fn put(&mut self, name: &str, value: Option<Value>) {
        match value {
            Some(value) => self.0.insert(name.to_owned(), value),
            None => self.0.remove(name),
        };
    }

    /// Checks the values of the properties against those that are offered.
    fn check(&self, headless: bool) -> Result<(), PlatformError> {
        let regions = REGIONS.map(|(region, _)| region);
        let video_memory = GPU_MEMORY.map(|(video_memory, _)| video_memory);
        let has_gpu = self.0.get("gpu") == Some(&json!(true));
        let offers: [(&str, &[&str]); 3] = [
            ("memory", if has_gpu { &[] } else { offered(headless) }),
            ("region", &regions),
            ("video_memory", if has_gpu { &video_memory } else { &[] }),
        ];
        for (name, offered) in offers {
            if let Some(value) = self.text(name).filter(|value| !offered.contains(value)) {
                let message = format!("{name} cannot be \"{value}\" for this browser");
                return Err(PlatformError::bad_request(message));
            }
        }
        if has_gpu && (headless || self.region() != REGIONS[0].0) {
            return Err(PlatformError::bad_request("gpu requires headless=false and region=us-east"));
        }
        let viewport = self.0.get("viewport");
        let is_size = |name: &&str| {
            viewport.and_then(|viewport| viewport.get(*name)?.as_u64()).is_some_and(|pixels| pixels > 0)
        };
        if viewport.is_some() && !["width", "height"].iter().all(is_size) {
            return Err(PlatformError::bad_request("viewport requires a positive width and height"));
        }
        if self.0.contains_key("profile") && self.profile().is_none() {
            return Err(PlatformError::bad_request("profile requires an id or a name"));
        }
        Ok(())
    }
}

/// Memory that is offered.
const fn offered(headless: bool) -> &'static [&'static str] {
    if headless { MEMORY_HEADLESS } else { MEMORY_HEADFUL }
}

/// The known properties among the fields of a request. `null` stands for a missing field.
fn known(fields: Map<String, Value>) -> Result<Vec<(String, Value)>, PlatformError> {
    let mut known = Vec::new();
    for (name, value) in fields {
        let kind = PROPERTIES.iter().find(|(property, ..)| *property == name).map(|(_, kind, _)| *kind);
        let Some(kind) = kind.filter(|_| !value.is_null()) else { continue };
        let is_good = match kind {
            Kind::Flag => value.is_boolean(),
            Kind::Text => value.is_string(),
            Kind::Object => value.is_object(),
            Kind::List => value.is_array(),
        };
        if !is_good {
            let message = format!("{name}: invalid type");
            return Err(PlatformError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "unprocessable_entity",
                message,
            ));
        }
        known.push((name, value));
    }
    Ok(known)
}

fn is_changeable(name: &str) -> bool {
    PROPERTIES.iter().any(|(property, _, is_changeable)| *property == name && *is_changeable)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn without(mut value: Value, name: &str) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(name);
    }
    value
}

/// Adds the fields of an object to another one; `null` removes a field.
fn merged(old: Option<&Value>, change: Value) -> Option<Value> {
    let mut fields = old.and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, value) in change.as_object()? {
        if value.is_null() {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    Some(Value::Object(fields))
}

/// The telemetry in effect after a request: `None` if nothing is captured.
fn telemetry(request: &Value, old: Option<&Value>) -> Option<Value> {
    let categories = request.get("browser").filter(|browser| !is_empty(browser));
    match request.get("enabled").and_then(Value::as_bool) {
        Some(false) => return None,
        None if categories.is_none() => return old.cloned(),
        _ => {}
    }
    let defaults = || {
        let on = TELEMETRY.map(|category| (category.to_owned(), json!({ "enabled": true })));
        Value::Object(on.into_iter().collect())
    };
    let old = old.and_then(|old| old.get("browser")).filter(|_| request.get("enabled").is_none());
    let browser = old.cloned().unwrap_or_else(defaults);
    let browser = categories.and_then(|changes| merged(Some(&browser), changes.clone())).unwrap_or(browser);
    Some(json!({ "browser": browser }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn properties_are_shown_as_they_were_requested() {
        let request = json!({
            "kiosk_mode": true, "region": "eu-west", "memory": "4GiB", "start_url": "https://a.example",
            "viewport": { "width": 800, "height": 600 }, "profile": { "name": "p", "save_changes": true },
            "location": { "locale": "de-DE" }, "unknown": 1,
        });
        let properties = Properties::new(fields(request.clone()), true).expect("properties");
        let shown = Value::Object(properties.describe(true, "then"));
        for name in ["kiosk_mode", "region", "memory", "start_url", "viewport"] {
            assert_eq!(shown[name], request[name], "{name}");
        }
        assert_eq!(shown["profile"], json!({ "id": "p", "name": "p", "created_at": "then" }));
        assert_eq!(shown["profile_save_changes"], true);
        let location = json!({
            "locale": "de-DE", "locale_source": "override",
            "timezone": "Europe/London", "timezone_source": "default",
        });
        assert_eq!(shown["location"], location);
        assert_eq!(shown.get("unknown"), None);
        assert_eq!(properties.viewport(), (800, 600));
    }

    #[test]
    fn a_value_that_is_not_offered_is_refused() {
        for (request, headless, status) in [
            (json!({ "memory": "8GiB" }), true, 400),
            (json!({ "memory": "1GiB" }), false, 400),
            (json!({ "region": "moon" }), true, 400),
            (json!({ "video_memory": "2GiB" }), false, 400),
            (json!({ "gpu": true }), true, 400),
            (json!({ "gpu": true, "region": "us-west" }), false, 400),
            (json!({ "viewport": { "width": 0, "height": 5 } }), true, 400),
            (json!({ "profile": { "save_changes": true } }), true, 400),
            (json!({ "kiosk_mode": "yes" }), true, 422),
        ] {
            let refused = Properties::new(fields(request.clone()), headless).err();
            assert_eq!(refused.map(|error| error.status.as_u16()), Some(status), "{request}");
        }
        let gpu = Properties::new(fields(json!({ "gpu": true, "video_memory": "4GiB" })), false);
        assert_eq!(gpu.expect("properties").describe(false, "")["memory"], "12GiB");
    }

    #[test]
    fn a_patch_changes_what_the_platform_can_change() {
        let request = json!({
            "network": { "allowed_hosts": ["a"], "private_hosts": ["b"] }, "telemetry": { "enabled": true },
            "location": { "locale": "de-DE", "timezone": "Europe/Berlin" }, "proxy_id": "p",
        });
        let mut properties = Properties::new(fields(request), true).expect("properties");
        let patch = json!({
            "network": { "allowed_hosts": ["c"], "private_hosts": [] }, "proxy_id": "", "start_url": "x:",
            "telemetry": { "browser": { "page": { "enabled": true } } }, "location": { "locale": null },
            "viewport": { "width": 5, "height": 6, "force": true }, "profile": { "id": "i" },
        });
        properties.patch(fields(patch), true).expect("a patch");
        let on = json!({ "enabled": true });
        let expected = json!({
            "network": { "allowed_hosts": ["c"], "private_hosts": ["b"] }, "start_url": "x:",
            "telemetry": { "browser": {
                "captcha": on, "connection": on, "control": on, "page": on, "system": on,
            } },
            "location": { "timezone": "Europe/Berlin" }, "viewport": { "width": 5, "height": 6 },
            "profile": { "id": "i" },
        });
        assert_eq!(Value::Object(properties.requested().clone()), expected);
        for patch in [
            json!({ "timeout_seconds": 60 }),
            json!({ "region": "us-west" }),
            json!({ "memory": "2GiB" }),
            json!({ "profile": { "id": "other" } }),
            json!({ "network": { "allowed_hosts": [] } }),
        ] {
            let refused = properties.patch(fields(patch.clone()), true).err();
            assert_eq!(refused.map(|error| error.status.as_u16()), Some(400), "{patch}");
        }
        properties.patch(fields(json!({ "network": { "allowed_hosts": null } })), true).expect("a patch");
        let again = properties.patch(fields(json!({ "network": { "allowed_hosts": ["d"] } })), true);
        assert!(again.is_err());
        properties.patch(fields(json!({ "telemetry": { "enabled": false } })), true).expect("a patch");
        assert_eq!(properties.requested().get("telemetry"), None);
    }
}
