//! Which names may be handed on, product by product.
//!
//! They become arguments of programs that run as root, so each alphabet is what the product itself allows, or less.
//! None allows a `-` at its beginning, a slash, or a control character.

/// Most bytes of any name: what a file name may have.
const BYTES: usize = 255;

/// `name`, if it has only what `allowed` allows, something, and does not look like an option.
fn plain(name: &str, allowed: impl Fn(u8) -> bool) -> Result<String, String> {
    if name.is_empty() || name.len() > BYTES {
        return Err(format!("a name of {} bytes", name.len()));
    }
    if name.starts_with('-') {
        return Err("its name looks like an option".to_owned());
    }
    match name.bytes().find(|&byte| !allowed(byte)) {
        Some(byte) => Err(format!("its name has the byte {byte:#04x}")),
        None => Ok(name.to_owned()),
    }
}

/// A systemd service's name (`VALID_CHARS` in systemd's src/basic/unit-name.c, and `@`), at most 255 bytes with its
/// suffix.
pub(super) fn unit(name: &str) -> Result<String, String> {
    let unit = plain(name, |byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte))?;
    match unit.strip_suffix(".service") {
        Some("") | None => Err("it is no service".to_owned()),
        Some(_) => Ok(unit),
    }
}

/// A libvirt domain's name: anything without a slash or a line end (`virDomainDefParseXMLCommon`). It is no
/// argument, as the UUID is, but it is shown and compared, so that control characters and invisible ones are not
/// taken either.
pub(super) fn domain(name: &str) -> Result<String, String> {
    let name = plain(name, |byte| byte >= b' ' && byte != 0x7f && byte != b'/')?;
    if super::super::vm::display_text(&name) == name {
        Ok(name)
    } else {
        Err("its name is too long, or has characters that are not to be seen".to_owned())
    }
}

/// A Proxmox VM's number: from 100 to 999999999 (`pve-vmid` of pve-common's PVE/JSONSchema.pm), without leading zeros.
pub(super) fn vmid(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number: &u32| number.to_string() == text);
    number
        .filter(|number| (100..=999_999_999).contains(number))
        .ok_or_else(|| "its number is none that Proxmox VE gives".to_owned())
}

/// A Ganeti instance's name: a host name (`_VALID_NAME_RE` in Ganeti's lib/netutils.py).
pub(super) fn ganeti_instance(name: &str) -> Result<String, String> {
    plain(name, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
}

/// An instance's name of Incus or LXD: a host name without dots (`IsHostname` in Incus' shared/validate).
pub(super) fn incus_instance(name: &str) -> Result<String, String> {
    plain(name, |byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// A project's name of Incus or LXD. They allow more; what is here is what can be told apart in a path.
pub(super) fn incus_project(name: &str) -> Result<String, String> {
    plain(name, |byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A name of Kubernetes': a DNS subdomain (RFC 1123).
pub(super) fn kubernetes(name: &str) -> Result<String, String> {
    plain(name, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte))
}

/// A sandbox' id: containerd's are 64 hexadecimal digits; its `identifiers` allow what stands here.
pub(super) fn sandbox(name: &str) -> Result<String, String> {
    plain(name, |byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
