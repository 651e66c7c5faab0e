//! The meaning of the stores' error codes: those that name the object reject it; all others concern credentials, load,
//! the destination or the connection, and hold it.
//!
//! A response rejects an object only by a code in the store's table. (Without a response, only a name that the store's
//! client or a file system refuses does: `FILE`.) The cause of any other response, known or unknown, from the store or
//! an intermediary, may be fixed without changing the object, which is then delivered: a bucket that requires a
//! checksum, a disabled key, a proxy with a limit of its own.

use std::io;

use crate::sink::Class;

/// The kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub enum Vendor {
    /// Azure Blob Storage.
    Azure,
    /// S3 and compatible stores.
    S3,
    /// Google Cloud Storage.
    Gcs,
}

/// The effect of a failed request at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing was written: it may be retried.
    Retry,
    /// The object may have been written.
    Ambiguous,
    /// Nothing was written, and never will be.
    Rejected,
}

/// The relation of a code to an object.
#[derive(Clone, Copy, Debug)]
enum Names {
    /// The code always names the object.
    Object,
    /// The code names the object if its name is longer than documented; otherwise the container's name is meant.
    LongName,
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList>, and `KeyTooLong` of
/// StorageGRID's: <https://docs.netapp.com/us-en/storagegrid/s3/error-responses.html>
const S3: &[(&str, Names)] = &[
    ("EntityTooLarge", Names::Object),
    ("KeyTooLong", Names::Object),
    ("KeyTooLongError", Names::Object),
];

/// <https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes>
const AZURE: &[(&str, Names)] = &[
    ("InvalidResourceName", Names::LongName),
    ("InvalidUri", Names::LongName),
    ("OutOfRangeInput", Names::LongName),
    ("RequestBodyTooLarge", Names::Object),
];

/// <https://cloud.google.com/storage/docs/xml-api/reference-status>
const GCS: &[(&str, Names)] = &[
    ("EntityTooLarge", Names::Object),
    ("KeyTooLong", Names::Object),
];

/// The errors of a file system that name the file.
const FILE: &[io::ErrorKind] = &[io::ErrorKind::InvalidFilename];

// https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata#blob-names
/// The most UTF-16 code units in the name of a blob.
const AZURE_NAME_CHARACTERS: usize = 1_024;
/// The most segments in the name of a blob.
const AZURE_NAME_SEGMENTS: usize = 254;

impl Vendor {
    fn table(self) -> &'static [(&'static str, Names)] {
        match self {
            Vendor::Azure => AZURE,
            Vendor::S3 => S3,
            Vendor::Gcs => GCS,
        }
    }

    /// Whether an error with this code concerns the object of this name, and nothing else.
    fn names_the_object(self, status: u16, code: &str, name: &str) -> bool {
        // The stores send these codes with these statuses only.
        let known = self.table().iter().find(|(known, _)| *known == code);
        match known.filter(|_| matches!(status, 400 | 413)) {
            Some((_, Names::Object)) => true,
            Some((_, Names::LongName)) => {
                name.encode_utf16().count() > AZURE_NAME_CHARACTERS
                    || name.split('/').count() > AZURE_NAME_SEGMENTS
            }
            None => false,
        }
    }
}

/// Classifies an error response by its HTTP status and the store's code. `put`: the name of the object that the request
/// puts, without which nothing is rejected.
pub(super) fn classify(
    vendor: Vendor,
    put: Option<&str>,
    status: u16,
    code: &str,
) -> (Fate, Class) {
    if put.is_some_and(|name| vendor.names_the_object(status, code, name)) {
        return (Fate::Rejected, Class::Record);
    }
    match (status, code) {
        // Authentication failed.
        (401, _)
        | (
            400 | 403,
            "AuthenticationFailed"
            | "ExpiredToken"
            | "InvalidAccessKeyId"
            | "InvalidAuthenticationInfo"
            | "InvalidToken"
            | "NoAuthenticationInformation"
            | "RequestExpired"
            | "RequestTimeTooSkewed"
            | "SignatureDoesNotMatch"
            | "TokenRefreshRequired",
        ) => (Fate::Retry, Class::Credentials),
        (429, _) | (503, "ServerBusy" | "SlowDown") => (Fate::Retry, Class::Throttle),
        // The quota of the key service, not the bucket's.
        (400, "KMS.ThrottlingException" | "ThrottlingException") => (Fate::Retry, Class::Throttle),
        // The response of a gateway, which may have forwarded the request.
        (503, _) => (Fate::Ambiguous, Class::Throttle),
        (501, _) => (Fate::Retry, Class::Configuration),
        (408 | 500.., _) | (400, "RequestTimeout") => (Fate::Ambiguous, Class::Transient),
        // Corrupted in transit.
        (
            400,
            "BadDigest"
            | "IncompleteBody"
            | "Md5Mismatch"
            | "XAmzContentChecksumMismatch"
            | "XAmzContentSHA256Mismatch",
        ) => (Fate::Retry, Class::Transient),
        // Azure's refusals of what is sent with an object.
        (
            409,
            "BlobAccessTierNotSupportedForAccountType"
            | "BlobTierInadequateForContentLength"
            | "FeatureVersionMismatch"
            | "InvalidBlobTier",
        ) => (Fate::Retry, Class::Configuration),
        (409 | 412, _) => (Fate::Retry, Class::Transient),
        // To be fixed at the destination or in between.
        _ => (Fate::Retry, Class::Configuration),
    }
}

/// Classifies a file system's error. Only the kinds that occur before the file has its final name are certain not to
/// have written it.
pub(super) fn classify_file(kind: io::ErrorKind) -> (Fate, Class) {
    if FILE.contains(&kind) {
        return (Fate::Rejected, Class::Record);
    }
    match kind {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::Unsupported => (Fate::Retry, Class::Configuration),
        _ => (Fate::Ambiguous, Class::Transient),
    }
}

/// Returns the remedy for a configuration error, unless the store's message contains it. `own`: whether the response is
/// the store's rather than an intermediary's.
pub(super) fn remedy(status: u16, code: &str, own: bool) -> Option<&'static str> {
    match code {
        "AccountRequiresHttps" => Some("write the endpoint with https://"),
        "InvalidResourceName" | "OutOfRangeInput" | "InvalidUri" | "InvalidBucketName" => {
            Some("check the name of the container or bucket")
        }
        "CloudKmsDisabledKey" | "KMS.DisabledException" => Some("enable the KMS key"),
        "KMS.NotFoundException" | "KMS.KMSInvalidStateException" => {
            Some("check sse_kms_key_id, or the bucket's KMS key")
        }
        _ if code.starts_with("KMS.") => Some(
            "check sse_kms_key_id, or the bucket's KMS key, and its policy (kms:GenerateDataKey)",
        ),
        "InvalidEncryptionAlgorithmError" => Some("check sse, and the bucket's default encryption"),
        "InvalidStorageClass" => Some("correct storage_class"),
        "AccessControlListNotSupported" => {
            Some("the bucket has no ACLs: remove canned_acl, or enable them")
        }
        "InvalidTag" | "InvalidTagName" | "InvalidTagValue" | "TagsTooLarge" => {
            Some("correct object_tags")
        }
        "MetadataTooLarge" | "InvalidMetadata" | "EmptyMetadataKey" => {
            Some("correct object_metadata")
        }
        "BlobAccessTierNotSupportedForAccountType" | "InvalidBlobTier" => {
            Some("correct access_tier, or remove it")
        }
        "SecondLevelDomainForbidden" => Some("set s3_addressing virtual"),
        "NotImplemented" | "UnsupportedHeader" | "ConditionHeadersNotSupported" => Some(
            "the store does not support a header of the request: if it is If-None-Match, set conditional_put off",
        ),
        _ if own || !(400..500).contains(&status) => None,
        _ if status == 413 => Some(
            "the response is not the store's: raise the limit of the proxy or gateway in between, or lower \
             blob_max_size",
        ),
        _ => Some("the response is not the store's: look for a proxy or gateway in between"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VENDORS: [Vendor; 3] = [Vendor::Azure, Vendor::S3, Vendor::Gcs];

    #[test]
    fn every_response_has_one_meaning() {
        use Class::*;
        use Fate::*;
        let table = [
            (401, "HTTP 401", Retry, Credentials),
            (403, "AuthenticationFailed", Retry, Credentials),
            (403, "SignatureDoesNotMatch", Retry, Credentials),
            (403, "RequestTimeTooSkewed", Retry, Credentials),
            (400, "ExpiredToken", Retry, Credentials),
            (403, "AuthorizationPermissionMismatch", Retry, Configuration),
            (403, "AccessDenied", Retry, Configuration),
            (404, "ContainerNotFound", Retry, Configuration),
            (404, "NoSuchBucket", Retry, Configuration),
            (301, "PermanentRedirect", Retry, Configuration),
            (405, "HTTP 405", Retry, Configuration),
            (407, "HTTP 407", Retry, Configuration),
            (501, "NotImplemented", Retry, Configuration),
            (400, "AuthorizationHeaderMalformed", Retry, Configuration),
            (400, "InvalidRequest", Retry, Configuration),
            (400, "KMS.DisabledException", Retry, Configuration),
            (400, "AccountRequiresHttps", Retry, Configuration),
            (400, "HTTP 400", Retry, Configuration),
            (413, "HTTP 413", Retry, Configuration),
            (400, "InvalidStorageClass", Retry, Configuration),
            (400, "AccessControlListNotSupported", Retry, Configuration),
            (400, "KMS.NotFoundException", Retry, Configuration),
            (400, "InvalidTag", Retry, Configuration),
            (400, "MetadataTooLarge", Retry, Configuration),
            (409, "InvalidBlobTier", Retry, Configuration),
            (400, "KMS.ThrottlingException", Retry, Throttle),
            (429, "HTTP 429", Retry, Throttle),
            (503, "ServerBusy", Retry, Throttle),
            (503, "SlowDown", Retry, Throttle),
            (503, "HTTP 503", Ambiguous, Throttle),
            (500, "InternalError", Ambiguous, Transient),
            (500, "OperationTimedOut", Ambiguous, Transient),
            (502, "HTTP 502", Ambiguous, Transient),
            (504, "HTTP 504", Ambiguous, Transient),
            (408, "HTTP 408", Ambiguous, Transient),
            (400, "RequestTimeout", Ambiguous, Transient),
            (400, "Md5Mismatch", Retry, Transient),
            (409, "ContainerBeingDeleted", Retry, Transient),
            (412, "ConditionNotMet", Retry, Transient),
        ];
        for (status, code, fate, class) in table {
            for vendor in VENDORS {
                assert_eq!(
                    classify(vendor, Some("a/b"), status, code),
                    (fate, class),
                    "{status} {code}"
                );
            }
        }
    }

    #[test]
    fn a_file_system_rejects_a_file_for_its_name_alone() {
        use io::ErrorKind::*;
        let kinds = [
            NotFound,
            PermissionDenied,
            ConnectionRefused,
            ConnectionReset,
            HostUnreachable,
            NetworkUnreachable,
            ConnectionAborted,
            NotConnected,
            AddrInUse,
            AddrNotAvailable,
            NetworkDown,
            BrokenPipe,
            AlreadyExists,
            WouldBlock,
            NotADirectory,
            IsADirectory,
            DirectoryNotEmpty,
            ReadOnlyFilesystem,
            StaleNetworkFileHandle,
            InvalidInput,
            InvalidData,
            TimedOut,
            WriteZero,
            StorageFull,
            NotSeekable,
            QuotaExceeded,
            FileTooLarge,
            ResourceBusy,
            ExecutableFileBusy,
            Deadlock,
            CrossesDevices,
            TooManyLinks,
            InvalidFilename,
            ArgumentListTooLong,
            Interrupted,
            Unsupported,
            UnexpectedEof,
            OutOfMemory,
            Other,
        ];
        let fates = kinds.map(|kind| (kind, classify_file(kind).0));
        let rejected = fates.iter().filter(|(_, fate)| *fate == Fate::Rejected);
        let rejected: Vec<_> = rejected.map(|(kind, _)| *kind).collect();
        assert_eq!(rejected, FILE);
    }

    #[test]
    fn a_name_is_long_by_azures_own_count() {
        let table = [
            ("x".repeat(1_024), false),
            ("x".repeat(1_025), true),
            // Two UTF-16 code units each.
            ("😊".repeat(512), false),
            ("😊".repeat(513), true),
            ("é".repeat(1_024), false),
            (vec!["x"; 254].join("/"), false),
            (vec!["x"; 255].join("/"), true),
        ];
        for (name, long) in table {
            for (code, _) in AZURE
                .iter()
                .filter(|(_, names)| matches!(names, Names::LongName))
            {
                let rejected = classify(Vendor::Azure, Some(&name), 400, code).0 == Fate::Rejected;
                assert_eq!(rejected, long, "{code} for {name}");
            }
        }
    }

    fn any_code() -> impl Strategy<Value = String> {
        let known = VENDORS
            .iter()
            .flat_map(|vendor| vendor.table())
            .map(|(code, _)| (*code).to_owned());
        prop_oneof![
            4 => "[A-Za-z0-9._-]{0,40}",
            1 => proptest::sample::select(known.collect::<Vec<_>>()),
        ]
    }

    proptest! {
        /// Of all responses of a store or a proxy, only the codes in the store's table reject an object, and only the
        /// one that the request puts.
        #[test]
        fn nothing_gives_an_object_up_but_the_stores_table(
            status in 100_u16..=999,
            code in any_code(),
            vendor in proptest::sample::select(VENDORS.to_vec()),
            name in proptest::option::of("[a-z/]{0,2000}"),
        ) {
            let rejected = classify(vendor, name.as_deref(), status, &code).0 == Fate::Rejected;
            let listed = vendor.table().iter().any(|(listed, _)| *listed == code);
            prop_assert!(!rejected || (listed && name.is_some() && [400, 413].contains(&status)));
        }
    }
}
