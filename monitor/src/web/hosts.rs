//! The host that a browser asks for, against DNS rebinding.
//!
//! Another site may have a name of its own lead to this host, and would then be of one origin with the page, and could
//! read it, and the figures as well. So these are served only where an address, `localhost`, this host's own name, or a
//! configured one is asked for: no other site has any of those.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use axum::http::{Request, header::HOST};

/// Whether `request` asks for this host by an address or by a name of its own.
pub(super) fn is_ours<B>(request: &Request<B>, names: &[String]) -> bool {
    let mut given = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (given.next(), given.next()) else { return false };
    let is_ours = |authority: &str| is_known(authority, names);
    // A target with a host of its own outweighs the header; no browser asks so.
    let target = request.uri().authority().is_none_or(|authority| is_ours(authority.as_str()));
    target && host.to_str().is_ok_and(is_ours)
}

/// Whether `request` names no host at all, as no browser does.
pub(super) fn names_none<B>(request: &Request<B>) -> bool {
    !request.headers().contains_key(HOST) && request.uri().authority().is_none()
}

/// The names by which this host knows itself: the kernel's, and what `/etc/hosts` has beside that. No name service is
/// asked.
pub(super) fn own_names() -> Vec<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    own_names_in(&fs::read_to_string("/etc/hosts").unwrap_or_default(), &name)
}

fn own_names_in(hosts: &str, name: &str) -> Vec<String> {
    let names = |line: &str| -> Vec<String> {
        let line = line.split('#').next().unwrap_or_default();
        line.split_ascii_whitespace().skip(1).map(str::to_owned).collect()
    };
    let is_own = |names: &Vec<String>| names.iter().any(|other| other.eq_ignore_ascii_case(name));
    let others = hosts.lines().map(names).filter(is_own).flatten();
    std::iter::once(name.to_owned()).chain(others).filter(|name| !name.is_empty()).collect()
}

fn is_known(authority: &str, names: &[String]) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    if let Some(rest) = authority.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return port && address.parse::<Ipv6Addr>().is_ok();
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, "0"));
    let is_name = |name: &String| name.eq_ignore_ascii_case(host);
    is_port(port)
        && (host.parse::<Ipv4Addr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || names.iter().any(is_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_configured_names_are_ours_with_any_port_and_nothing_else_is() {
        let names = ["Hypervisor-1.example.org".to_owned()];
        for ours in [
            "127.0.0.1",
            "127.0.0.1:9477",
            "10.1.2.3:80",
            "[::1]:9477",
            "[fe80::1]",
            "localhost:9477",
            "LocalHost",
            "hypervisor-1.example.org:9477",
        ] {
            assert!(is_known(ours, &names), "{ours}");
        }
        for other in [
            "",
            ":",
            ":9477",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1:",
            "127.0.0.1:x",
            "127.0.0.1:80:80",
            "127.0.0.1:99999",
            "user@127.0.0.1",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]:",
            "[localhost]",
            "example.org",
            "hypervisor-1.example.org.",
        ] {
            assert!(!is_known(other, &names), "{other}");
        }
    }

    #[test]
    fn this_host_has_the_names_that_stand_beside_its_own() {
        let hosts = "127.0.0.1 localhost\n10.1.2.3\tHv1.example.org hv1 # hv1.evil.example\n\
                     10.1.2.4 hv2\n# 1.1.1.1 hv1 x\n";
        assert_eq!(own_names_in(hosts, "hv1"), ["hv1", "Hv1.example.org", "hv1"]);
        assert_eq!(own_names_in("", "hv1"), ["hv1"]);
        assert!(own_names_in("10.1.2.3 \n\n", "").is_empty());
    }

    #[test]
    fn a_request_names_one_host_and_its_target_names_no_other() {
        let request = |target: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(target);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            is_ours(&request.body(()).expect("a request"), &[])
        };
        assert!(request("/", &["localhost"]));
        assert!(request("http://localhost/", &["localhost"]));
        assert!(!request("/", &[]));
        assert!(!request("/", &["localhost", "localhost"]));
        assert!(!request("/", &["localhost", "evil.example"]));
        assert!(!request("http://evil.example/", &["localhost"]));
    }
}
