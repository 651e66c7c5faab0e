//! The last step before a request is sent: headers that `object_store` does not know, and the signature over all of
//! them.
//!
//! S3 and Azure with a shared key refuse headers of their own that are not signed, so `object_store` cannot sign: it
//! knows neither an ACL nor an encryption scope.

use futures::future::BoxFuture;
use md5::{Digest as _, Md5};
#[cfg(feature = "s3")]
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::azure::{AzureAuthorizer, AzureCredentialProvider};
use object_store::client::{
    HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{HeaderMap, HeaderValue};

use super::answer::{Failure, PutTarget};
use crate::buffers::Payload;
use crate::config::{ObjectSettings, Problem, keys};

/// The way that requests are signed.
pub(super) enum Signer {
    /// They have a token already.
    #[cfg(feature = "gs")]
    None,
    #[cfg(feature = "s3")]
    S3 {
        credentials: AwsCredentialProvider,
        region: String,
        request_payer: bool,
    },
    Azure {
        credentials: AzureCredentialProvider,
        account: String,
    },
}

/// The MD5 of a put's body, for its header: a request extension.
#[derive(Clone, Debug)]
pub(super) struct ContentMd5(HeaderValue);

impl ContentMd5 {
    pub(super) fn of(body: &Payload) -> ContentMd5 {
        let mut hasher = Md5::new();
        for part in body.parts() {
            hasher.update(part);
        }
        let text = base64_simd::STANDARD.encode_to_string(hasher.finalize());
        ContentMd5(HeaderValue::from_str(&text).expect("base64 is a header's value"))
    }
}

/// Returns the headers of each put.
pub(super) fn put_headers(settings: &ObjectSettings) -> Result<HeaderMap, Problem> {
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.put_headers {
        let value = HeaderValue::from_str(value).map_err(|error| {
            Problem::new(
                keys::URL.name,
                format!("the header {name} is invalid: {error}"),
            )
        })?;
        headers.insert(*name, value);
    }
    Ok(headers)
}

/// An HTTP client that adds the headers of puts, and signs.
pub(super) struct Signing {
    client: HttpClient,
    put_headers: HeaderMap,
    signer: Signer,
}

impl Signing {
    pub(super) fn wrap(client: HttpClient, put_headers: HeaderMap, signer: Signer) -> HttpClient {
        HttpClient::new(Signing {
            client,
            put_headers,
            signer,
        })
    }

    async fn sign(&self, request: &mut HttpRequest) -> Result<(), Failure> {
        match &self.signer {
            #[cfg(feature = "gs")]
            Signer::None => {}
            #[cfg(feature = "s3")]
            Signer::S3 {
                credentials,
                region,
                request_payer,
            } => {
                let credential = credentials.get_credential().await?;
                // A put has its SHA-256 as a checksum; the authorizer would hash only bodies of one part.
                let checksum = request.headers().get("x-amz-checksum-sha256");
                let digest = checksum
                    .and_then(|text| base64_simd::STANDARD.decode_to_vec(text.as_bytes()).ok());
                AwsAuthorizer::new(&credential, "s3", region)
                    .with_request_payer(*request_payer)
                    .try_authorize(request, digest.as_deref())?;
            }
            Signer::Azure {
                credentials,
                account,
            } => {
                let credential = credentials.get_credential().await?;
                AzureAuthorizer::new(&credential, account).try_authorize(request)?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing").finish_non_exhaustive()
    }
}

impl HttpService for Signing {
    fn call<'s, 'f>(
        &'s self,
        mut request: HttpRequest,
    ) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            if request.extensions().get::<PutTarget>().is_some() {
                let md5 = request.extensions().get::<ContentMd5>().cloned();
                let headers = request.headers_mut();
                headers.extend(self.put_headers.clone());
                if let Some(ContentMd5(value)) = md5 {
                    headers.insert("content-md5", value);
                }
            }
            // object_store never retries errors of this kind.
            let fail = |failure| HttpError::new(HttpErrorKind::Unknown, failure);
            self.sign(&mut request).await.map_err(fail)?;
            self.client.execute(request).await
        })
    }
}
