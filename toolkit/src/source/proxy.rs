//! Which proxy does a download go through? The one that the environment names, as curl and git understand it.

use std::env;

use anyhow::{Result, anyhow, ensure};
use ureq::{Proxy, ProxyProtocol};

/// The proxy for `url`: HTTPS_PROXY or HTTP_PROXY, by the URL's scheme, or else ALL_PROXY. Their names in lower case come
/// first. `NO_PROXY` lists hosts that are reached without: `example.org` stands for its subdomains as well, and `*` for all.
///
/// ureq's own choice would take HTTP_PROXY for https, too.
///
/// # Errors
///
/// When the variable is not the URL of a proxy that can be used.
pub fn of(url: &str) -> Result<Option<Proxy>> {
    of_environment(url, |name| env::var(name).ok())
}

fn of_environment(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Proxy>> {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let either_case = |name: &str| set(&name.to_lowercase()).or_else(|| set(name));
    let own = if url.starts_with("https:") { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let Some((name, value)) =
        [own, "ALL_PROXY"].into_iter().find_map(|name| Some((name, either_case(name)?)))
    else {
        return Ok(None);
    };
    // Not its value, which may have a password.
    let advice =
        || format!("{name} names no proxy that can be used: set it to http://HOST:PORT, or unset it");
    let parsed = Proxy::new(value.trim()).map_err(|error| anyhow!("{error}").context(advice()))?;
    let is_usable = matches!(parsed.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
    ensure!(is_usable, "{} (SOCKS is not supported)", advice());
    let mut proxy = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        proxy = proxy.username(user);
    }
    if let Some(password) = parsed.password() {
        proxy = proxy.password(password);
    }
    let direct = either_case("NO_PROXY").unwrap_or_default();
    for host in
        direct.split([',', ' ']).map(|host| host.trim().trim_start_matches("*.").trim_start_matches('.'))
    {
        if !host.is_empty() {
            proxy = proxy.no_proxy(host).no_proxy(&format!(".{host}"));
        }
    }
    Ok(Some(proxy.build()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The port of the proxy for a URL.
    fn port(url: &str, variables: &[(&str, &str)]) -> Result<Option<u16>> {
        let variable = |name: &str| Some(variables.iter().find(|(known, _)| *known == name)?.1.to_owned());
        let proxy = of_environment(url, variable)?;
        let uri = url.parse()?;
        Ok(proxy.filter(|proxy| !proxy.is_no_proxy(&uri)).map(|proxy| proxy.port()))
    }

    #[test]
    fn the_scheme_and_the_host_decide() {
        let both = [
            ("HTTPS_PROXY", "http://proxy:1"),
            ("HTTP_PROXY", "http://proxy:2"),
            ("no_proxy", "a.org, .b.org"),
        ];
        let all = [("ALL_PROXY", "proxy:3"), ("https_proxy", ""), ("NO_PROXY", "*")];
        for (url, variables, expected) in [
            ("https://example.org/", &both[..], Some(1)),
            ("http://example.org/", &both, Some(2)),
            ("https://example.org/", &both[1..], None),
            ("https://a.org/", &both, None),
            ("https://sub.a.org/", &both, None),
            ("https://b.org/", &both, None),
            ("https://nota.org/", &both, Some(1)),
            ("https://example.org/", &all[..2], Some(3)),
            ("https://example.org/", &all, None),
            ("https://example.org/", &[], None),
            ("https://example.org/", &[("https_proxy", "proxy:4"), ("HTTPS_PROXY", "proxy:5")], Some(4)),
        ] {
            assert_eq!(port(url, variables).unwrap(), expected, "{url} {variables:?}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_and_not_passed_over() {
        for value in ["socks5://proxy:1080", "ftp://proxy", "http://"] {
            let error = format!("{:#}", port("https://example.org/", &[("HTTPS_PROXY", value)]).unwrap_err());
            assert!(error.contains("HTTPS_PROXY") && error.contains("http://HOST:PORT"), "{error}");
        }
    }
}
