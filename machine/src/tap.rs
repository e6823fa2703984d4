//! A tap: the host's end of a guest's network device.
//!
//! Frames are plain Ethernet, without a header of the kernel's before them and without anything left
//! undone in them: every offload is off, so checksums are there and no frame is larger than the
//! interface's MTU allows.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

/// Where taps come from.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Why a tap cannot be used: which, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error(
        "tap {0:?}: an interface's name has 1 to {max} of the characters a-z, A-Z, 0-9, '-', '_' and '.'",
        max = Tap::NAME_BYTES_MAX
    )]
    Name(String),
    /// The kernel has no taps here.
    #[error(
        "tap {0}: there is no {CLONE_DEVICE}: load the module tun (modprobe tun), or let this process see the device"
    )]
    NoDriver(String),
    /// Not permitted.
    #[error(
        "tap {0}: not permitted: create it for this process's user (ip tuntap add dev {0} mode tap user NAME), \
         or grant CAP_NET_ADMIN and access to {CLONE_DEVICE}"
    )]
    Permission(String),
    /// Somebody else has it open.
    #[error("tap {0} is in use: another samsarad or another VM has it open")]
    Busy(String),
    /// There is an interface of that name which is none.
    #[error("{0} is an interface that is no tap with one queue: remove it, or name another")]
    NotATap(String),
    /// It is down and may not be brought up.
    #[error("tap {0} is down, and this process may not bring it up: ip link set {0} up")]
    Down(String),
    /// Anything else.
    #[error("tap {name}: {what}")]
    Io {
        /// Which.
        name: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// An open tap. Nothing here waits: what cannot be done at once fails with
/// [`io::ErrorKind::WouldBlock`].
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
}

impl Tap {
    /// The most bytes of an interface's name.
    pub const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

    /// Opens the tap of that name in the calling thread's network namespace and brings it up. One
    /// that is not there is created, if this process may; it goes when it is closed.
    pub fn open(name: &str) -> Result<Self, TapError> {
        check_name(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(CLONE_DEVICE)
            .map_err(|error| open_error(name, error))?;
        let tap = Self {
            name: name.to_owned(),
            file,
        };
        tap.attach()?;
        tap.clear_offloads()?;
        tap.bring_up()?;
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the next frame that the host sent; gives its length. Of one that is longer than the
    /// buffer, the rest is lost.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Gives the host a frame, whole or not at all.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }

    /// Takes up the interface again if it was removed and another of its name was made meanwhile;
    /// whether it did.
    pub fn reattach(&self) -> Result<bool, TapError> {
        // Asked for, one that is not there would be made, and be in the way of whoever makes it.
        let gone = |error: &TapError| matches!(error, TapError::Io { source, .. } if source.raw_os_error() == Some(libc::ENODEV));
        match self.flags() {
            Err(error) if gone(&error) => return Ok(false),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        match self.attach() {
            // It was not removed.
            Err(TapError::Io { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
                return Ok(false);
            }
            other => other?,
        }
        self.clear_offloads()?;
        self.bring_up()?;
        Ok(true)
    }

    fn attach(&self) -> Result<(), TapError> {
        let mut request = request(&self.name);
        // The constants are small; the kernel's field is a short.
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        let file = self.file.as_raw_fd();
        // SAFETY: the request reads and writes the live local that it is given.
        let code = unsafe { libc::ioctl(file, libc::TUNSETIFF, &raw mut request) };
        outcome(code).map_err(|error| attach_error(&self.name, error))
    }

    /// Whoever had a tap that stays may have left some on.
    fn clear_offloads(&self) -> Result<(), TapError> {
        let none: libc::c_ulong = 0;
        // SAFETY: a request without pointers.
        let code = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, none) };
        outcome(code).map_err(self.error("cannot turn its offloads off"))
    }

    /// The interface's flags, and a socket to change them by.
    fn flags(&self) -> Result<(OwnedFd, libc::c_short), TapError> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: a system call without pointers.
        let socket = unsafe { libc::socket(libc::AF_INET, kind, 0) };
        outcome(socket).map_err(self.error("cannot make a socket to ask for its state"))?;
        // SAFETY: the descriptor is new, open and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let mut request = request(&self.name);
        // SAFETY: the request reads and writes the live local that it is given.
        let code = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
        outcome(code).map_err(self.error("cannot read its state"))?;
        // SAFETY: every bit pattern of that field is a valid short, and the kernel has filled it.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok((socket, flags))
    }

    fn bring_up(&self) -> Result<(), TapError> {
        let (socket, flags) = self.flags()?;
        let up = libc::IFF_UP as libc::c_short;
        if flags & up != 0 {
            return Ok(());
        }
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_flags = flags | up;
        // SAFETY: the request reads the live local that it is given.
        let code = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
        outcome(code).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::Down(self.name.clone()),
            _ => self.error("cannot bring it up")(error),
        })
    }

    fn error(&self, what: &'static str) -> impl FnOnce(io::Error) -> TapError + use<> {
        let name = self.name.clone();
        move |source| TapError::Io { name, what, source }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel takes a '%' as a place for a number, and refuses some other characters.
fn check_name(name: &str) -> Result<(), TapError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = (1..=Tap::NAME_BYTES_MAX).contains(&name.len());
    if fits && name.bytes().all(is_plain) && name != "." && name != ".." {
        Ok(())
    } else {
        Err(TapError::Name(name.to_owned()))
    }
}

/// A request about the interface of a checked name.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: zeroed is a valid ifreq: numbers, and a union of numbers and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The name is shorter than the field: the byte after it stays zero.
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request
}

fn outcome(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn open_error(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver(name),
        Some(libc::EACCES | libc::EPERM) => TapError::Permission(name),
        _ => TapError::Io {
            name,
            what: "cannot open /dev/net/tun",
            source,
        },
    }
}

fn attach_error(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy(name),
        Some(libc::EPERM | libc::EACCES) => TapError::Permission(name),
        Some(libc::EINVAL) => TapError::NotATap(name),
        _ => TapError::Io {
            name,
            what: "cannot attach to it",
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused_before_the_kernel_sees_them() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "tap%d",
            "a b",
            "abcdefghijklmnop",
            "tap\0",
            "täp",
        ] {
            let error = Tap::open(name).unwrap_err();
            assert!(matches!(error, TapError::Name(_)), "{name:?}: {error}");
        }
        for name in ["tap0", "a", "abcdefghijklmno", "vm-1.net_0"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let of = io::Error::from_raw_os_error;
        let text = |error: TapError| error.to_string();
        assert!(text(open_error("t0", of(libc::ENOENT))).contains("modprobe tun"));
        assert!(text(open_error("t0", of(libc::EACCES))).contains("CAP_NET_ADMIN"));
        assert!(text(attach_error("t0", of(libc::EPERM))).contains("ip tuntap add dev t0"));
        assert!(text(attach_error("t0", of(libc::EBUSY))).contains("t0 is in use"));
        assert!(text(attach_error("lo", of(libc::EINVAL))).contains("lo is an interface"));
        assert_eq!(
            text(attach_error("t0", of(libc::EIO))),
            "tap t0: cannot attach to it"
        );
    }
}
