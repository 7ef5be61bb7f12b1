//! `multipart/form-data` of RFC 7578: the fields of a form, each with a name and a content.

/// A field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: String,
    pub(super) content: &'a [u8],
}

/// Parses the fields of a form in their order; `None` if the body is malformed or truncated.
pub(super) fn fields<'a>(content_type: &str, body: &'a [u8]) -> Option<Vec<Field<'a>>> {
    let delimiter = format!("--{}", boundary(content_type)?);
    let mut rest = split(body, delimiter.as_bytes())?.1;
    let between = format!("\r\n{delimiter}");
    let mut fields = Vec::new();
    // Two hyphens after a delimiter mark the last one.
    while !rest.starts_with(b"--") {
        let (field, after) = split(rest.strip_prefix(b"\r\n")?, between.as_bytes())?;
        let (head, content) = split(field, b"\r\n\r\n")?;
        fields.push(Field { name: name(std::str::from_utf8(head).ok()?)?, content });
        rest = after;
    }
    Some(fields)
}

/// Delimiter of the fields.
fn boundary(content_type: &str) -> Option<&str> {
    let mut parameters = content_type.split(';').map(str::trim);
    parameters.next().filter(|kind| kind.eq_ignore_ascii_case("multipart/form-data"))?;
    let mut pairs = parameters.filter_map(|parameter| parameter.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("boundary"))?;
    Some(value.trim_matches('"')).filter(|value| !value.is_empty())
}

/// Name in the headers of a field. The names that clients send hold neither quotes nor semicolons.
fn name(head: &str) -> Option<String> {
    let value = head.lines().find_map(|line| {
        let (header, value) = line.split_once(':')?;
        header.eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let parameters = value.split(';').skip(1).filter_map(|parameter| parameter.trim().split_once('='));
    let (_, name) = parameters.into_iter().find(|(key, _)| key.eq_ignore_ascii_case("name"))?;
    // Some clients percent-encode the brackets of an array element, as browsers encode quotes.
    Some(name.trim_matches('"').replace("%5B", "[").replace("%5D", "]"))
}

/// Bytes before and after the first `separator`.
fn split<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(separator.len()).position(|window| window == separator)?;
    Some((bytes.get(..at)?, bytes.get(at + separator.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"--x\r\nContent-Disposition: form-data; name=\"files[0][file]\"; filename=\"a;b\"\r\n\
        Content-Type: text/plain\r\n\r\none\r\n--no x\r\n--x\r\ncontent-disposition: form-data; name=empty\r\n\r\n\
        \r\n--x--\r\n";

    #[test]
    fn fields_have_names_and_any_content() {
        for content_type in ["multipart/form-data; boundary=x", "Multipart/Form-Data; a=b; Boundary=\"x\""] {
            let fields = fields(content_type, FORM).expect("a form");
            let expected: [(&str, &[u8]); 2] = [("files[0][file]", b"one\r\n--no x"), ("empty", b"")];
            let found: Vec<_> = fields.iter().map(|field| (field.name.as_str(), field.content)).collect();
            assert_eq!(found, expected);
        }
        assert_eq!(fields("multipart/form-data; boundary=x", b"--x--\r\n"), Some(Vec::new()));
    }

    #[test]
    fn a_malformed_or_truncated_form_is_rejected() {
        for content_type in
            ["", "text/plain; boundary=x", "multipart/form-data", "multipart/form-data; boundary="]
        {
            assert_eq!(fields(content_type, FORM), None, "{content_type}");
        }
        for length in 0..FORM.len() - 4 {
            assert_eq!(fields("multipart/form-data; boundary=x", &FORM[..length]), None, "{length}");
        }
    }
}
