//! Pages of a list.

use hyper::StatusCode;
use hyper::header::HeaderName;
use serde_json::Value;

use super::answer::{Answer, PlatformError, json_answer, set};
use super::call::Asked;

/// Default number of entries per page.
const LIMIT_DEFAULT: usize = 20;

/// Most entries per page.
const LIMIT_MAX: usize = 100;

/// Answers with the requested page of a list.
///
/// # Errors
/// 400 if `limit` or `offset` is invalid.
pub(super) fn page(entries: &[Value], asked: &Asked<'_>) -> Result<Answer, PlatformError> {
    let number = |name: &str, default: usize| match asked.value(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| PlatformError::bad_request(format!("invalid {name}"))),
    };
    let (limit, offset) = (number("limit", LIMIT_DEFAULT)?, number("offset", 0)?);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(PlatformError::bad_request(format!("limit must be between 1 and {LIMIT_MAX}")));
    }
    let page: Vec<&Value> = entries.iter().skip(offset).take(limit).collect();
    let next = offset.saturating_add(page.len());
    let has_more = next < entries.len();
    let mut answer = json_answer(StatusCode::OK, &page);
    set(&mut answer, HeaderName::from_static("x-has-more"), if has_more { "true" } else { "false" });
    // On the last page the platform answers 0.
    let next = if has_more { next } else { 0 };
    set(&mut answer, HeaderName::from_static("x-next-offset"), &next.to_string());
    Ok(answer)
}

/// Reports if any of the texts contains the query's `query`, without regard to case; true if there
/// is none.
pub(super) fn has_text<'a>(asked: &Asked<'_>, mut texts: impl Iterator<Item = &'a str>) -> bool {
    let Some(wanted) = asked.value("query").filter(|wanted| !wanted.is_empty()) else { return true };
    let wanted = wanted.to_lowercase();
    texts.any(|text| text.to_lowercase().contains(&wanted))
}

/// Reports if the query names no region, or this one.
pub(super) fn is_in_region(asked: &Asked<'_>, region: &str) -> bool {
    asked.value("region").is_none_or(|wanted| wanted == region)
}
