//! `multipart/form-data` of RFC 7578: the fields of a form, each with a name and a content.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use multer::Multipart;

/// A field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) content: Bytes,
}

/// Parses the fields of a form in their order; `None` if the body is malformed or truncated.
pub(super) async fn fields(content_type: &str, body: Bytes) -> Option<Vec<Field>> {
    let boundary = multer::parse_boundary(content_type).ok().filter(|boundary| !boundary.is_empty())?;
    let mut form = Multipart::new(stream::iter([Ok::<_, Infallible>(body)]), boundary);
    let mut fields = Vec::new();
    while let Some(field) = form.next_field().await.ok()? {
        // Some clients percent-encode the brackets of an array element, as browsers encode quotes.
        let name = field.name()?.replace("%5B", "[").replace("%5D", "]");
        fields.push(Field { name, content: field.bytes().await.ok()? });
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"--x\r\nContent-Disposition: form-data; name=\"files%5B0%5D[file]\"; filename=\"a;b\"\r\n\
        Content-Type: text/plain\r\n\r\none\0\xff\r\n--no x\r\n--x\r\ncontent-disposition: form-data; name=empty\r\n\
        \r\n\r\n--x--\r\n";

    async fn fields(content_type: &str, body: &'static [u8]) -> Option<Vec<Field>> {
        super::fields(content_type, Bytes::from_static(body)).await
    }

    #[tokio::test]
    async fn fields_have_names_and_any_content() {
        for content_type in ["multipart/form-data; boundary=x", "Multipart/Form-Data; a=b; Boundary=\"x\""] {
            let fields = fields(content_type, FORM).await.expect("a form");
            let expected: [(&str, &[u8]); 2] = [("files[0][file]", b"one\0\xff\r\n--no x"), ("empty", b"")];
            let found: Vec<_> = fields.iter().map(|field| (field.name.as_str(), &*field.content)).collect();
            assert_eq!(found, expected);
        }
        assert_eq!(fields("multipart/form-data; boundary=x", b"--x--\r\n").await, Some(Vec::new()));
    }

    #[tokio::test]
    async fn a_malformed_or_truncated_form_is_rejected() {
        for content_type in
            ["", "text/plain; boundary=x", "multipart/form-data", "multipart/form-data; boundary="]
        {
            assert_eq!(fields(content_type, FORM).await, None, "{content_type}");
        }
        let nameless = b"--x\r\nContent-Disposition: form-data\r\n\r\none\r\n--x--\r\n";
        assert_eq!(fields("multipart/form-data; boundary=x", nameless).await, None);
        for length in 0..FORM.len() - 3 {
            assert_eq!(fields("multipart/form-data; boundary=x", &FORM[..length]).await, None, "{length}");
        }
    }
}
