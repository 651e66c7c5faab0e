//! The keys of Azure Blob: the account, the container, and authentication.

use std::fs;

use super::connection_string::ConnectionString;
use super::reader::Reader;
use super::value::{AuthType, is_full_url, shown};
use super::{Secret, SecretSource, keys};

/// The settings of Azure Blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Azure {
    /// The storage account.
    pub account: String,
    /// The container.
    pub container: String,
    /// The authentication.
    pub auth: AzureAuth,
    /// The full URL of the blob service; by default the account's own.
    pub endpoint: Option<String>,
    /// Whether the service is Azurite: the account is part of the path, and plain http is allowed.
    pub emulator: bool,
    /// Whether to create the container if it does not exist.
    pub auto_create_container: bool,
    /// The cloud of the account; by default as the environment says.
    pub cloud: Option<AzureCloud>,
}

/// A cloud of Azure: <https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AzureCloud {
    /// The public cloud.
    Public,
    /// Azure operated by 21Vianet.
    China,
    /// Azure Government.
    UsGovernment,
}

impl AzureCloud {
    /// Returns the cloud that the environment names: the authority that a workload identity gets, or the name that
    /// Azure's SDKs and tools read.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Option<AzureCloud> {
        if let Some(authority) = variable("AZURE_AUTHORITY_HOST") {
            let ends = [
                ("chinacloudapi.cn", AzureCloud::China),
                ("partner.microsoftonline.cn", AzureCloud::China),
                ("login.microsoftonline.us", AzureCloud::UsGovernment),
                ("login.microsoftonline.com", AzureCloud::Public),
            ];
            let authority = authority.trim_end_matches('/').to_ascii_lowercase();
            let found = ends.iter().find(|(end, _)| authority.ends_with(end));
            if let Some((_, cloud)) = found {
                return Some(*cloud);
            }
        }
        let name = variable("AZURE_ENVIRONMENT").or_else(|| variable("AZURE_CLOUD"))?;
        match name.to_ascii_lowercase().as_str() {
            "azurecloud" | "azurepubliccloud" => Some(AzureCloud::Public),
            "azurechinacloud" => Some(AzureCloud::China),
            "azureusgovernment" | "azureusgovernmentcloud" => Some(AzureCloud::UsGovernment),
            _ => None,
        }
    }

    /// The end of the names of blob services, behind the account.
    pub fn blob_suffix(self) -> &'static str {
        match self {
            AzureCloud::Public => "blob.core.windows.net",
            AzureCloud::China => "blob.core.chinacloudapi.cn",
            AzureCloud::UsGovernment => "blob.core.usgovcloudapi.net",
        }
    }

    /// The URL of Microsoft Entra ID.
    pub fn authority(self) -> &'static str {
        match self {
            AzureCloud::Public => "https://login.microsoftonline.com",
            AzureCloud::China => "https://login.chinacloudapi.cn",
            AzureCloud::UsGovernment => "https://login.microsoftonline.us",
        }
    }
}

/// A way to authenticate to Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureAuth {
    /// The account's shared key, in base64.
    SharedKey(SecretSource),
    /// A shared access signature, with or without its `?`.
    Sas(SecretSource),
    /// A connection string, whose account and endpoint are in [`Azure`] too.
    ConnectionString(SecretSource),
    /// The identity of the virtual machine, App Service or Container App.
    ManagedIdentity {
        /// The identity's id, needed if there are several.
        client_id: Option<String>,
    },
    /// The identity of the pod's ServiceAccount. Missing ids come from `AZURE_TENANT_ID` and `AZURE_CLIENT_ID`, the
    /// token from the file `AZURE_FEDERATED_TOKEN_FILE`.
    WorkloadIdentity {
        /// The tenant of the identity.
        tenant_id: Option<String>,
        /// The identity's id.
        client_id: Option<String>,
    },
    /// A registered application with a secret.
    ClientSecret {
        /// The tenant of the application.
        tenant_id: String,
        /// The application's id.
        client_id: String,
        /// The application's secret.
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

    /// Whether requests are signed with a secret of the storage account, rather than authenticated with a token.
    pub fn is_secret(&self) -> bool {
        match self {
            AzureAuth::SharedKey(_) | AzureAuth::Sas(_) | AzureAuth::ConnectionString(_) => true,
            AzureAuth::ManagedIdentity { .. }
            | AzureAuth::WorkloadIdentity { .. }
            | AzureAuth::ClientSecret { .. } => false,
        }
    }
}

impl Reader<'_> {
    pub(super) fn azure(&mut self, container: String) -> Option<Azure> {
        if !is_container_name(&container) {
            self.problem(
                &keys::CONTAINER_NAME,
                format!(
                    "{} is not a container name: use 3 to 63 lowercase letters, digits and single hyphens",
                    shown(&container)
                ),
            );
        }
        let auth = self.azure_auth();
        let place = match auth {
            AuthType::ConnectionString => self.azure_by_connection_string(),
            _ => self.azure_by_keys(auth),
        };
        let auto_create_container = self.flag(&keys::AUTO_CREATE_CONTAINER) == Some(true);
        let cloud = self.choice(&keys::AZURE_CLOUD);
        let (account, auth, endpoint, emulator) = place?;
        Some(Azure {
            cloud,
            account,
            container,
            auth,
            endpoint,
            emulator,
            auto_create_container,
        })
    }

    /// Returns the type of authentication, and refuses the keys of other types.
    fn azure_auth(&mut self) -> AuthType {
        use AuthType::{
            ClientSecret, ConnectionString, Key, ManagedIdentity, Sas, WorkloadIdentity,
        };
        let chosen = self.choice(&keys::AUTH_TYPE);
        let inferred = match self.is_set(&keys::CONNECTION_STRING) {
            true => ConnectionString,
            false => Key,
        };
        let auth = chosen.unwrap_or(inferred);
        // Keys and the types they belong to. azure_blob accepts a key together with a signature.
        let owners: [(&'static keys::Key, &[AuthType]); 6] = [
            (&keys::SHARED_KEY, &[Key, Sas]),
            (&keys::SAS_TOKEN, &[Key, Sas]),
            (&keys::CONNECTION_STRING, &[ConnectionString]),
            (&keys::TENANT_ID, &[WorkloadIdentity, ClientSecret]),
            (
                &keys::CLIENT_ID,
                &[ManagedIdentity, WorkloadIdentity, ClientSecret],
            ),
            (&keys::CLIENT_SECRET, &[ClientSecret]),
        ];
        let idle: Vec<_> = owners
            .into_iter()
            .filter(|(key, types)| self.is_set(key) && !types.contains(&auth))
            .collect();
        for (key, types) in idle {
            let types: Vec<_> = types.iter().map(|auth| auth.name()).collect();
            self.problem(
                key,
                format!(
                    "does nothing with auth_type {}: set auth_type {}, or remove it",
                    auth.name(),
                    types.join(" or ")
                ),
            );
        }
        auth
    }

    fn azure_by_keys(&mut self, auth: AuthType) -> Option<AzurePlace> {
        let emulator = self.flag(&keys::EMULATOR_MODE) == Some(true);
        let account = match self.text(&keys::ACCOUNT_NAME) {
            Some(account) => Some(account),
            None if emulator => Some(EMULATOR_ACCOUNT.to_owned()),
            None => {
                self.problem(&keys::ACCOUNT_NAME, "is missing: name the storage account");
                None
            }
        };
        let auth = match auth {
            AuthType::Sas => self
                .required_secret(&keys::SAS_TOKEN, "auth_type sas")
                .map(AzureAuth::Sas),
            AuthType::ManagedIdentity => Some(AzureAuth::ManagedIdentity {
                client_id: self.text(&keys::CLIENT_ID),
            }),
            AuthType::WorkloadIdentity => Some(AzureAuth::WorkloadIdentity {
                tenant_id: self.tenant(),
                client_id: self.text(&keys::CLIENT_ID),
            }),
            AuthType::ClientSecret => {
                let tenant_id = self.tenant();
                let client_id = self.text(&keys::CLIENT_ID);
                for (key, what) in [
                    (
                        &keys::TENANT_ID,
                        "the directory (tenant) ID of the application",
                    ),
                    (&keys::CLIENT_ID, "the application (client) ID"),
                ] {
                    if !self.is_set(key) {
                        self.problem(
                            key,
                            format!("is missing: auth_type client_secret needs it, {what}"),
                        );
                    }
                }
                let secret = self.required_secret(&keys::CLIENT_SECRET, "auth_type client_secret");
                Some(AzureAuth::ClientSecret {
                    tenant_id: tenant_id?,
                    client_id: client_id?,
                    secret: secret?,
                })
            }
            _ if emulator && !self.is_set(&keys::SHARED_KEY) => Some(AzureAuth::SharedKey(
                SecretSource::Value(Secret::new(EMULATOR_KEY)),
            )),
            _ => self
                .required_secret(&keys::SHARED_KEY, "auth_type key")
                .map(AzureAuth::SharedKey),
        };
        let endpoint = self.url(&keys::ENDPOINT);
        Some((account?, auth?, endpoint, emulator))
    }

    fn azure_by_connection_string(&mut self) -> Option<AzurePlace> {
        const KEY: &keys::Key<keys::SecretText> = &keys::CONNECTION_STRING;
        let source = self.required_secret(KEY, "auth_type connection_string")?;
        let (subject, parsed) = match &source {
            SecretSource::Value(text) => (
                "the value".to_owned(),
                ConnectionString::parse(text.expose()),
            ),
            SecretSource::File(path) => {
                // It was readable just now, but may not be text.
                let text = fs::read(path).unwrap_or_default();
                (
                    format!("the content of '{}'", path.display()),
                    ConnectionString::parse(&String::from_utf8_lossy(&text)),
                )
            }
        };
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                self.problem(KEY, format!("{subject} {error}"));
                return None;
            }
        };
        let superseded: [&'static keys::Key; 3] =
            [&keys::ENDPOINT, &keys::EMULATOR_MODE, &keys::AZURE_CLOUD];
        for key in superseded {
            if self.is_set(key) {
                self.problem(
                    key,
                    "does nothing with connection_string, which contains the endpoint: remove it",
                );
            }
        }
        if let Some(endpoint) = &parsed.endpoint
            && !is_full_url(endpoint)
        {
            self.problem(
                KEY,
                format!(
                    "{subject} contains a BlobEndpoint that is not a full URL; write https://host[:port]"
                ),
            );
        }
        let named = self.text(&keys::ACCOUNT_NAME);
        if let (Some(named), Some(account)) = (&named, &parsed.account)
            && named != account
        {
            self.problem(
                &keys::ACCOUNT_NAME,
                format!(
                    "{}, but connection_string has '{account}': keep one of them",
                    shown(named)
                ),
            );
        }
        let Some(account) = parsed.account.or(named) else {
            self.problem(
                &keys::ACCOUNT_NAME,
                "is missing: set it, since connection_string does not contain AccountName",
            );
            return None;
        };
        let auth = AzureAuth::ConnectionString(source);
        Some((account, auth, parsed.endpoint, parsed.emulator))
    }

    /// Reads a tenant's id or domain, which becomes part of a URL.
    fn tenant(&mut self) -> Option<String> {
        let tenant = self.text(&keys::TENANT_ID)?;
        if !is_tenant(&tenant) {
            self.problem(
                &keys::TENANT_ID,
                format!("{} {NOT_A_TENANT}", shown(&tenant)),
            );
            return None;
        }
        Some(tenant)
    }
}

/// The account, authentication, endpoint, and whether it is the emulator.
type AzurePlace = (String, AzureAuth, Option<String>, bool);

/// Azurite's well-known account: <https://learn.microsoft.com/azure/storage/common/storage-use-azurite>
pub const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
/// The key of [`EMULATOR_ACCOUNT`].
pub const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Whether a name is 3 to 63 letters, digits and single hyphens, or that of a system container, which begins with `$`.
/// <https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata>
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

/// Whether a text may be a tenant's id or domain.
pub fn is_tenant(tenant: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    !tenant.is_empty() && tenant.bytes().all(valid) && tenant.bytes().any(|b| b != b'.')
}

/// The message for a text that is not [`is_tenant`].
pub const NOT_A_TENANT: &str =
    "is not a tenant: write the directory (tenant) ID, or a domain such as contoso.onmicrosoft.com";
