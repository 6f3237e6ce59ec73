//! The four requests of rtnetlink(7) that moving a network device takes, and netlink(7)'s encoding of them.

use crate::{Errno, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// `struct ifinfomsg`.
const LINK: usize = 16;
/// `struct ifaddrmsg`.
const ADDRESS: usize = 8;
/// How often a list that changed while it was read is read again.
const ATTEMPTS: u32 = 16;

/// An address of a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's own.
    local: IpAddr,
    /// The other end's on a point-to-point link, else the device's own.
    peer: IpAddr,
    /// The broadcast address (IPv4).
    broadcast: Option<IpAddr>,
    /// How many bits of `peer` are the network's.
    prefix: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.local, self.prefix)
    }
}

/// A request being built. Every part of it is aligned to four bytes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }
}

fn move_link(index: u32, name: &str, namespace: i32) -> Vec<u8> {
    let mut body = [0; LINK];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut with_null = name.as_bytes().to_vec();
    with_null.push(0);
    Request::new(libc::RTM_SETLINK, libc::NLM_F_ACK, &body)
        .attribute(libc::IFLA_IFNAME, &with_null)
        .attribute(libc::IFLA_NET_NS_FD, &namespace.to_ne_bytes())
        .finish()
}

fn bring_up(index: u32) -> Vec<u8> {
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let mut body = [0; LINK];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    // ifi_flags, and ifi_change: which of them count.
    body[8..12].copy_from_slice(&up);
    body[12..16].copy_from_slice(&up);
    Request::new(libc::RTM_SETLINK, libc::NLM_F_ACK, &body).finish()
}

fn list_addresses() -> Vec<u8> {
    // AF_UNSPEC: of every family.
    Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; ADDRESS]).finish()
}

fn add_address(index: u32, address: &Address) -> Vec<u8> {
    let mut body = [0; ADDRESS];
    body[0] = if address.local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    } as u8;
    body[1] = address.prefix;
    body[3] = libc::RT_SCOPE_UNIVERSE;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut request = Request::new(libc::RTM_NEWADDR, flags, &body)
        .attribute(libc::IFA_LOCAL, &octets(address.local))
        .attribute(libc::IFA_ADDRESS, &octets(address.peer));
    if let Some(broadcast) = address.broadcast {
        request = request.attribute(libc::IFA_BROADCAST, &octets(broadcast));
    }
    // No label: it has the device's old name in it.
    request.finish()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

/// Takes the first message off `bytes`; `None` if they are no message.
fn next_message<'a>(bytes: &mut &'a [u8]) -> Option<Message<'a>> {
    let length = u32_at(bytes, 0)? as usize;
    let message = Message {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        body: bytes.get(HEADER..length)?,
    };
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(message)
}

/// The attributes in `bytes`; what is cut off is left out.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16_at(bytes, 0)? as usize;
        let (kind, value) = (u16_at(bytes, 2)?, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The address in the body of an RTM_NEWADDR, if it is one that moves with the device `index`: a permanent one (the others
/// were learnt from the network that is left behind) of global scope, config-linux.md#network-devices.
fn kept_address(body: &[u8], index: u32) -> Option<Address> {
    let (prefix, short_flags, scope) = (*body.get(1)?, *body.get(2)?, *body.get(3)?);
    let (mut local, mut peer, mut broadcast, mut flags) = (None, None, None, u32::from(short_flags));
    for (kind, value) in attributes(body.get(ADDRESS..)?) {
        match kind {
            libc::IFA_LOCAL => local = address_of(value),
            libc::IFA_ADDRESS => peer = address_of(value),
            libc::IFA_BROADCAST => broadcast = address_of(value),
            libc::IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    let kept = u32_at(body, 4)? == index && scope == libc::RT_SCOPE_UNIVERSE && flags & libc::IFA_F_PERMANENT != 0;
    // IPv6 names no local address where there is no peer.
    let local = local.or(peer).filter(|_| kept)?;
    Some(Address {
        local,
        peer: peer.unwrap_or(local),
        broadcast,
        prefix,
    })
}

/// The errno in the body of an NLMSG_ERROR or NLMSG_DONE; zero is success.
fn outcome(body: &[u8]) -> Result<()> {
    match u32_at(body, 0).map(|code| code as i32) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw(code.wrapping_neg())),
        None => Err(Errno::EBADMSG),
    }
}

/// A netlink socket; it belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one in the current network namespace.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        // To the kernel, so that nobody else in the namespace can answer in its place.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Moves the device `index` to `namespace` and names it `name` there, both or neither. EEXIST if that name is taken.
    pub fn move_link(&self, index: u32, name: &str, namespace: BorrowedFd<'_>) -> Result<()> {
        self.ask(&move_link(index, name, namespace.as_raw_fd()), |_| {})
            .map(drop)
    }

    /// Brings the device `index` up; its other flags (multicast, ARP, …) stay as they are, unlike with the ioctl.
    pub fn set_up(&self, index: u32) -> Result<()> {
        self.ask(&bring_up(index), |_| {}).map(drop)
    }

    /// The permanent global addresses of the device `index`. EAGAIN if addresses change all the time.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let whole = self.ask(&list_addresses(), |message| {
                if message.kind == libc::RTM_NEWADDR {
                    found.extend(kept_address(message.body, index));
                }
            })?;
            if whole {
                return Ok(found);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Adds `address` to the device `index`. EEXIST if it is there.
    pub fn add_address(&self, index: u32, address: &Address) -> Result<()> {
        self.ask(&add_address(index, address), |_| {}).map(drop)
    }

    /// Sends `request` and reads the whole answer. Whether it is consistent: false if what was listed changed meanwhile.
    fn ask(&self, request: &[u8], mut each: impl FnMut(&Message<'_>)) -> Result<bool> {
        let socket = self.0.as_raw_fd();
        send(socket, request, MsgFlags::empty())?;
        let mut whole = true;
        // The kernel puts at most this much into one datagram: net/netlink/af_netlink.c, netlink_dump().
        let mut buffer = vec![0; 32 << 10];
        loop {
            let size = recv(socket, &mut buffer, MsgFlags::MSG_TRUNC)?;
            let mut rest = buffer.get(..size).ok_or(Errno::EMSGSIZE)?;
            while !rest.is_empty() {
                let message = next_message(&mut rest).ok_or(Errno::EBADMSG)?;
                whole &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => return outcome(message.body).map(|()| whole),
                    libc::NLMSG_OVERRUN => return Err(Errno::EOVERFLOW),
                    _ => each(&message),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(index: u32, scope: u8, flags: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, 24, flags, scope];
        body.extend_from_slice(&index.to_ne_bytes());
        let request = attributes
            .iter()
            .fold(Request::new(libc::RTM_NEWADDR, 0, &body), |request, (kind, value)| {
                request.attribute(*kind, value)
            });
        request.finish()
    }

    fn kept(bytes: &[u8], index: u32) -> Option<Address> {
        kept_address(next_message(&mut &*bytes).unwrap().body, index)
    }

    const PERMANENT: u8 = libc::IFA_F_PERMANENT as u8;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_move_names_the_device_its_new_name_and_its_namespace() {
        let expected = [
            52, 0, 0, 0, 19, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr: RTM_SETLINK, REQUEST | ACK
            0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ifinfomsg: index 7
            9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0, // IFLA_IFNAME, padded
            8, 0, 28, 0, 42, 0, 0, 0, // IFLA_NET_NS_FD
        ];
        assert_eq!(move_link(7, "eth0", 42), expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn bringing_a_device_up_changes_no_other_flag() {
        let expected = [
            32, 0, 0, 0, 19, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr: RTM_SETLINK, REQUEST | ACK
            0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // ifinfomsg: index 7, IFF_UP of IFF_UP
        ];
        assert_eq!(bring_up(7), expected);
    }

    #[test]
    fn an_address_that_is_added_is_the_one_that_was_read() {
        for (local, peer, broadcast, prefix) in [
            ("10.0.0.2", "10.0.0.2", Some("10.0.0.255"), 24),
            ("10.0.0.2", "10.0.0.9", None, 32),
            ("2001:db8::2", "2001:db8::2", None, 64),
        ] {
            let address = Address {
                local: local.parse().unwrap(),
                peer: peer.parse().unwrap(),
                broadcast: broadcast.map(|one| one.parse().unwrap()),
                prefix,
            };
            let mut bytes = add_address(3, &address);
            bytes[HEADER + 2] = PERMANENT;
            assert_eq!(kept(&bytes, 3), Some(address));
        }
    }

    #[test]
    fn ipv6_without_a_peer_has_no_local_address() {
        let address = [0xfd; 16];
        let found = kept(&answer(3, 0, PERMANENT, &[(libc::IFA_ADDRESS, &address)]), 3).unwrap();
        assert_eq!((found.local, found.peer), (address.into(), address.into()));
    }

    #[test]
    fn only_permanent_global_addresses_of_the_device_are_kept() {
        let local: (u16, &[u8]) = (libc::IFA_LOCAL, &[10, 0, 0, 2]);
        let temporary: (u16, &[u8]) = (libc::IFA_FLAGS, &0x100u32.to_ne_bytes());
        assert!(kept(&answer(3, 0, PERMANENT, &[local]), 3).is_some());
        assert_eq!(kept(&answer(4, 0, PERMANENT, &[local]), 3), None);
        assert_eq!(kept(&answer(3, libc::RT_SCOPE_LINK, PERMANENT, &[local]), 3), None);
        assert_eq!(kept(&answer(3, 0, 0, &[local]), 3), None);
        // IFA_FLAGS is the whole of the flags, of which the header has eight bits.
        assert_eq!(kept(&answer(3, 0, PERMANENT, &[local, temporary]), 3), None);
    }

    #[test]
    fn messages_that_are_cut_off_are_refused() {
        let bytes = answer(3, 0, PERMANENT, &[(libc::IFA_LOCAL, &[10, 0, 0, 2])]);
        for length in 0..bytes.len() {
            assert_eq!(next_message(&mut &bytes[..length]), None, "{length}");
        }
        let mut shorter_than_its_header = bytes.clone();
        shorter_than_its_header[..4].copy_from_slice(&8u32.to_ne_bytes());
        assert_eq!(next_message(&mut &shorter_than_its_header[..]), None);
    }

    #[test]
    fn several_messages_are_taken_one_by_one() {
        let mut bytes = move_link(1, "a", 2);
        bytes.extend(list_addresses());
        let mut rest = &bytes[..];
        assert_eq!(next_message(&mut rest).unwrap().kind, libc::RTM_SETLINK);
        assert_eq!(next_message(&mut rest).unwrap().kind, libc::RTM_GETADDR);
        assert!(rest.is_empty());
    }

    #[test]
    fn an_error_is_the_errno_and_zero_is_success() {
        assert_eq!(outcome(&0i32.to_ne_bytes()), Ok(()));
        assert_eq!(outcome(&(-libc::EEXIST).to_ne_bytes()), Err(Errno::EEXIST));
        assert_eq!(outcome(&[0; 3]), Err(Errno::EBADMSG));
    }
}
