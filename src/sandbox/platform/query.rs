//! Path and query of a request's target.

/// Decoded segments of a path, without empty ones.
pub(super) fn segments(path: &str) -> Vec<String> {
    path.split('/').filter(|segment| !segment.is_empty()).map(|segment| decoded(segment, false)).collect()
}

/// First value of a name in a query, decoded.
pub(super) fn value(query: Option<&str>, name: &str) -> Option<String> {
    pairs(query).find(|(key, _)| key == name).map(|(_, value)| value)
}

/// The fields of an object in a query, as in `tags[team]=backend`.
pub(super) fn object<'a>(
    query: Option<&'a str>,
    name: &'a str,
) -> impl Iterator<Item = (String, String)> + 'a {
    pairs(query).filter_map(move |(key, value)| {
        let field = key.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?;
        Some((field.to_owned(), value))
    })
}

/// The names and values of a query, decoded.
fn pairs(query: Option<&str>) -> impl Iterator<Item = (String, String)> + '_ {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(key, value)| (decoded(key, true), decoded(value, true)))
}

/// Decodes percent-encoded text. A percent sign without two hex digits stands for itself, and
/// invalid UTF-8 is replaced.
fn decoded(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let hex = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, hex.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', _) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_decoded() {
        assert_eq!(segments("/browsers/a%2Fb//fs/"), ["browsers", "a/b", "fs"]);
        assert_eq!(segments("/a+b"), ["a+b"]);
        let query = Some("path=%2Ftmp%2F%C3%A4+b&mode=0644&x&path=no&bad=%zz%4");
        for (name, expected) in [
            ("path", Some("/tmp/ä b")),
            ("mode", Some("0644")),
            ("x", Some("")),
            ("bad", Some("%zz%4")),
            ("y", None),
        ] {
            assert_eq!(value(query, name).as_deref(), expected, "{name}");
        }
        assert_eq!(value(None, "path"), None);
        let tags: Vec<_> = object(Some("tags%5Ba%5D=b&tags=x&tags[c]=d+e"), "tags").collect();
        assert_eq!(tags, [("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d e".to_owned())]);
    }
}
