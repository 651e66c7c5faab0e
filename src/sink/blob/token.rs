//! Token services: the meaning of their responses, and the validity of tokens.
//!
//! When a token cannot be fetched nothing is sent to the store: every failure is one of credentials, and its status is
//! not the store's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use object_store::client::{
    HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use serde_json::Value;

use super::answer::{Failure, connection_failure, first_sentence};
use super::codes::Fate;
use crate::sink::Class;

/// The timeout of an attempt to fetch a token.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest lifetime of a token, so that its expiry cannot overflow a clock.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// The expiry of the token fetched last.
pub(super) type Expiry = Arc<Mutex<Option<SystemTime>>>;

/// An HTTP client that checks that a success contains a usable token, records its expiry, and turns everything else
/// into a [`Failure`].
#[derive(Debug)]
pub(super) struct TokenChecker {
    client: HttpClient,
    expiry: Expiry,
}

impl TokenChecker {
    pub(super) fn wrap(client: HttpClient, expiry: &Expiry) -> HttpClient {
        HttpClient::new(TokenChecker {
            client,
            expiry: Arc::clone(expiry),
        })
    }
}

impl HttpService for TokenChecker {
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let host = request
                .uri()
                .authority()
                .map(ToString::to_string)
                .unwrap_or_default();
            // object_store never retries errors of this kind.
            let fail = |failure| HttpError::new(HttpErrorKind::Unknown, failure);
            let response = self.client.execute(request).await;
            let response = response.map_err(|error| fail(connection_failure(&host, &error)))?;
            let (parts, body) = response.into_parts();
            let body = body.bytes().await;
            let body = body.map_err(|error| fail(connection_failure(&host, &error)))?;
            if !parts.status.is_success() {
                return Err(fail(refusal(parts.status.as_u16(), &body)));
            }
            let Some(expiry) = token_expiry(&body, SystemTime::now()) else {
                let message =
                    format!("the response of {host} contains no usable token with an expiry");
                let failure = Failure::new(Fate::Retry, Class::Credentials, "no token", message);
                return Err(fail(failure));
            };
            *self.expiry.lock().unwrap_or_else(PoisonError::into_inner) = Some(expiry);
            Ok(HttpResponse::from_parts(
                parts,
                HttpResponseBody::from(body),
            ))
        })
    }
}

/// Returns the expiry of the token in a response, or `None` if there is no token that is valid in a header, or no valid
/// expiry.
fn token_expiry(body: &[u8], now: SystemTime) -> Option<SystemTime> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let token = answer["access_token"].as_str()?;
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    // Entra ID returns seconds from now; the metadata service returns a Unix time, as text.
    let left = match (answer["expires_in"].as_u64(), answer["expires_on"].as_str()) {
        (Some(seconds), _) => Duration::from_secs(seconds),
        (None, Some(text)) => {
            let end = Duration::from_secs(text.parse().ok()?);
            end.saturating_sub(now.duration_since(SystemTime::UNIX_EPOCH).ok()?)
        }
        (None, None) => return None,
    };
    (left <= LONGEST).then(|| now + left)
}

/// Interprets an error: Entra ID's and the metadata service's `error` and `error_description`.
/// <https://learn.microsoft.com/entra/identity-platform/reference-error-codes>
fn refusal(status: u16, body: &Bytes) -> Failure {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| answer[key].as_str().filter(|text| !text.is_empty());
    let description = text("error_description")
        .or(text("message"))
        .unwrap_or("no reason given");
    let (code, message) = match description.split_once(": ") {
        Some((code, message)) if code.starts_with("AADSTS") => (code.to_owned(), message),
        _ => match text("error") {
            Some(code) => (code.to_owned(), description),
            None => (format!("HTTP {status}"), description),
        },
    };
    let mut failure = Failure::new(
        Fate::Retry,
        Class::Credentials,
        &code,
        first_sentence(message),
    );
    failure.fault.request_id = text("trace_id").map(crate::sink::outcome::code_line);
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_without_a_usable_token_is_none() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let table = [
            (r#"{"access_token":"a","expires_in":60}"#, Some(60)),
            (r#"{"access_token":"a","expires_on":"1060"}"#, Some(60)),
            (r#"{"access_token":"a","expires_on":"900"}"#, Some(0)),
            (
                r#"{"access_token":"a","expires_in":18446744073709551615}"#,
                None,
            ),
            (
                r#"{"access_token":"a","expires_on":"18446744073709551615"}"#,
                None,
            ),
            (r#"{"access_token":"a","expires_on":"soon"}"#, None),
            (r#"{"access_token":"a"}"#, None),
            (r#"{"access_token":"","expires_in":60}"#, None),
            (r#"{"access_token":"a\nb","expires_in":60}"#, None),
            (r#"{"access_token":"é","expires_in":60}"#, None),
            (r#"{"expires_in":60}"#, None),
            ("<html>sign in</html>", None),
            ("", None),
        ];
        for (body, left) in table {
            let end = left.map(|seconds| now + Duration::from_secs(seconds));
            assert_eq!(token_expiry(body.as_bytes(), now), end, "{body}");
        }
    }

    #[test]
    fn a_refusal_is_reported_with_its_code_and_first_sentence() {
        let table = [
            (
                r#"{"error":"invalid_client","error_description":"AADSTS7000222: The keys are expired. Visit."}"#,
                "AADSTS7000222: The keys are expired",
            ),
            (
                r#"{"error":"invalid_request","error_description":"Identity not found"}"#,
                "invalid_request: Identity not found",
            ),
            (r#"{"message":"No identity"}"#, "HTTP 400: No identity"),
            ("<html>", "HTTP 400: no reason given"),
        ];
        for (body, expected) in table {
            assert_eq!(refusal(400, &Bytes::from(body)).to_string(), expected);
        }
    }
}
