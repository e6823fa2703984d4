//! Types of the lists of devices: disks and network cards.

use std::fmt;
use std::path::PathBuf;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::values;

/// Most entries of `vm.disks`.
pub const DISKS_MAX: usize = 4;
/// Most entries of `vm.net`.
pub const NETS_MAX: usize = 3;
/// Most virtio devices in all: each has an interrupt line of its own.
pub const VIRTIO_DEVICES_MAX: usize = 8;
/// Longest name of a network interface: IFNAMSIZ less its NUL.
const INTERFACE_BYTES_MAX: usize = 15;

/// A disk of the guest: a raw image on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The image file.
    #[serde(deserialize_with = "values::path")]
    pub path: PathBuf,
    /// The guest may not write it.
    #[serde(default)]
    pub read_only: bool,
}

/// A network card of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The tap interface of this host that it is connected to.
    #[serde(deserialize_with = "interface")]
    pub tap: String,
    /// Its address.
    pub mac: MacAddress,
}

/// A card's own Ethernet address: unicast, not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Its bytes, as they are sent.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or("too short")?;
            let is_hex = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            let value = u8::from_str_radix(part, 16).ok().filter(|_| is_hex);
            *byte = value.ok_or("not hexadecimal")?;
        }
        let is_unicast = bytes[0] & 1 == 0 && bytes != [0; 6];
        if parts.next().is_some() || !is_unicast {
            return Err("not one card's address");
        }
        Ok(Self(bytes))
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

/// A name that the kernel takes for an interface, and that is not a pattern for one.
fn interface<'de, D: Deserializer<'de>>(de: D) -> Result<String, D::Error> {
    values::checked(de, |text| {
        (1..=INTERFACE_BYTES_MAX).contains(&text.len())
            && text != "."
            && text != ".."
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte))
    })
}

/// Deserializes a list of at most `MAX`.
pub(crate) fn list<'de, D, T, const MAX: usize>(de: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list = Vec::deserialize(de)?;
    if list.len() > MAX {
        return Err(Error::custom("too many"));
    }
    Ok(list)
}
