//! Azure's connection string: account, endpoint and secret in one text, as the portal shows it.
//! <https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string>

use super::{EMULATOR_ACCOUNT, EMULATOR_KEY, Secret};

/// What a connection string says of the blob service. What it says of queues, tables and files is passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// The account; a string with a signature need not name it.
    pub account: Option<String>,
    /// Full URL of the blob service, where it is not the account's usual one.
    pub endpoint: Option<String>,
    /// It is Azurite that is meant, at its usual address.
    pub emulator: bool,
    /// How requests are signed.
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

/// What is wrong with a connection string; it goes on from the name of what that is in. Shows nothing of it but names
/// that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// Something in it has no name.
    #[error("is no connection string: write Name=value;Name=value, as the portal shows it")]
    NotPairs,
    /// This name is given more than once.
    #[error("holds {0} twice: keep one of them")]
    Twice(&'static str),
    /// The emulator by way of a proxy.
    #[error("holds DevelopmentStorageProxyUri, which is not known: write BlobEndpoint")]
    Proxy,
    /// Nothing to sign with.
    #[error("holds neither AccountKey nor SharedAccessSignature: give it as the portal shows it")]
    NoSecret,
    /// Two things to sign with.
    #[error("holds both AccountKey and SharedAccessSignature: keep one of them")]
    TwoSecrets,
    /// Another protocol than HTTP.
    #[error("holds a DefaultEndpointsProtocol that is neither https nor http")]
    Protocol,
    /// It does not say where the service is.
    #[error("holds neither AccountName nor BlobEndpoint")]
    NoPlace,
    /// A key without the account that it is of.
    #[error("holds AccountKey without AccountName")]
    NoAccount,
}

impl ConnectionString {
    /// Reads `Name=value;Name=value`, names in any case.
    pub fn parse(text: &str) -> Result<ConnectionString, ConnectionStringError> {
        use ConnectionStringError as Wrong;
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
                return Err(Wrong::NotPairs);
            };
            let (name, value) = (name.trim(), value.trim());
            let known = NAMES
                .iter()
                .position(|known| known.eq_ignore_ascii_case(name));
            if let Some(at) = known {
                if values[at].is_some() {
                    return Err(Wrong::Twice(NAMES[at]));
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
            return Err(Wrong::Proxy);
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
            (None, None) => return Err(Wrong::NoSecret),
            (Some(_), Some(_)) => return Err(Wrong::TwoSecrets),
        };
        let protocol = match protocol.map(str::to_ascii_lowercase).as_deref() {
            None | Some("https") => "https",
            Some("http") => "http",
            Some(_) => return Err(Wrong::Protocol),
        };
        let endpoint = match (endpoint, account) {
            (Some(endpoint), _) => Some(endpoint.to_owned()),
            (None, Some(account)) if suffix.is_some() || protocol == "http" => Some(format!(
                "{protocol}://{account}.blob.{}",
                suffix.unwrap_or("core.windows.net")
            )),
            (None, Some(_)) => None,
            (None, None) => return Err(Wrong::NoPlace),
        };
        if account.is_none() && matches!(secret, ConnectionSecret::Key(_)) {
            return Err(Wrong::NoAccount);
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

    /// What a good string means: account, endpoint, emulator, and the secret behind `key` or `sas`.
    type Meant<'a> = (Option<&'a str>, Option<&'a str>, bool, (&'a str, &'a str));

    #[test]
    fn a_connection_string_says_account_endpoint_and_secret() {
        let table: [(&str, Meant<'_>); 9] = [
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
            let meant = ConnectionString {
                account: account.map(str::to_owned),
                endpoint: endpoint.map(str::to_owned),
                emulator,
                secret,
            };
            assert_eq!(ConnectionString::parse(text), Ok(meant), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_secret() {
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
