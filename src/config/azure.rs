//! What is told of Azure Blob: the account, the container, and how we prove who we are.

use std::fs;

use super::connection_string::ConnectionString;
use super::reader::Reader;
use super::value::is_full_url;
use super::{Secret, SecretSource};

/// How to reach Azure Blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Azure {
    /// Storage account.
    pub account: String,
    /// Container.
    pub container: String,
    /// How we prove who we are.
    pub auth: AzureAuth,
    /// Full URL of the blob service, the account's own where it is not given.
    pub endpoint: Option<String>,
    /// Talk to Azurite: the account stands in the path, plain http is allowed.
    pub emulator: bool,
    /// Make the container when it does not exist.
    pub auto_create_container: bool,
}

/// How we prove who we are to Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureAuth {
    /// The account's shared key, base64.
    SharedKey(SecretSource),
    /// A shared access signature, with or without its `?`.
    Sas(SecretSource),
    /// A connection string, whose account and endpoint stand in [`Azure`], too.
    ConnectionString(SecretSource),
    /// The identity of the machine, App Service or Container App we run on.
    ManagedIdentity {
        /// Which one, where there are several.
        client_id: Option<String>,
    },
    /// The identity that Kubernetes' token of our ServiceAccount stands for. What is not given comes from
    /// `AZURE_TENANT_ID` and `AZURE_CLIENT_ID`, the token from the file `AZURE_FEDERATED_TOKEN_FILE`.
    WorkloadIdentity {
        /// Tenant of the identity.
        tenant_id: Option<String>,
        /// The identity.
        client_id: Option<String>,
    },
    /// A registered application with a secret.
    ClientSecret {
        /// Tenant of the application.
        tenant_id: String,
        /// The application.
        client_id: String,
        /// Its secret.
        secret: SecretSource,
    },
}

impl AzureAuth {
    /// The value of `auth_type`.
    pub fn name(&self) -> &'static str {
        let auth = match self {
            AzureAuth::SharedKey(_) => AuthType::Key,
            AzureAuth::Sas(_) => AuthType::Sas,
            AzureAuth::ConnectionString(_) => AuthType::ConnectionString,
            AzureAuth::ManagedIdentity { .. } => AuthType::ManagedIdentity,
            AzureAuth::WorkloadIdentity { .. } => AuthType::WorkloadIdentity,
            AzureAuth::ClientSecret { .. } => AuthType::ClientSecret,
        };
        auth.name()
    }

    /// Whether requests are signed with a secret of the storage account, rather than carrying a token.
    pub fn is_secret(&self) -> bool {
        match self {
            AzureAuth::SharedKey(_) | AzureAuth::Sas(_) | AzureAuth::ConnectionString(_) => true,
            AzureAuth::ManagedIdentity { .. }
            | AzureAuth::WorkloadIdentity { .. }
            | AzureAuth::ClientSecret { .. } => false,
        }
    }
}

/// Keys that say something of Azure alone.
pub(super) const AZURE_KEYS: &[&str] = &[
    "account_name",
    "container_name",
    "auth_type",
    "shared_key",
    "sas_token",
    "connection_string",
    "tenant_id",
    "client_id",
    "client_secret",
    "emulator_mode",
    "auto_create_container",
];

impl Reader<'_> {
    pub(super) fn azure(&mut self, container: String) -> Option<Azure> {
        if !is_container_name(&container) {
            self.problem(
                "container_name",
                format!("'{container}' is no name of a container: 3 to 63 lowercase letters, digits and single hyphens"),
            );
        }
        let auth = self.azure_auth();
        let place = match auth {
            AuthType::ConnectionString => self.azure_by_connection_string(),
            _ => self.azure_by_keys(auth),
        };
        let auto_create_container = self.flag("auto_create_container").unwrap_or(true);
        let (account, auth, endpoint, emulator) = place?;
        Some(Azure {
            account,
            container,
            auth,
            endpoint,
            emulator,
            auto_create_container,
        })
    }

    /// How we prove who we are; refuses the keys that belong to other ways.
    fn azure_auth(&mut self) -> AuthType {
        use AuthType::{
            ClientSecret, ConnectionString, Key, ManagedIdentity, Sas, WorkloadIdentity,
        };
        let all = [
            Key,
            Sas,
            ConnectionString,
            ManagedIdentity,
            WorkloadIdentity,
            ClientSecret,
        ];
        let chosen = self.choice("auth_type", &all.map(|auth| (auth.name(), auth)));
        let set = |key: &str| self.properties.get(key).is_some();
        let inferred = match set("connection_string") {
            true => ConnectionString,
            false => Key,
        };
        let auth = chosen.unwrap_or(inferred);
        // Keys, and the ways that they belong to. azure_blob takes a key and a signature side by side.
        let owners: [(&'static str, &[AuthType]); 6] = [
            ("shared_key", &[Key, Sas]),
            ("sas_token", &[Key, Sas]),
            ("connection_string", &[ConnectionString]),
            ("tenant_id", &[WorkloadIdentity, ClientSecret]),
            (
                "client_id",
                &[ManagedIdentity, WorkloadIdentity, ClientSecret],
            ),
            ("client_secret", &[ClientSecret]),
        ];
        let idle: Vec<_> = owners
            .into_iter()
            .filter(|(key, ways)| set(key) && !ways.contains(&auth))
            .collect();
        for (key, ways) in idle {
            let ways: Vec<_> = ways.iter().map(|way| way.name()).collect();
            self.problem(
                key,
                format!(
                    "does nothing with auth_type {}: set auth_type {}, or remove it",
                    auth.name(),
                    ways.join(" or ")
                ),
            );
        }
        auth
    }

    fn azure_by_keys(&mut self, auth: AuthType) -> Option<AzurePlace> {
        let emulator = self.flag("emulator_mode").unwrap_or(false);
        let account = match self.text("account_name") {
            Some(account) => Some(account),
            None if emulator => Some(EMULATOR_ACCOUNT.to_owned()),
            None => {
                self.problem("account_name", "is missing: name the storage account");
                None
            }
        };
        let auth = match auth {
            AuthType::Sas => self
                .needed_secret("sas_token", "auth_type sas")
                .map(AzureAuth::Sas),
            AuthType::ManagedIdentity => Some(AzureAuth::ManagedIdentity {
                client_id: self.text("client_id"),
            }),
            AuthType::WorkloadIdentity => Some(AzureAuth::WorkloadIdentity {
                tenant_id: self.tenant(),
                client_id: self.text("client_id"),
            }),
            AuthType::ClientSecret => {
                let tenant_id = self.tenant();
                let client_id = self.text("client_id");
                for (key, what) in [
                    ("tenant_id", "the directory (tenant) ID of the application"),
                    ("client_id", "the application (client) ID"),
                ] {
                    if self.properties.get(key).is_none() {
                        self.problem(
                            key,
                            format!("is missing: auth_type client_secret needs it, {what}"),
                        );
                    }
                }
                let secret = self.needed_secret("client_secret", "auth_type client_secret");
                Some(AzureAuth::ClientSecret {
                    tenant_id: tenant_id?,
                    client_id: client_id?,
                    secret: secret?,
                })
            }
            _ if emulator && self.properties.get("shared_key").is_none() => Some(
                AzureAuth::SharedKey(SecretSource::Value(Secret::new(EMULATOR_KEY))),
            ),
            _ => self
                .needed_secret("shared_key", "auth_type key")
                .map(AzureAuth::SharedKey),
        };
        let endpoint = self.url("endpoint");
        Some((account?, auth?, endpoint, emulator))
    }

    fn azure_by_connection_string(&mut self) -> Option<AzurePlace> {
        const KEY: &str = "connection_string";
        let source = self.needed_secret(KEY, "auth_type connection_string")?;
        let (what, parsed) = match &source {
            SecretSource::Value(text) => (
                "the value".to_owned(),
                ConnectionString::parse(text.expose()),
            ),
            SecretSource::File(path) => {
                // That it can be read was seen just now; what it holds may be no text.
                let text = fs::read(path).unwrap_or_default();
                (
                    format!("the content of '{}'", path.display()),
                    ConnectionString::parse(&String::from_utf8_lossy(&text)),
                )
            }
        };
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(wrong) => {
                self.problem(KEY, format!("{what} {wrong}"));
                return None;
            }
        };
        for key in ["endpoint", "emulator_mode"] {
            if self.properties.get(key).is_some() {
                self.problem(
                    key,
                    "does nothing beside connection_string, which says where the service is: remove it",
                );
            }
        }
        if let Some(endpoint) = &parsed.endpoint
            && !is_full_url(endpoint)
        {
            self.problem(
                KEY,
                format!(
                    "{what} holds a BlobEndpoint that is no full URL; write https://host[:port]"
                ),
            );
        }
        let named = self.text("account_name");
        if let (Some(named), Some(account)) = (&named, &parsed.account)
            && named != account
        {
            self.problem(
                "account_name",
                format!("'{named}', but connection_string says '{account}': keep one of them"),
            );
        }
        let Some(account) = parsed.account.or(named) else {
            self.problem(
                "account_name",
                "is missing: connection_string does not say it",
            );
            return None;
        };
        let auth = AzureAuth::ConnectionString(source);
        Some((account, auth, parsed.endpoint, parsed.emulator))
    }

    /// A tenant's id or domain; it becomes part of an address.
    fn tenant(&mut self) -> Option<String> {
        let tenant = self.text("tenant_id")?;
        if !is_tenant(&tenant) {
            self.problem("tenant_id", format!("'{tenant}' {NO_TENANT}"));
            return None;
        }
        Some(tenant)
    }
}

/// The values of `auth_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AuthType {
    Key,
    Sas,
    ConnectionString,
    ManagedIdentity,
    WorkloadIdentity,
    ClientSecret,
}

impl AuthType {
    fn name(self) -> &'static str {
        match self {
            AuthType::Key => "key",
            AuthType::Sas => "sas",
            AuthType::ConnectionString => "connection_string",
            AuthType::ManagedIdentity => "managed_identity",
            AuthType::WorkloadIdentity => "workload_identity",
            AuthType::ClientSecret => "client_secret",
        }
    }
}

/// Account, identity, endpoint, and whether it is the emulator.
type AzurePlace = (String, AzureAuth, Option<String>, bool);

/// Azurite's account, which is no secret: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
pub const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
/// The key of [`EMULATOR_ACCOUNT`].
pub const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// 3 to 63 letters, digits and single hyphens, or one of the service's own that begin with `$`.
/// https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
fn is_container_name(name: &str) -> bool {
    let plain = name.strip_prefix('$').unwrap_or(name);
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (3..=63).contains(&name.len()) && plain.split('-').all(part)
}

/// Whether something can be a tenant's id or domain.
pub fn is_tenant(tenant: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    !tenant.is_empty() && tenant.bytes().all(fits) && tenant.bytes().any(|b| b != b'.')
}

/// What is said of what is not [`is_tenant`].
pub const NO_TENANT: &str =
    "is no tenant: write the directory (tenant) ID, or a domain such as contoso.onmicrosoft.com";
