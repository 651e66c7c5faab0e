//! Azure's connection string: account, endpoint and secret in one text, as the portal shows it.
//! <https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string>

use super::{EMULATOR_ACCOUNT, EMULATOR_KEY, Secret};

/// The settings of the blob service in a connection string. Those of queues, tables and files are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// The account, which a string with a signature need not name.
    pub account: Option<String>,
    /// The full URL of the blob service, if it is not the account's default.
    pub endpoint: Option<String>,
    /// Whether the service is Azurite at its default address.
    pub emulator: bool,
    /// The secret that signs requests.
    pub secret: ConnectionSecret,
}

/// The secret in a connection string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionSecret {
    /// The account's shared key.
    Key(Secret),
    /// A shared access signature.
    Sas(Secret),
}

/// A problem with a connection string. Its text continues a sentence that starts with where the string is, and repeats
/// nothing of the string but known names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// A setting is not `Name=value`.
    #[error("is not a connection string: write Name=value;Name=value, as the portal shows it")]
    NotPairs,
    /// This name is set more than once.
    #[error("contains {0} twice: keep one of them")]
    Twice(&'static str),
    /// The emulator is reached through a proxy.
    #[error("contains DevelopmentStorageProxyUri, which is not supported: use BlobEndpoint")]
    Proxy,
    /// There is no secret.
    #[error(
        "contains neither AccountKey nor SharedAccessSignature: copy the whole string from the portal"
    )]
    NoSecret,
    /// There are two secrets.
    #[error("contains both AccountKey and SharedAccessSignature: keep one of them")]
    TwoSecrets,
    /// The protocol is not HTTP.
    #[error("contains a DefaultEndpointsProtocol that is neither https nor http: write https")]
    Protocol,
    /// There is no endpoint, and no account to derive it from.
    #[error("contains neither AccountName nor BlobEndpoint: add one of them")]
    NoEndpoint,
    /// There is an account key, but no account.
    #[error("contains AccountKey without AccountName: add the account")]
    NoAccount,
}

impl ConnectionString {
    /// Parses `Name=value;Name=value`, ignoring the case of names.
    pub fn parse(text: &str) -> Result<ConnectionString, ConnectionStringError> {
        use ConnectionStringError as Error;
        const NAMES: [&str; 8] = [
            "DefaultEndpointsProtocol",
            "AccountName",
            "AccountKey",
            "SharedAccessSignature",
            "BlobEndpoint",
            "EndpointSuffix",
            "UseDevelopmentStorage",
            "DevelopmentStorageProxyUri",
        ];
        let mut values: [Option<&str>; 8] = [None; 8];
        for setting in text.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            let Some((name, value)) = setting.split_once('=') else {
                return Err(Error::NotPairs);
            };
            let (name, value) = (name.trim(), value.trim());
            let known = NAMES
                .iter()
                .position(|known| known.eq_ignore_ascii_case(name));
            if let Some(at) = known {
                if values[at].is_some() {
                    return Err(Error::Twice(NAMES[at]));
                }
                values[at] = Some(value).filter(|value| !value.is_empty());
            }
        }
        let [
            protocol,
            account,
            key,
            sas,
            endpoint,
            suffix,
            development,
            proxy,
        ] = values;
        if proxy.is_some() {
            return Err(Error::Proxy);
        }
        if development.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(ConnectionString {
                account: Some(EMULATOR_ACCOUNT.to_owned()),
                endpoint: endpoint.map(str::to_owned),
                emulator: true,
                secret: ConnectionSecret::Key(Secret::new(EMULATOR_KEY)),
            });
        }
        let secret = match (key, sas) {
            (Some(key), None) => ConnectionSecret::Key(Secret::new(key)),
            (None, Some(sas)) => ConnectionSecret::Sas(Secret::new(sas)),
            (None, None) => return Err(Error::NoSecret),
            (Some(_), Some(_)) => return Err(Error::TwoSecrets),
        };
        let protocol = match protocol.map(str::to_ascii_lowercase).as_deref() {
            None | Some("https") => "https",
            Some("http") => "http",
            Some(_) => return Err(Error::Protocol),
        };
        let endpoint = match (endpoint, account) {
            (Some(endpoint), _) => Some(endpoint.to_owned()),
            (None, Some(account)) if suffix.is_some() || protocol == "http" => Some(format!(
                "{protocol}://{account}.blob.{}",
                suffix.unwrap_or("core.windows.net")
            )),
            (None, Some(_)) => None,
            (None, None) => return Err(Error::NoEndpoint),
        };
        if account.is_none() && matches!(secret, ConnectionSecret::Key(_)) {
            return Err(Error::NoAccount);
        }
        Ok(ConnectionString {
            account: account.map(str::to_owned).or_else(|| {
                let host = endpoint.as_deref()?.split_once("://")?.1;
                let (name, rest) = host.split_once('.')?;
                rest.starts_with("blob.").then(|| name.to_owned())
            }),
            endpoint,
            emulator: false,
            secret,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Account, endpoint, emulator, and the kind (`key` or `sas`) and text of the secret.
    type Expected<'a> = (Option<&'a str>, Option<&'a str>, bool, (&'a str, &'a str));

    #[test]
    fn a_connection_string_names_account_endpoint_and_secret() {
        let table: [(&str, Expected<'_>); 9] = [
            (
                "DefaultEndpointsProtocol=https;AccountName=logs;AccountKey=a2V5==;EndpointSuffix=core.windows.net",
                (
                    Some("logs"),
                    Some("https://logs.blob.core.windows.net"),
                    false,
                    ("key", "a2V5=="),
                ),
            ),
            (
                "AccountName=logs;AccountKey=a2V5",
                (Some("logs"), None, false, ("key", "a2V5")),
            ),
            (
                " accountname = logs ; ACCOUNTKEY = a2V5 ;; TableEndpoint=https://t ; ",
                (Some("logs"), None, false, ("key", "a2V5")),
            ),
            (
                "AccountName=logs;AccountKey=a2V5;DefaultEndpointsProtocol=HTTP",
                (
                    Some("logs"),
                    Some("http://logs.blob.core.windows.net"),
                    false,
                    ("key", "a2V5"),
                ),
            ),
            (
                "AccountName=logs;AccountKey=a2V5;EndpointSuffix=core.chinacloudapi.cn",
                (
                    Some("logs"),
                    Some("https://logs.blob.core.chinacloudapi.cn"),
                    false,
                    ("key", "a2V5"),
                ),
            ),
            (
                "AccountName=dev;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:10000/dev;EndpointSuffix=x",
                (
                    Some("dev"),
                    Some("http://127.0.0.1:10000/dev"),
                    false,
                    ("key", "a2V5"),
                ),
            ),
            (
                "BlobEndpoint=https://logs.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=a%3D",
                (
                    Some("logs"),
                    Some("https://logs.blob.core.windows.net/"),
                    false,
                    ("sas", "sv=1&sig=a%3D"),
                ),
            ),
            (
                "BlobEndpoint=https://store.example;SharedAccessSignature=sv=1&sig=a",
                (
                    None,
                    Some("https://store.example"),
                    false,
                    ("sas", "sv=1&sig=a"),
                ),
            ),
            (
                "UseDevelopmentStorage=true",
                (Some(EMULATOR_ACCOUNT), None, true, ("key", EMULATOR_KEY)),
            ),
        ];
        for (text, (account, endpoint, emulator, (kind, secret))) in table {
            let secret = match kind {
                "key" => ConnectionSecret::Key(Secret::new(secret)),
                _ => ConnectionSecret::Sas(Secret::new(secret)),
            };
            let expected = ConnectionString {
                account: account.map(str::to_owned),
                endpoint: endpoint.map(str::to_owned),
                emulator,
                secret,
            };
            assert_eq!(ConnectionString::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn errors_do_not_contain_the_secret() {
        let table = [
            ("hunter2", "Name=value"),
            ("", "neither AccountKey nor SharedAccessSignature"),
            ("AccountName=logs", "neither AccountKey"),
            ("AccountName=logs;AccountKey=", "neither AccountKey"),
            ("AccountKey=hunter2", "neither AccountName nor BlobEndpoint"),
            (
                "AccountKey=hunter2;BlobEndpoint=https://a",
                "without AccountName",
            ),
            (
                "AccountName=a;AccountKey=hunter2;SharedAccessSignature=sig=hunter2",
                "both AccountKey and",
            ),
            (
                "AccountName=a;AccountKey=hunter2;AccountKey=hunter2",
                "AccountKey twice",
            ),
            (
                "AccountName=a;AccountKey=hunter2;DefaultEndpointsProtocol=ftp",
                "neither https nor http",
            ),
            (
                "UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://hunter2",
                "DevelopmentStorageProxyUri",
            ),
        ];
        for (text, words) in table {
            let wrong = ConnectionString::parse(text).expect_err(text).to_string();
            assert!(wrong.contains(words), "{text}: {wrong}");
            assert!(!wrong.contains("hunter2"), "{wrong}");
        }
    }
}
