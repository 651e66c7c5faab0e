//! The proxies that the environment names, and what goes past them.
//!
//! - `HTTPS_PROXY` is for https and `HTTP_PROXY` for http; `ALL_PROXY` for both, where they are not set. Without either,
//!   https goes through `HTTP_PROXY`, too: Fluent Bit reads no other variable, and its documentation promises this. An
//!   empty `HTTPS_PROXY` switches that off.
//! - `NO_PROXY` lists what is connected to directly: names with their subdomains (`example.com`, `.example.com`,
//!   `*.example.com`), patterns (`s3.*.amazonaws.com`), addresses, networks (`10.0.0.0/8`, `fd00::/8`), each with a port
//!   if only that is meant (`example.com:9000`, `[::1]:9000`); `*` is everything.
//! - The services that hand out this machine's credentials are never asked through a proxy, which has others.
//!
//! Upper-case names come first, as in Fluent Bit.

use std::net::IpAddr;

use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::config::{Problem, without_secrets};

/// The variables that hold the address of a service for credentials.
const LOCAL_SERVICES: [&str; 6] = [
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "GCE_METADATA_HOST",
    "GCE_METADATA_IP",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
];

/// The rules of the environment.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    matcher: Option<Matcher>,
    direct: Vec<Rule>,
}

/// A destination that is connected to directly.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    host: HostRule,
    port: Option<u16>,
}

#[derive(Debug, PartialEq, Eq)]
enum HostRule {
    /// The addresses whose first bits are the same.
    Network(IpAddr, u8),
    /// A name and its subdomains, in lower case.
    Domain(String),
    /// Names in which `*` is any text, in lower case.
    Pattern(String),
    /// One name, in lower case.
    Name(String),
}

impl Environment {
    /// Reads the environment. A proxy that cannot be used is a problem of its variable.
    pub(crate) fn read() -> Result<Environment, Problem> {
        Environment::of(|name| std::env::var(name).ok())
    }

    /// Reads the variables from another place, for tests.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Environment, Problem> {
        let first = |names: &[&'static str]| {
            let set = names
                .iter()
                .find_map(|name| Some((*name, variable(name)?.trim().to_owned())));
            set.unwrap_or_default()
        };
        let http = first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]);
        let https = first(&[
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
            "HTTP_PROXY",
            "http_proxy",
        ]);
        for (name, url) in [&http, &https] {
            if !url.is_empty() {
                check(name, url)?;
            }
        }
        let matcher = (!http.1.is_empty() || !https.1.is_empty())
            .then(|| Matcher::builder().http(&http.1).https(&https.1).build());
        let no_proxy = first(&["NO_PROXY", "no_proxy"]).1;
        let entries = no_proxy.split([',', ' ']).filter(|entry| !entry.is_empty());
        let mut direct: Vec<Rule> = entries.map(Rule::parse).collect();
        for name in LOCAL_SERVICES {
            direct.extend(variable(name).and_then(|value| Rule::of_service(&value)));
        }
        Ok(Environment { matcher, direct })
    }

    /// Returns the proxy for a destination.
    pub(crate) fn proxy(&self, destination: &Uri) -> Option<Intercept> {
        let matcher = self.matcher.as_ref()?;
        let host = destination.host()?.trim_matches(['[', ']']);
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let default = match destination.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => 443,
            _ => 80,
        };
        let port = destination.port_u16().unwrap_or(default);
        let direct = is_metadata(&host) || self.direct.iter().any(|rule| rule.matches(&host, port));
        (!direct).then(|| matcher.intercept(destination)).flatten()
    }
}

/// Whether the value of a variable names a proxy of a kind that can be used. A password in it is not shown.
fn check(variable: &'static str, url: &str) -> Result<(), Problem> {
    let target = Uri::from_static("http://example.com");
    let proxy = Matcher::builder().http(url).build().intercept(&target);
    let scheme = proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str());
    match scheme {
        Some("http" | "https") => Ok(()),
        _ => {
            let shown = without_secrets(url);
            let message = format!("'{shown}' is not a proxy: write http://host:port");
            Err(Problem::new(variable, message))
        }
    }
}

impl Rule {
    fn parse(entry: &str) -> Rule {
        let lower = entry.trim_end_matches('.').to_ascii_lowercase();
        if let Some(network) = network(&lower) {
            return Rule {
                host: network,
                port: None,
            };
        }
        let (host, port) = match lower.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
            _ => (lower.as_str(), None),
        };
        let host = match network(host) {
            Some(network) => network,
            None => match host.strip_prefix("*.").or(host.strip_prefix('.')) {
                Some(domain) if !domain.contains('*') => HostRule::Domain(domain.to_owned()),
                _ if host.contains('*') => HostRule::Pattern(host.to_owned()),
                _ => HostRule::Domain(host.to_owned()),
            },
        };
        Rule { host, port }
    }

    /// Returns the rule for a service that a variable names: a URL, or a host and a port.
    fn of_service(value: &str) -> Option<Rule> {
        let url = match value.contains("://") {
            true => value.to_owned(),
            false => format!("http://{value}"),
        };
        let url: Uri = url.trim().parse().ok()?;
        let host = url.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let host = network(&host).unwrap_or(HostRule::Name(host));
        let port = url.port_u16();
        Some(Rule { host, port })
    }

    fn matches(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        match &self.host {
            HostRule::Network(network, bits) => match host.parse::<IpAddr>() {
                Ok(address) => is_within(address, *network, *bits),
                Err(_) => false,
            },
            HostRule::Domain(domain) => host
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            HostRule::Pattern(pattern) => fits(pattern, host),
            HostRule::Name(name) => host == name,
        }
    }
}

/// Parses an address, in brackets or not, or a network.
fn network(text: &str) -> Option<HostRule> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    let most = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some(HostRule::Network(address, bits))
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let wide = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
        IpAddr::V6(address) => (address.to_bits(), false),
    };
    let ((address, is_v4), (network, of_v4)) = (wide(address), wide(network));
    let differing = (address ^ network).leading_zeros();
    is_v4 == of_v4 && differing >= u32::from(bits)
}

/// Whether a text fits a pattern in which `*` is any text.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|tail| {
            let ends = (0..=tail.len()).filter(|at| tail.is_char_boundary(*at));
            rest.is_empty() || ends.into_iter().any(|at| fits(rest, &tail[at..]))
        }),
    }
}

/// Whether a host is a cloud's metadata service, which is local to this machine and not reachable through a proxy.
fn is_metadata(host: &str) -> bool {
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        // The addresses of virtual machines, ECS and EKS.
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_unicast_link_local() || address.segments().starts_with(&[0xfd00, 0x0ec2])
        }
        Err(_) => matches!(host, "metadata.google.internal" | "metadata.goog"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn environment(variables: Variables<'_>) -> Result<Environment, Problem> {
        Environment::of(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn proxy(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let environment = environment(variables).expect("proxies that can be used");
        let proxy = environment.proxy(&url.parse().unwrap())?;
        proxy.uri().host().map(str::to_owned)
    }

    #[test]
    fn https_goes_through_http_proxy_too_unless_it_has_its_own() {
        const HTTP: (&str, &str) = ("HTTP_PROXY", "http://plain:1");
        const LOWER: (&str, &str) = ("http_proxy", "http://lower:1");
        const HTTPS: (&str, &str) = ("HTTPS_PROXY", "http://secure:1");
        const ALL: (&str, &str) = ("ALL_PROXY", "http://all:1");
        const OFF: (&str, &str) = ("HTTPS_PROXY", "");
        let table: [(Variables<'_>, Option<&str>, Option<&str>); 10] = [
            (&[], None, None),
            (&[HTTP], Some("plain"), Some("plain")),
            (&[LOWER], Some("lower"), Some("lower")),
            (&[HTTP, LOWER], Some("plain"), Some("plain")),
            (&[HTTPS], None, Some("secure")),
            (&[HTTP, HTTPS], Some("plain"), Some("secure")),
            (&[HTTP, OFF], Some("plain"), None),
            (&[ALL], Some("all"), Some("all")),
            (&[HTTP, ALL], Some("plain"), Some("all")),
            (&[("HTTP_PROXY", "host:3128")], Some("host"), Some("host")),
        ];
        for (variables, http, https) in table {
            for (url, expected) in [
                ("http://store.example/a", http),
                ("https://store.example/a", https),
            ] {
                assert_eq!(
                    proxy(variables, url).as_deref(),
                    expected,
                    "{variables:?} {url}"
                );
            }
        }
    }

    #[test]
    fn no_proxy_has_names_patterns_addresses_networks_and_ports() {
        let table: [(&str, &[&str], &[&str]); 13] = [
            ("*", &["https://a.example", "http://[::1]:1"], &[]),
            (
                "example.com",
                &[
                    "https://example.com",
                    "https://EXAMPLE.com.",
                    "https://a.b.example.com:9000",
                ],
                &["https://notexample.com", "https://example.com.evil"],
            ),
            (
                ".example.com",
                &["https://a.example.com", "https://example.com"],
                &["https://aexample.com"],
            ),
            (
                "*.example.com",
                &["https://a.example.com"],
                &["https://a.example.org"],
            ),
            (
                "s3.*.amazonaws.com",
                &["https://s3.eu-west-1.amazonaws.com"],
                &[
                    "https://sts.eu-west-1.amazonaws.com",
                    "https://s3.amazonaws.com",
                ],
            ),
            (
                "example.com:9000",
                &["http://example.com:9000"],
                &[
                    "http://example.com",
                    "https://example.com",
                    "http://example.com:9001",
                ],
            ),
            (
                "example.com:443",
                &["https://example.com"],
                &["http://example.com"],
            ),
            (
                "10.0.0.0/8",
                &["http://10.1.2.3:9000"],
                &["http://11.0.0.1", "http://ten.example"],
            ),
            ("10.1.2.3", &["http://10.1.2.3"], &["http://10.1.2.30"]),
            (
                "fd00::/8",
                &["http://[fd12::1]:9000"],
                &["http://[fe00::1]", "http://10.0.0.1"],
            ),
            ("::1", &["http://[::1]"], &["http://[::2]"]),
            ("[::1]:9000", &["http://[::1]:9000"], &["http://[::1]:9001"]),
            (
                " 10.0.0.0/33, a.example ,b.example c.example",
                &["http://a.example", "http://b.example", "http://c.example"],
                &["http://10.0.0.1"],
            ),
        ];
        for (no_proxy, direct, through) in table {
            let variables = [("HTTP_PROXY", "http://proxy:1"), ("NO_PROXY", no_proxy)];
            for url in direct {
                assert_eq!(proxy(&variables, url), None, "{url} of {no_proxy}");
            }
            for url in through {
                assert!(proxy(&variables, url).is_some(), "{url} of {no_proxy}");
            }
        }
    }

    #[test]
    fn services_for_credentials_are_never_asked_through_a_proxy() {
        let variables = [
            ("HTTP_PROXY", "http://proxy:1"),
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://localhost:1338/creds",
            ),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://[fc00::7]"),
            ("GCE_METADATA_HOST", "metadata.local:8080"),
            ("IDENTITY_ENDPOINT", "http://127.0.0.1:41741/msi/token"),
        ];
        for url in [
            "http://169.254.169.254/latest/api/token",
            "http://169.254.170.2/creds",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::254]/latest/api/token",
            "http://[fd00:ec2::23]/v1/credentials",
            "http://[fe80::1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://metadata.google.internal/computeMetadata/v1",
            "http://METADATA.google.internal./computeMetadata/v1",
            "http://localhost:1338/creds",
            "http://[fc00::7]/latest/meta-data",
            "http://metadata.local:8080/computeMetadata/v1",
            "http://127.0.0.1:41741/msi/token",
        ] {
            assert_eq!(proxy(&variables, url), None, "{url}");
        }
        for url in [
            "http://169.253.0.1/",
            "http://[fd00:ec3::254]/",
            "http://localhost:9000/bucket",
            "http://a.metadata.local:8080/",
            "https://login.microsoftonline.com/",
            "https://sts.amazonaws.com/",
        ] {
            assert!(proxy(&variables, url).is_some(), "{url}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_named_by_its_variable_without_its_password() {
        for (variable, value) in [
            ("HTTPS_PROXY", "socks5://me:hunter2@proxy:1080"),
            ("http_proxy", "ftp://me:hunter2@proxy"),
            ("ALL_PROXY", "http://me:hunter2@"),
        ] {
            let problem = environment(&[(variable, value)]).expect_err(value);
            assert_eq!(problem.key, variable);
            assert!(!problem.message.contains("hunter2"), "{problem}");
        }
    }
}
